"""Traces and logs of a real server: a span for each stage, linked to the client's; an id in each line."""

import itertools
import json
import threading
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
import pytest
from opentelemetry import trace
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.sdk.trace import TracerProvider

import trimtab
from tests.ops.credentials import Credentials
from tests.server.server_process import NAME, ServerProcess, serve
from trimtab.v1 import encoder_pb2 as pb
from trimtab.v1 import encoder_pb2_grpc

EMBED = "trimtab.v1.EncoderService/Embed"


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """Keeps the spans that it is sent."""

    def __init__(self) -> None:
        self.spans: list[Any] = []
        self.services: set[str] = set()
        self._arrived = threading.Condition()

    def Export(self, request: Any, context: Any) -> Any:
        with self._arrived:
            for resource in request.resource_spans:
                attributes = {each.key: each.value.string_value for each in resource.resource.attributes}
                self.services.add(attributes["service.name"])
                self.spans += [span for scope in resource.scope_spans for span in scope.spans]
            self._arrived.notify_all()
        return trace_service_pb2.ExportTraceServiceResponse()

    def wait_for(self, wanted: Any) -> list[Any]:
        """The spans that `wanted` picks, as soon as there are any."""
        with self._arrived:
            assert self._arrived.wait_for(lambda: any(map(wanted, self.spans)), 30), self.spans
            return [span for span in self.spans if wanted(span)]


