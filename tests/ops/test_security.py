"""Who gets in. One table of all RPCs: without the right credentials none of them reaches an encoder."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import message_factory
from google.protobuf.descriptor import MethodDescriptor
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2
from tritonclient.grpc import service_pb2

import trimtab
from tests.ops.credentials import Credentials
from tests.server.server_process import NAME, ServerProcess, free_port, serve
from trimtab.v1 import encoder_pb2

SERVICES = (
    encoder_pb2.DESCRIPTOR.services_by_name["EncoderService"],
    service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"],
    reflection_pb2.DESCRIPTOR.services_by_name["ServerReflection"],
)
METHODS: list[MethodDescriptor] = [method for service in SERVICES for method in service.methods]
ADMIN = ("RepositoryModelLoad", "RepositoryModelUnload")
# What a caller may ask who may use no encoder here: it says nothing of any.
HARMLESS = {
    "ListEncoders", "ListAdapters", "RepositoryIndex", "ServerLive", "ServerReady", "ServerMetadata",
    "ModelReady", "ServerReflectionInfo", "SystemSharedMemoryStatus", "SystemSharedMemoryUnregister",
    "CudaSharedMemoryStatus", "CudaSharedMemoryUnregister",
}  # fmt: skip


@dataclass
class Guarded:
    """A server that asks for credentials, and has another port for admins."""

    server: ServerProcess
    credentials: Credentials
    admin_url: str
    wrong: dict[str, str | None]
    key: str
    elsewhere: str  # a key of other encoders, an admin's
    admin: str

    def batches(self) -> float:
        """How often a graph was run."""
        return sum(
            value for name, value in self.server.metrics().items() if "trimtab_batch_size_count" in name
        )


@pytest.fixture(scope="module")
def guarded(minilm_repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    folder = tmp_path_factory.mktemp("guarded")
    credentials = Credentials(folder)
    port = free_port()
    keys = (
        credentials.key("search"),
        credentials.key("billing", '["invoices", "other-*"]', admin=True),
        credentials.key("operations", admin=True),
    )
    wrong = credentials.wrong()
    text = f'[server]\nadmin_address = "127.0.0.1:{port}"\n{credentials.config()}'
    with serve(minilm_repository, folder, text, "--verbose") as server:
        yield Guarded(server, credentials, f"127.0.0.1:{port}", wrong, *keys)


def message_for(method: MethodDescriptor) -> Any:
    """A request that asks for the encoder as far as it can, and would be answered if it were let in."""
    request = message_factory.GetMessageClass(method.input_type)()
    inner = request.request if "request" in method.input_type.fields_by_name else request
    fields = inner.DESCRIPTOR.fields_by_name
    for name in ("encoder", "model_name", "name"):
        if name in fields and fields[name].type == fields[name].TYPE_STRING:
            setattr(inner, name, NAME)
    if "texts" in fields:
        inner.texts.append("a secret")
    if "candidates" in fields:
        inner.query = "a secret"
        inner.candidates.add(text="another secret")
    if method.name in ("ModelInfer", "ModelStreamInfer"):
        tensor = inner.inputs.add(name="text", datatype="BYTES", shape=[1])
        tensor.contents.bytes_contents.append(b"a secret")
    return request


def call(url: str, method: MethodDescriptor, authorization: str | None) -> tuple[grpc.StatusCode, bytes]:
    """Call a method with one message: its status, and whatever came back."""
    metadata = () if authorization is None else (("authorization", authorization),)
    path = f"/{method.containing_service.full_name}/{method.name}"
    with grpc.insecure_channel(url) as channel:
        answers = channel.stream_stream(path)(
            iter([message_for(method).SerializeToString()]), metadata=metadata, timeout=100
        )
        received = b""
        try:
            for answer in answers:
                received += answer
        except grpc.RpcError:
            pass
        return answers.code(), received


def test_without_the_right_credentials_no_call_reaches_an_encoder(guarded: Guarded) -> None:
    before = guarded.batches()
    for url in (guarded.server.url, guarded.admin_url):
        for method in METHODS:
            for name, authorization in guarded.wrong.items():
                code, received = call(url, method, authorization)
                served = url == guarded.server.url or method.containing_service is SERVICES[1]
                expected = grpc.StatusCode.UNAUTHENTICATED
                assert (code, received) == (expected, b""), (method.full_name, name, served)
    metrics = guarded.server.metrics()
    assert guarded.batches() == before
    assert metrics['trimtab_refused_calls_total{reason="UNAUTHENTICATED"}'] >= len(METHODS) * len(
        guarded.wrong
    )


def test_a_key_opens_its_own_encoders_alone(guarded: Guarded) -> None:
    """Also where it is an admin's; and what may be asked anyway does not tell that there are others."""
    before = guarded.batches()
    refusals = (grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.UNIMPLEMENTED)
    for method in METHODS:
        for url in (guarded.server.url, guarded.admin_url):
            code, received = call(url, method, f"Bearer {guarded.elsewhere}")
            if code is grpc.StatusCode.OK and method.name in ("EmbedStream", "ModelStreamInfer"):
                assert b"may not use" in received  # a stream answers each of its requests by itself
            elif code is grpc.StatusCode.OK:
                assert method.name in HARMLESS and NAME.encode() not in received, method.full_name
            else:
                assert code in refusals, (method.full_name, code)
    assert guarded.batches() == before


