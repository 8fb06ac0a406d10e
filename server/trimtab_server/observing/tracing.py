"""OpenTelemetry traces: a span for each call, linked to the client's, and one for each stage of a request.

Sources: W3C Trace Context for `traceparent`; OpenTelemetry's semantic conventions of RPC for attributes.
"""

import os
import random
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import grpc

from trimtab.errors import ConfigError
from trimtab_server.config import TracingSettings

if TYPE_CHECKING:
    from opentelemetry.trace import Span

Metadata = Iterable[tuple[str, str | bytes]]

# How long shutdown waits for the last spans to be sent.
FLUSH_MILLISECONDS = 2000
STAGES = ("tokenize", "queue", "compute", "output")


class Tracing:
    """Makes spans and sends them to a collector (OTLP over gRPC), in batches from a separate thread.

    A call with a traceparent is traced if its client traces it; of the others, a share is traced. ConfigError
    if OpenTelemetry is not installed. Respects OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES.
    """

    def __init__(self, settings: TracingSettings) -> None:
        try:
            from opentelemetry import trace
            from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
            from opentelemetry.sdk.trace.sampling import ALWAYS_ON, ParentBased
            from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
        except ModuleNotFoundError:
            raise ConfigError("tracing.endpoint needs OpenTelemetry: pip install 'trimtab[otel]'") from None
        resource = Resource.create({"service.name": os.environ.get("OTEL_SERVICE_NAME", "trimtab")})
        # `wants` decides which calls are traced, because making a span and dropping it costs a quarter of
        # a call.
        self._share = settings.share
        self._provider = TracerProvider(sampler=ParentBased(ALWAYS_ON), resource=resource)
        exporter = OTLPSpanExporter(settings.endpoint, insecure=settings.endpoint.startswith("http://"))
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("trimtab")
        self._propagator = TraceContextTextMapPropagator()
        self._trace = trace

    def wants(self, metadata: Metadata) -> bool:
        """Whether to trace a call: as its client says, or by chance if it says nothing."""
        for key, value in metadata:
            if key == "traceparent":
                return not str(value).endswith("-00")
        return random.random() < self._share  # noqa: S311

    @contextmanager
    def call(self, method: str, metadata: Metadata) -> Iterator["Span"]:
        """The span of a call, current while it lasts. `method` is /SERVICE/METHOD."""
        carrier = {key: value for key, value in metadata if key in ("traceparent", "tracestate")}
        service, _, name = method[1:].partition("/")
        with self._tracer.start_as_current_span(
            f"{service}/{name}",
            self._propagator.extract(carrier),
            self._trace.SpanKind.SERVER,
            {"rpc.system": "grpc", "rpc.service": service, "rpc.method": name},
            record_exception=False,
            set_status_on_exception=False,
        ) as span:
            yield span

    def ended(self, span: "Span", code: grpc.StatusCode) -> None:
        """Record how a call ended."""
        span.set_attribute("rpc.grpc.status_code", code.value[0])
        if code not in (grpc.StatusCode.OK, grpc.StatusCode.CANCELLED):
            span.set_status(self._trace.Status(self._trace.StatusCode.ERROR, code.name))

    def answered(
        self, protocol: str, encoder: str, version: int, *, texts: int, tokens: int, seconds: Sequence[float]
    ) -> None:
        """A request of the current call was answered; `seconds` of each of STAGES, the last ending now."""
        span = self._trace.get_current_span()
        if not span.is_recording():
            return
        end = time.time_ns()
        start = end - round(sum(seconds) * 1e9)
        request = self._tracer.start_span(
            f"embed {encoder}", start_time=start,
            attributes={
                "trimtab.encoder": encoder,
                "trimtab.version": version,
                "trimtab.protocol": protocol,
                "trimtab.texts": texts,
                "trimtab.tokens": tokens,
            },
        )  # fmt: skip
        context = self._trace.set_span_in_context(request)
        for stage, lasted in zip(STAGES, seconds, strict=True):
            child = self._tracer.start_span(stage, context, start_time=start)
            start += round(lasted * 1e9)
            child.end(start)
        request.end(end)

    def stop(self) -> None:
        """Send the remaining spans. Blocks briefly."""
        self._provider.force_flush(FLUSH_MILLISECONDS)
        self._provider.shutdown()