@pytest.fixture(scope="module")
def collector() -> Iterator[tuple[Collector, str]]:
    collector = Collector()
    server = grpc.server(futures.ThreadPoolExecutor(2))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(collector, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield collector, f"http://127.0.0.1:{port}"
    server.stop(None).wait()


@pytest.fixture(scope="module")
def observed(
    collector: tuple[Collector, str], minilm_repository: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[ServerProcess, Credentials, str]]:
    """A server that traces what its clients trace, writes JSON, and asks for credentials."""
    folder = tmp_path_factory.mktemp("observed")
    credentials = Credentials(folder)
    key = credentials.key("search")
    text = f'[tracing]\nendpoint = "{collector[1]}"\nshare = 0.0\n[logging]\nformat = "json"\ncalls = true\n'
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OTEL_BSP_SCHEDULE_DELAY", "100")  # milliseconds that a span waits for others
        with serve(minilm_repository, folder, text + credentials.config()) as server:
            yield server, credentials, key


def lines(server: ServerProcess) -> list[dict[str, Any]]:
    """What the server wrote, as far as its own logger did."""
    return [json.loads(line) for line in list(server.log) if line.startswith("{")]


def line_of(server: ServerProcess, request_id: str, method: str) -> dict[str, Any]:
    """The line of a call, once it is there."""
    while True:
        for line in lines(server):
            if (line.get("request_id"), line.get("method")) == (request_id, f"/{method}"):
                return line
        assert server.process.poll() is None


def test_a_call_is_traced_through_its_stages(
    collector: tuple[Collector, str], observed: tuple[ServerProcess, Credentials, str]
) -> None:
    """The SDK hands on the span of the application, and the server's spans belong to it."""
    server, _, key = observed
    tracer = TracerProvider().get_tracer("an application")
    with trimtab.Client(server.url, token=key, metadata={"x-request-id": "traced-1"}) as client:
        client.encoders()  # not traced by the client, and by the server not either
        with tracer.start_as_current_span("search") as own:
            client.embed(["a secret text", "another"])
    trace_id = own.get_span_context().trace_id.to_bytes(16, "big")
    (embed,) = collector[0].wait_for(lambda span: span.trace_id == trace_id and span.name == f"embed {NAME}")
    spans = [span for span in collector[0].spans if span.trace_id == trace_id]
    (call,) = [span for span in spans if span.name == EMBED]
    assert embed.parent_span_id == call.span_id
    assert call.parent_span_id == own.get_span_context().span_id.to_bytes(8, "big")
    stages = [span for span in spans if span.parent_span_id == embed.span_id]
    stages.sort(key=lambda span: span.start_time_unix_nano)
    assert [stage.name for stage in stages] == ["tokenize", "queue", "compute", "output"]
    for first, second in itertools.pairwise(stages):
        assert first.end_time_unix_nano == second.start_time_unix_nano
    assert call.start_time_unix_nano <= embed.start_time_unix_nano + 1_000_000
    assert stages[-1].end_time_unix_nano <= call.end_time_unix_nano
    attributes = {each.key: each.value for each in embed.attributes}
    assert attributes["trimtab.texts"].int_value == 2 and attributes["trimtab.encoder"].string_value == NAME
    assert collector[0].services == {"trimtab"}
    assert all(span.trace_id == trace_id for span in collector[0].spans)
    assert "secret" not in str(collector[0].spans)
    line = line_of(server, "traced-1", EMBED)
    assert (line["code"], line["caller"], line["trace_id"]) == ("OK", "search", trace_id.hex())


def test_a_call_that_is_refused_and_one_that_fails(
    collector: tuple[Collector, str], observed: tuple[ServerProcess, Credentials, str]
) -> None:
    server, _, key = observed
    parent = ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
    with grpc.insecure_channel(server.url) as channel:
        stub = encoder_pb2_grpc.EncoderServiceStub(channel)
        for name, sent, code in (
            ("refused-1", (), 16),
            ("failed-1", (("authorization", f"Bearer {key}"),), 3),
        ):
            with pytest.raises(grpc.RpcError):
                stub.Embed(pb.EmbedRequest(), metadata=(*sent, parent, ("x-request-id", name)))

            def wanted(span: Any, code: int = code) -> bool:
                noted = {each.key: each.value.int_value for each in span.attributes}
                return noted.get("rpc.grpc.status_code") == code

            (span,) = collector[0].wait_for(wanted)
            assert span.trace_id.hex() == "0af7651916cd43dd8448eb211c80319c"
            assert span.parent_span_id.hex() == "b7ad6b7169203331" and span.status.code == 2
            line = line_of(server, name, EMBED)
            assert line["code"] in ("UNAUTHENTICATED", "INVALID_ARGUMENT") and line["level"] == "info"


def test_an_id_of_the_client_cannot_forge_a_line(observed: tuple[ServerProcess, Credentials, str]) -> None:
    server, _, key = observed
    before = len(lines(server))
    with trimtab.Client(server.url, token=key, metadata={"x-request-id": 'a" , "caller": "root'}) as client:
        client.encoders()
    while len(lines(server)) == before:
        assert server.process.poll() is None
    line = lines(server)[-1]
    assert len(line["request_id"]) == 16 and line["caller"] == "search"


def test_without_a_share_of_its_own_the_server_sends_nothing_of_others(
    collector: tuple[Collector, str], minilm_repository: Path, tmp_path: Path
) -> None:
    """share: of the calls that come without a traceparent. All spans are out when the server has ended."""
    seen = len(collector[0].spans)
    text = f'[tracing]\nendpoint = "{collector[1]}"\nshare = 1.0\n'
    with (
        serve(minilm_repository, tmp_path, text) as server,
        trimtab.Client(server.url, timeout=100) as client,
    ):
        stream = client.embed_stream(["a", "b"])
        assert len(list(stream)) == 2
        assert server.stop() == 0
    names = [span.name for span in collector[0].spans[seen:]]
    assert "trimtab.v1.EncoderService/EmbedStream" in names and f"embed {NAME}" in names


@pytest.mark.parametrize("end", ["\n", "\r", "\r\n", "\x0b", "\x1c", "\x85", "\u2028", "\x1b[2K", "\ud800"])
def test_what_a_caller_sends_ends_no_line_of_the_log(end: str) -> None:
    """Neither in a message nor in an error; not for those either that take more than newlines for one."""
    import logging

    from trimtab_server.observing import logs

    forged = f"a name{end}2026-11-27 12:00:00,000 ERROR trimtab_server: forged"
    error = ValueError(forged)
    record = logging.LogRecord("x", logging.ERROR, "", 0, "%s failed", (forged,), (ValueError, error, None))
    first, *others = logs.TextFormatter().format(record).splitlines()
    assert "forged" in first and others and all(line.startswith("    ") for line in others)
    written = logs.JsonFormatter().format(record)
    assert len(written.splitlines()) == 1 and written.isascii()
    assert json.loads(written)["message"] == f"{forged} failed"
    assert "\x1b" not in first + written and first.isprintable()


def test_lines_for_people_name_the_request() -> None:
    import logging

    from trimtab_server.observing import logs

    record = logging.LogRecord("trimtab_server.x", logging.ERROR, "", 0, "it is %s", ("late",), None)
    assert logs.TextFormatter().format(record).endswith("ERROR trimtab_server.x: it is late")
    logs.call.set({"request_id": "77"})
    assert logs.TextFormatter().format(record).endswith("it is late [request 77]")
    record.exc_info = (ValueError, ValueError("wrong"), None)
    written = json.loads(logs.JsonFormatter().format(record))
    assert written["request_id"] == "77" and "wrong" in written["traceback"]
    assert trace.get_current_span().get_span_context().is_valid is False