def test_the_right_credentials_open_every_call(guarded: Guarded) -> None:
    before = guarded.batches()
    for authorization in (f"Bearer {guarded.key}", f"bearer {guarded.credentials.token()}"):
        for method in METHODS:
            if method.name not in ADMIN:
                code, _ = call(guarded.server.url, method, authorization)
                assert code in (grpc.StatusCode.OK, grpc.StatusCode.UNIMPLEMENTED), (method.full_name, code)
    assert guarded.batches() > before


def test_encoders_are_loaded_by_admins_at_their_own_port(guarded: Guarded) -> None:
    load, unload = (SERVICES[1].methods_by_name[name] for name in ADMIN)
    denied = grpc.StatusCode.PERMISSION_DENIED
    token = guarded.credentials.token(trimtab_admin=True)
    for method in (load, unload):
        assert call(guarded.server.url, method, f"Bearer {guarded.admin}")[0] is denied
        for who in (guarded.key, guarded.elsewhere, guarded.credentials.token()):
            assert call(guarded.admin_url, method, f"Bearer {who}")[0] is denied
    for who in (guarded.admin, token):
        assert call(guarded.admin_url, load, f"Bearer {who}")[0] is grpc.StatusCode.OK
    embed = SERVICES[1].methods_by_name["ModelInfer"]
    assert call(guarded.admin_url, embed, f"Bearer {guarded.admin}")[0] is denied


def test_health_needs_no_credentials(guarded: Guarded) -> None:
    with grpc.insecure_channel(guarded.server.url) as channel:
        answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=60)
    assert answer.status == health_pb2.HealthCheckResponse.SERVING


def test_keys_change_without_a_restart_and_stand_in_no_log(guarded: Guarded) -> None:
    with trimtab.Client(guarded.server.url, token=guarded.key) as client:
        assert client.embed(["a secret text"]).shape == (1, 384)
        new = guarded.credentials.key("new")
        with trimtab.Client(guarded.server.url, token=new) as other:
            while True:
                try:
                    other.embed(["a secret text"])
                    break
                except trimtab.Unauthenticated:
                    continue
        guarded.credentials.keys_file.write_text("[[key]]\nbroken")
        while not any("stays as it was" in line for line in guarded.server.log):
            assert client.embed(["a secret text"]).shape == (1, 384)
    logged = "".join(guarded.server.log)
    sent = [value.split(" ")[-1] for value in guarded.wrong.values() if value and len(value) > 20]
    for secret in [guarded.key, guarded.admin, new, "a secret text", *sent]:
        assert secret not in logged and secret not in guarded.server.scrape()


