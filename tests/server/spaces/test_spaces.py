"""Requests name the space they want: by every client, natively or by adapters, or refused with a cure."""

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
import tritonclient.grpc

import trimtab
from tests.server import spaces_made as made
from tests.server.server_process import NAME, ServerProcess, serve
from tests.server.spaces_made import Spaces, unit
from tests.texts import TEXTS
from trimtab.v1 import encoder_pb2 as pb
from trimtab.v1 import encoder_pb2_grpc

TOLERANCE = 1e-5
SOME = TEXTS[:12]


@pytest.fixture(scope="module")
def spaces(minilm_repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Spaces:
    return made.make(minilm_repository, tmp_path_factory.mktemp("spaces"))


@pytest.fixture(scope="module")
def running(spaces: Spaces, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with serve(spaces.repository, tmp_path_factory.mktemp("spaces-server")) as running:
        yield running


@pytest.fixture
def client(running: ServerProcess) -> Iterator[trimtab.Client]:
    with trimtab.Client(running.url, timeout=100) as client:
        yield client


def test_an_adapted_vector_is_the_other_encoders_own(client: trimtab.Client, spaces: Spaces) -> None:
    for other, names in (
        (spaces.v2, (f"{NAME}/to-turned",)),
        (spaces.v1, (f"{NAME}/to-turned", "turned/to-older")),  # hops compose
    ):
        adapted = client.embed_detailed(SOME, encoder=NAME, space=other.manifest.space)
        own = client.embed_detailed(SOME, encoder=other.manifest.name)
        assert adapted.adapters == names and own.adapters == ()
        assert adapted.space == own.space == other.manifest.space
        assert (adapted.encoder, own.encoder) == (NAME, other.manifest.name)
        np.testing.assert_allclose(adapted.vectors, own.vectors, atol=TOLERANCE)
        assert np.array_equal(adapted.token_counts, own.token_counts)
    native = client.embed_detailed(SOME, encoder=NAME, space=spaces.space)
    assert native.adapters == () and native.space == spaces.space
    np.testing.assert_allclose(native.vectors, client.embed(SOME, encoder=NAME), atol=TOLERANCE)


def test_several_spaces_from_one_pass_equal_each_alone(
    client: trimtab.Client, running: ServerProcess, spaces: Spaces
) -> None:
    wanted = [spaces.v1.manifest.space, spaces.space, spaces.v2.manifest.space]
    before = running.metrics()
    together = client.embed_spaces(SOME, wanted, encoder=NAME, role="query")
    after = running.metrics()
    ran = f'trimtab_batch_size_sum{{device="cpu",encoder="{NAME}",version="1"}}'
    assert after[ran] - before.get(ran, 0) <= len(SOME), "each text ran once, or was shared"
    passed = f'trimtab_adapted_texts_total{{adapter="{NAME}/to-turned",encoder="{NAME}",version="1"}}'
    assert after[passed] - before.get(passed, 0) == 2 * len(SOME), "on the way to v2, and to v1"
    assert list(together) == wanted
    for space in wanted:
        alone = client.embed_detailed(SOME, encoder=NAME, space=space)
        np.testing.assert_allclose(together[space].vectors, alone.vectors, atol=TOLERANCE)
        assert together[space].adapters == alone.adapters and together[space].space == space


def test_a_row_of_a_batch_is_the_row_alone(client: trimtab.Client, spaces: Spaces) -> None:
    batch = client.embed(TEXTS, encoder=NAME, space=spaces.v1.manifest.space)
    for text, row in zip(TEXTS, batch, strict=True):
        alone = client.embed([text], encoder=NAME, space=spaces.v1.manifest.space)
        np.testing.assert_allclose(alone[0], row, atol=TOLERANCE)


async def test_many_at_once_get_their_own_rows(running: ServerProcess, spaces: Spaces) -> None:
    wanted = [spaces.space, spaces.v2.manifest.space, spaces.v1.manifest.space]
    async with trimtab.AsyncClient(running.url, timeout=100) as client:
        expected = {
            space: await client.embed(TEXTS, encoder=NAME, space=space, timeout=240) for space in wanted
        }
        calls = [(n % len(TEXTS), wanted[n % 3]) for n in range(150)]
        rows = await asyncio.gather(
            *(client.embed([TEXTS[n]], encoder=NAME, space=space, timeout=240) for n, space in calls)
        )
    for (n, space), row in zip(calls, rows, strict=True):
        np.testing.assert_allclose(row[0], expected[space][n], atol=TOLERANCE)


def test_dtypes_and_dimensions_are_those_of_the_space_reached(client: trimtab.Client, spaces: Spaces) -> None:
    for options in (
        {"dtype": "int8"},
        {"dtype": "float16"},
        {"dtype": "ubinary"},
        {"dimensions": 64},
        {"dimensions": 64, "dtype": "int8"},
    ):
        there = client.embed_detailed(SOME, encoder=NAME, space=spaces.v2.manifest.space, **options)
        own = client.embed_detailed(SOME, encoder="turned", **options)
        assert there.scale == own.scale and there.vectors.shape == own.vectors.shape
        if options.get("dtype") == "ubinary":
            assert np.unpackbits(there.vectors ^ own.vectors).mean() < 1e-3, "but for a sign at zero"
        else:
            step = 1 if options.get("dtype") == "int8" else 1e-3
            np.testing.assert_allclose(there.vectors.astype(float), own.vectors.astype(float), atol=step)
    with pytest.raises(trimtab.InvalidArgument, match=r"dimensions is 300, space \w+ has 256"):
        client.embed(SOME, encoder=NAME, space=spaces.v2.manifest.space, dimensions=300)


def test_of_an_encoder_that_is_gone_only_whole_floats_are_known(client: trimtab.Client) -> None:
    assert client.embed(SOME, encoder=NAME, space=made.GONE, dtype="float16").shape == (len(SOME), 384)
    for options, match in (({"dtype": "int8"}, "range of int8"), ({"dimensions": 8}, "cannot be cut")):
        with pytest.raises(trimtab.FailedPrecondition, match=f"{match}.*gone version 7"):
            client.embed(SOME, encoder=NAME, space=made.GONE, **options)


def test_groups_shift_as_their_adapter_knows_them(client: trimtab.Client, spaces: Spaces) -> None:
    own = client.embed(SOME, encoder=NAME)
    for group, number in (("", 0), ("de", 1), ("fr", 2), ("xx", 0)):
        got = client.embed(SOME, encoder=NAME, space=made.GROUPED, group=group)
        np.testing.assert_allclose(got, unit(own + spaces.shifts[number]), atol=TOLERANCE)
    plain = client.embed(SOME, encoder=NAME, space=spaces.v2.manifest.space, group="de")
    np.testing.assert_allclose(plain, client.embed(SOME, encoder="turned"), atol=TOLERANCE)


@pytest.mark.parametrize(
    ("space", "error", "parts"),
    [
        (made.REFUSED, trimtab.FailedPrecondition, ["'re-index'", ".31", "too few", "embed the index again"]),
        (made.STAYING, trimtab.FailedPrecondition, ["'stay'", ".31", "stay with gone version 7"]),
        (made.TAMPERED, trimtab.FailedPrecondition, ["tampered", "SHA-256"]),
        ("nowhere", trimtab.NotFound, ["'nowhere'", made.GONE, made.GROUPED, "trimtab adapter fit"]),
        (
            made.OTHER_FINGERPRINT[::-1],
            trimtab.FailedPrecondition,
            ["misfit", "it was fitted for space cccc"],
        ),
    ],
)
def test_what_cannot_be_had_is_refused_with_the_cure(
    client: trimtab.Client, space: str, error: type[Exception], parts: list[str]
) -> None:
    with pytest.raises(error) as caught:
        client.embed(SOME, encoder=NAME, space=space)
    for part in parts:
        assert part in str(caught.value)
    with pytest.raises(error):
        client.embed_spaces(SOME, [made.GONE, space], encoder=NAME)
    assert client.embed(["still here"], encoder=NAME).shape == (1, 384)


def test_a_space_that_another_encoder_has_is_said_to_be_its(client: trimtab.Client, spaces: Spaces) -> None:
    with pytest.raises(trimtab.FailedPrecondition, match=f"is that of {NAME} version 1.*ask {NAME}"):
        client.embed(SOME, encoder="older", space=spaces.space)
    with pytest.raises(trimtab.FailedPrecondition, match=f"{NAME}/to-gone leads there from.*ask that one"):
        client.embed(SOME, encoder="older", space=made.GONE)


def test_spaces_that_make_no_sense_are_refused(running: ServerProcess, client: trimtab.Client) -> None:
    with grpc.insecure_channel(running.url) as channel:
        stub = encoder_pb2_grpc.EncoderServiceStub(channel)
        for wanted in ([made.GONE, made.GONE], [f"{n:016x}" for n in range(9)]):
            with pytest.raises(grpc.RpcError) as caught:
                stub.Embed(pb.EmbedRequest(encoder=NAME, texts=["a"], spaces=wanted))
            assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
            assert "8 at most" in caught.value.details()
        with pytest.raises(grpc.RpcError) as caught:
            stub.Embed(pb.EmbedRequest(encoder=NAME, texts=["a"], spaces=["x" * 1000]))
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND


def test_adapters_are_described(client: trimtab.Client, spaces: Spaces) -> None:
    listed = {adapter.name: adapter for adapter in client.adapters()}
    assert sorted(listed) == [
        "grouped", "misfit", "refused", "staying", "tampered", "to-gone", "to-older", "to-turned"
    ]  # fmt: skip
    turned = listed["to-turned"]
    assert turned.encoder == NAME and turned.problem == "" and not turned.provisional
    assert (turned.source.space, turned.target.space) == (spaces.space, spaces.v2.manifest.space)
    assert (turned.verdict, turned.reads, turned.rung) == ("bridge", "embeddings", "ridge")
    assert turned.calibrator is not None
    np.testing.assert_allclose(turned.calibrator([0.0, 0.5, 1.0, 1.5]), [0.1, 0.5, 0.9, 1.3])
    assert listed["to-gone"].provisional and listed["grouped"].groups == ("de", "fr")
    assert "SHA-256" in listed["tampered"].problem
    assert "fitted for space" in listed["misfit"].problem and spaces.space in listed["misfit"].problem
    assert "'stay'" in listed["staying"].problem
    assert [adapter.name for adapter in client.adapters("turned")] == ["to-older"]


def test_tritonclient_names_a_space(running: ServerProcess, client: trimtab.Client, spaces: Spaces) -> None:
    with tritonclient.grpc.InferenceServerClient(running.url) as triton:
        tensor = tritonclient.grpc.InferInput("text", [len(SOME), 1], "BYTES")
        tensor.set_data_from_numpy(np.array([[text.encode()] for text in SOME], object))
        parameters = {"space": spaces.v1.manifest.space}
        result = triton.infer(NAME, [tensor], parameters=parameters)
        own = client.embed(SOME, encoder="older")
        np.testing.assert_allclose(result.as_numpy("embeddings"), own, atol=TOLERANCE)
        sent = result.get_response().parameters
        assert sent["space"].string_param == spaces.v1.manifest.space
        assert sent["adapters"].string_param == f"{NAME}/to-turned,turned/to-older"
        grouped = triton.infer(NAME, [tensor], parameters={"space": made.GROUPED, "group": "fr"})
        expected = client.embed(SOME, encoder=NAME, space=made.GROUPED, group="fr")
        np.testing.assert_allclose(grouped.as_numpy("embeddings"), expected, atol=TOLERANCE)
        assert "adapters" not in triton.infer(NAME, [tensor]).get_response().parameters
        for wrong, status in (({"space": made.REFUSED}, "FAILED_PRECONDITION"), ({"space": 3}, "INVALID")):
            with pytest.raises(tritonclient.grpc.InferenceServerException, match="space") as caught:
                triton.infer(NAME, [tensor], parameters=wrong)
            assert status in str(caught.value.status())


async def test_streams_name_a_space(running: ServerProcess, spaces: Spaces) -> None:
    space = spaces.v2.manifest.space
    with trimtab.Client(running.url, timeout=100) as client:
        own = client.embed(TEXTS, encoder="turned", timeout=240)
        with client.embed_stream(TEXTS, encoder=NAME, space=space, timeout=240) as stream:
            np.testing.assert_allclose(np.stack(list(stream)), own, atol=TOLERANCE)
            assert stream.adapters == (f"{NAME}/to-turned",)
    async with trimtab.AsyncClient(running.url, timeout=100) as client:
        async with client.embed_stream(TEXTS, encoder=NAME, space=space, timeout=240) as stream:
            np.testing.assert_allclose(np.stack([row async for row in stream]), own, atol=TOLERANCE)
            assert stream.adapters == (f"{NAME}/to-turned",)
        both = await client.embed_spaces(TEXTS, [space, spaces.space], encoder=NAME, timeout=240)
        np.testing.assert_allclose(both[space].vectors, own, atol=TOLERANCE)
        assert {adapter.name for adapter in await client.adapters("turned")} == {"to-older"}


def test_the_command_names_a_space(running: ServerProcess, spaces: Spaces, tmp_path: Path) -> None:
    source, out = tmp_path / "texts.txt", tmp_path / "vectors.npy"
    texts = [text for text in TEXTS if text and text.isprintable()]
    source.write_text("".join(f"{text}\n" for text in texts))
    command = [sys.executable, "-m", "trimtab.cli", "embed", str(source), "--url", running.url]
    command += ["--encoder", NAME, "--space", spaces.v1.manifest.space, "--output", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert spaces.v1.manifest.space in done.stderr
    with trimtab.Client(running.url, timeout=100) as client:
        np.testing.assert_allclose(np.load(out), client.embed(texts, encoder="older"), atol=TOLERANCE)
    described = json.loads((tmp_path / "vectors.npy.json").read_text())["vectors"]
    assert described["space"] == spaces.v1.manifest.space and described["columns"] == 128
    assert described["adapters"] == [f"{NAME}/to-turned", "turned/to-older"]
