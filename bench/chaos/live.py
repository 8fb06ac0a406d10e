"""A server in the fuzzer's process: called with arbitrary bytes, and with messages that the fuzzer fills."""

import asyncio
import math
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HANG_SECONDS = 20.0
NAMES = (
    "known", "text", "BYTES", "embeddings", "token_count", "dimensions", "truncate", "input_type", "timeout",
    "priority", "space", "group", "embedding_type", "end", "none", "query", "float16", "int8", "ubinary",
    "binary_data_size", "triton_enable_empty_final_response", "1",
)  # fmt: skip


class Live:
    """A server in this process, called over gRPC, so that the fuzzer sees which of its lines ran."""

    def __init__(self, folder: Path) -> None:
        import grpc
        from tritonclient.grpc import service_pb2

        from bench.chaos import known, replicas
        from trimtab.v1 import encoder_pb2
        from trimtab_server.app import App
        from trimtab_server.config import Config, EngineSettings, LimitSettings, ServerSettings
        from trimtab_server.fronts.grpc import pace

        pace.BURST_SECONDS = pace.REFUSED_BURST_SECONDS = math.inf  # wrong input may arrive at any rate
        (folder / "models").mkdir()
        replicas.copy_of(known.bundle(), folder / "models")
        ports = ServerSettings(
            grpc_address="127.0.0.1:0", metrics_address="127.0.0.1:0", tenant_header="tenant"
        )
        config = Config(
            server=ports,
            engine=EngineSettings(costs=""),
            limits=LimitSettings(max_texts=64),
            devices=("cpu",),
        )
        self._services = {
            "trimtab.v1.EncoderService": encoder_pb2.DESCRIPTOR.services_by_name["EncoderService"],
            "inference.GRPCInferenceService": service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"],
        }
        self._inputs = {
            f"/{service}/{method.name}": (method.input_type, method.client_streaming)
            for service, described in self._services.items()
            for method in described.methods
        }
        self.methods = sorted(self._inputs)
        self._known = known
        started = threading.Event()

        async def serve() -> None:
            app = App(config, folder / "models")
            await app.start()
            self.port = app.grpc_port
            started.set()
            await asyncio.Event().wait()

        threading.Thread(target=asyncio.run, args=(serve(),), daemon=True).start()
        if not started.wait(HANG_SECONDS):
            raise RuntimeError("the server did not start")
        self._channel = grpc.insecure_channel(
            f"127.0.0.1:{self.port}", [("grpc.enable_retries", 0), ("grpc.max_receive_message_length", -1)]
        )

    def call(self, name: str, content: bytes) -> Iterator[tuple[int, str]]:
        """The outcome: codes and messages, including those within a stream's answers."""
        import grpc

        from trimtab.v1 import encoder_pb2 as pb

        _, streaming = self._inputs[name]
        if "RepositoryModel" in name and self._known.NAME.encode() in content:
            return  # reloading it for every input takes too long, and without it nothing is served
        try:
            if not streaming:
                once: Any = self._channel.unary_unary(name)
                once(content, timeout=HANG_SECONDS)
                return
            stream: Any = self._channel.stream_stream(name)
            for answer in stream(iter([content] * 2), timeout=HANG_SECONDS):
                if name.endswith("/EmbedStream"):
                    response = pb.EmbedStreamResponse.FromString(answer)
                    yield response.error.code, response.error.message
                elif b"internal error" in answer or b"the server's log" in answer:
                    yield grpc.StatusCode.INTERNAL.value[0], answer.decode("utf-8", "replace")
        except grpc.RpcError as error:
            yield error.code().value[0], error.details() or ""

    def examples(self, name: str) -> list[bytes]:
        """Valid messages."""
        from tritonclient.grpc import service_pb2

        from trimtab.v1 import encoder_pb2 as pb

        text, encoder = self._known.text(1), self._known.NAME
        request = pb.EmbedRequest(
            texts=[text, ""],
            encoder=encoder,
            dimensions=8,
            priority=pb.PRIORITY_BULK,
            truncate=pb.TRUNCATE_START,
        )
        infer = service_pb2.ModelInferRequest(model_name=encoder, id="1")
        infer.inputs.add(name="text", datatype="BYTES", shape=[1, 1])
        infer.raw_input_contents.append(struct.pack("<I", 2) + b"w1")
        infer.outputs.add(name="embeddings")
        infer.parameters["dimensions"].int64_param = 8
        match name.rpartition("/")[2]:
            case "Embed":
                made: list[Any] = [request]
            case "EmbedStream":
                made = [pb.EmbedStreamRequest(id=1, request=request)]
            case "Rescore":
                candidates = [pb.Candidate(text=text), pb.Candidate(id="1")]

                made = [pb.RescoreRequest(query=text, encoder=encoder, candidates=candidates)]
            case "ModelInfer" | "ModelStreamInfer":
                made = [infer]
            case _:
                made = []
        return [each.SerializeToString() for each in made]

    def built(self, name: str, provider: Any) -> bytes:
        """A message of the method's type whose fields the provider fills."""
        from google.protobuf import message_factory

        described, _ = self._inputs[name]
        message = message_factory.GetMessageClass(described)()
        self._fill(message, provider, 4)
        content: bytes = message.SerializeToString()
        return content

    def _fill(self, message: Any, provider: Any, depth: int) -> None:
        for field in message.DESCRIPTOR.fields:
            if not provider.remaining_bytes() or provider.ConsumeBool():
                continue
            repeated = field.is_repeated
            if field.message_type is not None and field.message_type.GetOptions().map_entry:
                key = provider.PickValueInList([*NAMES, provider.ConsumeUnicodeNoSurrogates(8)])
                value = getattr(message, field.name)[key]
                if hasattr(value, "DESCRIPTOR") and depth:
                    self._fill(value, provider, depth - 1)
            elif field.message_type is not None:
                if depth:
                    target = getattr(message, field.name)
                    self._fill(target.add() if repeated else target, provider, depth - 1)
            else:
                values = [self._value(field, provider) for _ in range(provider.ConsumeIntInRange(1, 3))]
                if repeated:
                    getattr(message, field.name).extend(values)
                else:
                    setattr(message, field.name, values[0])

    def _value(self, field: Any, provider: Any) -> Any:
        kind = field.cpp_type
        if kind == field.CPPTYPE_STRING:
            if field.type == field.TYPE_BYTES:
                return provider.ConsumeBytes(64)
            name = provider.PickValueInList([*NAMES, ""])
            return name if provider.ConsumeBool() else provider.ConsumeUnicodeNoSurrogates(40)
        if kind == field.CPPTYPE_BOOL:
            return provider.ConsumeBool()
        if kind in (field.CPPTYPE_FLOAT, field.CPPTYPE_DOUBLE):
            return provider.ConsumeFloat() if kind == field.CPPTYPE_DOUBLE else 0.5
        if kind == field.CPPTYPE_ENUM:
            return provider.ConsumeIntInRange(0, 9)
        bits = 32 if kind in (field.CPPTYPE_INT32, field.CPPTYPE_UINT32) else 64
        signed = kind in (field.CPPTYPE_INT32, field.CPPTYPE_INT64)
        small = provider.ConsumeIntInRange(0, 70)
        if provider.ConsumeBool():
            return small
        low, high = (-(1 << bits - 1), (1 << bits - 1) - 1) if signed else (0, (1 << bits) - 1)
        return provider.ConsumeIntInRange(low, high)