def test_a_caller_with_a_key_is_its_own_tenant() -> None:
    from trimtab_server.callers.access import ANYONE, Caller
    from trimtab_server.fronts.grpc.senders import Tenants

    class Context:
        def peer(self) -> str:
            return "ipv4:127.0.0.1:5"

        def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
            return (("x-tenant", "somebody else"),)

    tenants: Any = Tenants("X-Tenant")
    assert tenants.of(ANYONE, Context()) == ("somebody else", "ipv4:127.0.0.1:5")
    for name in ("search", ""):  # who has credentials chooses nothing
        assert tenants.of(Caller(name, ("*",)), Context()).tenant == name


def test_a_link_out_of_the_repository_is_refused(minilm_repository: Path, tmp_path: Path) -> None:
    """An encoder, or a version, that is a link to elsewhere; and no name that a call sends becomes a path."""
    from tests.server.fronts.grpc.test_lifecycle import copy_bundle

    repository, outside = tmp_path / "models", tmp_path / "outside"
    copy_bundle(minilm_repository, repository)
    copy_bundle(minilm_repository, outside, "escaped")
    copy_bundle(minilm_repository, outside, "linked", 2)
    (repository / "escaped").symlink_to(outside / "escaped")
    (repository / "linked").mkdir()
    (repository / "linked" / "2").symlink_to(outside / "linked" / "2")
    (repository / "inside").symlink_to(repository / NAME)  # not its own name, but no escape either
    with serve(repository, tmp_path) as server:
        with trimtab.Client(server.url, timeout=100) as client:
            assert [encoder.name for encoder in client.encoders()] == [NAME]
            for name in ("escaped", "linked"):
                with pytest.raises(trimtab.FailedPrecondition, match="leads out of the repository"):
                    client.embed(["a"], encoder=name)
        with grpc.insecure_channel(server.url) as channel:
            from tritonclient.grpc import service_pb2_grpc

            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            absolute = str(outside / "escaped")
            for name in (f"../models/{NAME}", "../outside/escaped", absolute, ".", "..", "a\0b", ""):
                with pytest.raises(grpc.RpcError) as caught:
                    stub.RepositoryModelLoad(service_pb2.RepositoryModelLoadRequest(model_name=name))
                assert caught.value.code() in (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.INVALID_ARGUMENT)


def test_adapters_are_for_those_who_may_use_their_encoders(minilm_repository: Path, tmp_path: Path) -> None:
    """Those of others lead nowhere and are not named; nor is one that is a link out of the repository."""
    from tests.server import spaces_made as spaces

    repository, outside = tmp_path / "models", tmp_path / "outside"
    repository.mkdir()
    made = spaces.make(minilm_repository, repository)
    folder = repository / NAME / "adapters"
    (folder / "to-gone").rename(outside)
    (folder / "to-gone").symlink_to(outside)
    credentials = Credentials(tmp_path)
    everything, one = credentials.key("everything"), credentials.key("one", f'["{NAME}"]')
    with serve(repository, tmp_path, credentials.config()) as server:
        with trimtab.Client(server.url, token=everything) as client:
            names = {adapter.encoder for adapter in client.adapters()}
            assert names == {NAME, "turned"}
            assert client.embed(["a"], encoder=NAME, space=made.v1.manifest.space).shape == (1, 128)
            with pytest.raises(trimtab.NotFound):
                client.embed(["a"], encoder=NAME, space=spaces.GONE)
        with trimtab.Client(server.url, token=one) as client:
            assert {adapter.encoder for adapter in client.adapters()} == {NAME}
            assert client.embed(["a"], space=made.v2.manifest.space).shape == (1, 256)
            with pytest.raises(trimtab.TrimtabError) as caught:
                client.embed(["a"], space=made.v1.manifest.space)
            assert "older" not in str(caught.value) and "turned/" not in str(caught.value)
