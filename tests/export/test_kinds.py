"""A kind of input and a kind of output that a package brings: exported, served over gRPC, remembered, found
by halves when one item fails, and run again when their device's process dies."""

import asyncio
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import grpc
import msgspec
import numpy as np
import onnxruntime as ort
import pytest
import tritonclient.grpc as triton
import tritonclient.utils

import trimtab
from tests import toys
from tests.server.engine.test_isolation import child_of
from tests.server.server_process import ServerProcess, serve
from tests.toys.counts_exporter import VOCABULARY
from tests.toys.letters_exporter import SHIFT
from trimtab.artifacts import bundle as bundles
from trimtab.artifacts.bundle import Bundle
from trimtab.cli import main
from trimtab.errors import BundleError, NotFound
from trimtab.v1 import encoder_pb2 as pb
from trimtab.v1 import encoder_pb2_grpc
from trimtab_export.export import export
from trimtab_export.source import Settings

ROOT = Path(__file__).parents[2]
CONFIG = """
engine.isolation = "process"
sharing.cache_bytes = 1000000
limits.max_text_bytes = 65536
"""
WORDS = [b"some letters", b"x", b"another word", b"and one that is longer than the others are", b"yz"]
BAD = b"\xff"  # a letter without a token, on which the graph fails
CACHED = 'trimtab_shared_texts_total{encoder="toy",how="cache",version="1"}'
RESTARTS = 'trimtab_device_restarts_total{device="cpu"}'


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The toys are there for this process and for those that it starts."""
    folder = toys.installed(tmp_path_factory.mktemp("toys"))
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        patch.setenv("PYTHONPATH", os.pathsep.join([str(folder), str(ROOT)]))
        yield


@pytest.fixture(scope="module")
def repository(installed: None, st_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`toy` reads letters, `words` text; both give counts beside their vectors, `counter` before them."""
    folder = tmp_path_factory.mktemp("repository")
    export(Settings(str(st_bert), reads="letters", also=("counts",)), "toy", folder)
    words = export(Settings(str(st_bert), also=("counts",)), "words", folder)
    other = folder / "counter" / "1"
    shutil.copytree(words.path, other)
    tower = words.manifest.towers[0]
    variants = (msgspec.structs.replace(tower.variants[0], states=None),)
    tower = msgspec.structs.replace(tower, outputs=tower.outputs[::-1], variants=variants)
    manifest = msgspec.structs.replace(
        words.manifest, name="counter", outputs=words.manifest.outputs[::-1], towers=(tower,)
    )
    (other / bundles.MANIFEST).write_bytes(msgspec.json.encode(manifest))
    return folder


@pytest.fixture(scope="module")
def bundle(repository: Path) -> Bundle:
    return bundles.read(repository / "toy" / "1")


@pytest.fixture(scope="module")
def server(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with serve(repository, tmp_path_factory.mktemp("served"), CONFIG) as running:
        yield running


@pytest.fixture
def stub(server: ServerProcess) -> Iterator[encoder_pb2_grpc.EncoderServiceStub]:
    with grpc.insecure_channel(server.url) as channel:
        yield encoder_pb2_grpc.EncoderServiceStub(channel)


def letters(words: Sequence[bytes], **fields: object) -> pb.EmbedRequest:
    return pb.EmbedRequest(encoder="toy", inputs=[pb.Input(image=word) for word in words], **fields)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def expected(bundle: Bundle) -> dict[bytes, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """What the graph gives of each word alone, by ONNX Runtime: the vector, places and numbers."""
    graph = bundle.file(bundle.manifest.variants[0].files[0])
    session = ort.InferenceSession(str(graph), providers=["CPUExecutionProvider"])
    found = {}
    for word in WORDS:
        ids = np.frombuffer(word, np.uint8).astype(np.int64)[None] + SHIFT
        feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": 0 * ids}
        names = ["embeddings", "counts.places", "counts.numbers"]
        found[word] = tuple(each for each in session.run(names, feeds))
    return found


def check(response: pb.EmbedResponse, words: Sequence[bytes], expected: dict) -> None:  # type: ignore[type-arg]
    """Each item of both outputs is its own word's."""
    dense, counts = response.outputs
    assert (dense.name, dense.kind, counts.name, counts.kind) == ("dense", "dense", "counts", "counts")
    vectors = np.frombuffer(dense.dense.data, "<f4").reshape(len(words), -1)
    offsets = np.frombuffer(counts.sparse.offsets, "<i4")
    places, numbers = np.frombuffer(counts.sparse.indices, "<i4"), np.frombuffer(counts.sparse.values, "<f4")
    assert counts.sparse.dimensions == VOCABULARY and not response.embeddings
    assert list(response.token_counts) == [len(word) for word in words]
    for row, word in enumerate(words):
        vector, where, what = expected[word]
        np.testing.assert_allclose(vectors[row], vector[0], atol=1e-5)
        np.testing.assert_array_equal(places[offsets[row] : offsets[row + 1]], where)
        np.testing.assert_allclose(numbers[offsets[row] : offsets[row + 1]], what, atol=1e-5)


BOTH = ("dense", "counts")


def test_what_the_exporter_writes(bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = bundle.manifest
    assert (manifest.input.kind, manifest.input.processor, manifest.input.settings) == (
        "letters", None, {"shift": SHIFT},
    )  # fmt: skip
    assert [output.kind for output in manifest.outputs] == ["dense", "counts"]
    assert len({output.space for output in manifest.outputs}) == 2
    assert manifest.variants[0].unpadded
    assert manifest.variants[0].tensors["counts.numbers"].offsets == "counts.offsets"
    assert "--reads letters --also counts" in manifest.provenance.recipe
    assert main(["info", str(bundle.path)]) == 0
    said = capsys.readouterr().out
    assert "letters (letters), 130 letters of one" in said
    assert "counts (counts), 1000 dimensions, dot, not normalised" in said


def test_spaces_of_other_inputs_are_others(repository: Path, bundle: Bundle) -> None:
    words = bundles.read(repository / "words" / "1").manifest
    assert not {each.space for each in words.outputs} & {each.space for each in bundle.manifest.outputs}
    assert words.output.space_parts == bundle.manifest.output.space_parts


def test_both_outputs_of_one_pass(stub: encoder_pb2_grpc.EncoderServiceStub, expected: dict) -> None:  # type: ignore[type-arg]
    check(stub.Embed(letters(WORDS, outputs=BOTH)), WORDS, expected)
    (counts,) = stub.Embed(letters(WORDS, outputs=["counts"])).outputs
    assert counts.space != stub.Embed(letters(WORDS)).embeddings[0].space, (
        "the short form is the first output"
    )
    asked = [pb.EmbedStreamRequest(id=7, request=letters(WORDS, outputs=BOTH))]
    (answer,) = stub.EmbedStream(iter(asked))
    check(answer.response, WORDS, expected)


def test_it_is_described(
    server: ServerProcess, stub: encoder_pb2_grpc.EncoderServiceStub, bundle: Bundle
) -> None:
    described = stub.GetEncoder(pb.GetEncoderRequest(encoder="toy"))
    (given,) = described.inputs
    assert (given.kind, given.form, given.max_units) == ("letters", "image", 130)
    assert [(each.name, each.form, each.space) for each in described.outputs] == [
        ("dense", "dense", bundle.manifest.outputs[0].space),
        ("counts", "sparse", bundle.manifest.outputs[1].space),
    ]
    with trimtab.Client(server.url) as client:
        dense, counts = client.encoder("toy").outputs
    assert (dense.name, dense.form, dense.similarity) == ("dense", "dense", "cosine")
    assert counts == trimtab.EncoderOutput(
        name="counts",
        kind="counts",
        form="sparse",
        space=bundle.manifest.outputs[1].space,
        dimensions=VOCABULARY,
        similarity="dot",
        normalized=False,
    )


def test_what_was_computed_is_remembered(
    server: ServerProcess,
    stub: encoder_pb2_grpc.EncoderServiceStub,
    expected: dict,  # type: ignore[type-arg]
) -> None:
    stub.Embed(letters(WORDS, outputs=BOTH))
    before = server.metrics()[CACHED]
    check(stub.Embed(letters(WORDS[::-1], outputs=BOTH)), WORDS[::-1], expected)
    assert server.metrics()[CACHED] == before + len(WORDS)


async def test_an_item_that_fails_fails_alone(server: ServerProcess, expected: dict) -> None:  # type: ignore[type-arg]
    async with grpc.aio.insecure_channel(server.url) as channel:
        stub = encoder_pb2_grpc.EncoderServiceStub(channel)

        async def ask(number: int) -> None:
            word = WORDS[number % len(WORDS)] if number % 5 else BAD + bytes([number])
            if number % 5:
                check(await stub.Embed(letters([word, word], outputs=BOTH)), [word, word], expected)
                return
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stub.Embed(letters([WORDS[0], word], outputs=BOTH))
            assert caught.value.code() == grpc.StatusCode.INTERNAL
            assert "the encoder failed on inputs[1]" in str(caught.value.details())

        await asyncio.gather(*map(ask, range(30)))


def test_what_ran_when_the_process_died_is_run_again(
    server: ServerProcess,
    stub: encoder_pb2_grpc.EncoderServiceStub,
    expected: dict,  # type: ignore[type-arg]
) -> None:
    before = server.metrics().get(RESTARTS, 0.0)
    os.kill(child_of(server.process.pid), signal.SIGKILL)
    for number in range(20):  # none of them is remembered
        word = bytes([97 + number]) + b" after its death"
        assert len(stub.Embed(letters([word, WORDS[0]], outputs=BOTH)).token_counts) == 2
    check(stub.Embed(letters(WORDS, outputs=BOTH)), WORDS, expected)
    assert server.metrics()[RESTARTS] == before + 1


def test_candidates_are_scored_by_whatever_output_is_named(
    stub: encoder_pb2_grpc.EncoderServiceStub,
) -> None:
    texts = ["some words", "other words", "some words of this text"]
    counts = stub.Embed(
        pb.EmbedRequest(encoder="words", texts=["words", *texts], outputs=["counts"])
    ).outputs[0]
    offsets = np.frombuffer(counts.sparse.offsets, "<i4")
    long = np.zeros((4, VOCABULARY), np.float32)
    rows = np.repeat(np.arange(4), np.diff(offsets))
    places, numbers = np.frombuffer(counts.sparse.indices, "<i4"), np.frombuffer(counts.sparse.values, "<f4")
    np.add.at(long, (rows, places), numbers)
    request = pb.RescoreRequest(
        encoder="words", query="words", output="counts",
        candidates=[pb.Candidate(id=text, text=text) for text in texts],
    )  # fmt: skip
    for _ in range(2):
        answer = stub.Rescore(request)
        np.testing.assert_allclose(np.frombuffer(answer.scores, "<f4"), long[1:] @ long[0], atol=1e-4)
        assert (answer.space, answer.similarity) == (counts.space, "dot")
        for candidate in request.candidates:  # the second time, all are remembered, as counts
            candidate.ClearField("text")
    request.output = ""
    with_vectors = stub.Rescore(request)
    assert list(with_vectors.missing) == [0, 1, 2], "what is remembered of one output is none of another's"


def refused(call: object, request: object, code: grpc.StatusCode, message: str) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        call(request)  # type: ignore[operator]
    assert caught.value.code() == code, caught.value.details()
    assert message in caught.value.details()


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (letters(WORDS, outputs=["sparse"]), "encoder toy has no output 'sparse'; it has dense, counts"),
        (letters(WORDS, outputs=["counts", "counts"]), "outputs names one twice"),
        (letters(WORDS, outputs=["counts"], dimensions=3), "counts have no fewer dimensions"),
        (letters([b"a", b""]), "inputs[1] has no letters"),
        (letters([]), "the request has no texts"),
        (letters([b"x" * 70_000]), "inputs[0] has 70000 bytes, this server takes 65536"),
        (letters(WORDS, texts=["a"]), "the request has texts and inputs"),
        (pb.EmbedRequest(encoder="toy", texts=["a"]), "toy reads image, and texts[0] is text"),
        (
            pb.EmbedRequest(encoder="words", inputs=[pb.Input(pair=pb.Pair(first="a", second="b"))]),
            "words reads text, and inputs[0] is pair",
        ),
        (
            pb.EmbedRequest(encoder="words", inputs=[pb.Input(text="a"), pb.Input(image=b"b")]),
            "inputs[0] is text, and inputs[1] is image",
        ),
        (pb.EmbedRequest(encoder="words", inputs=[pb.Input()]), "inputs[0] is empty"),
        (
            pb.EmbedRequest(encoder="words", inputs=[pb.Input(tokens=pb.Tokens(ids=range(70_000)))]),
            "inputs[0] has 70000 tokens, this server takes 65536",
        ),
    ],
)
def test_what_an_encoder_does_not_read_or_give(
    stub: encoder_pb2_grpc.EncoderServiceStub, request_: pb.EmbedRequest, message: str
) -> None:
    refused(stub.Embed, request_, grpc.StatusCode.INVALID_ARGUMENT, message)


def test_what_is_given_first_need_not_be_dense(
    server: ServerProcess, stub: encoder_pb2_grpc.EncoderServiceStub
) -> None:
    answer = stub.Embed(pb.EmbedRequest(encoder="counter", texts=["some words"]))
    assert [output.name for output in answer.outputs] == ["counts"] and not answer.embeddings
    asked = [pb.Candidate(text="other words"), pb.Candidate(text="some words")]
    scores = stub.Rescore(pb.RescoreRequest(encoder="counter", query="some words", candidates=asked)).scores
    assert np.frombuffer(scores, "<f4").argmax() == 1
    with (
        trimtab.Client(server.url) as client,
        pytest.raises(trimtab.FailedPrecondition, match=r"counter gives counts \(counts\), and embed gives"),
    ):
        client.embed(["some words"], encoder="counter")
    tensor = triton.InferInput("text", [1], "BYTES")
    tensor.set_data_from_numpy(np.array([b"some words"], object))
    with triton.InferenceServerClient(server.url) as infers:
        for name, message in (
            ("counter", "UNIMPLEMENTED.*gives counts"),
            ("toy", "toy reads image, and texts"),
        ):
            with pytest.raises(tritonclient.utils.InferenceServerException, match=message):
                infers.infer(name, [tensor])


def test_text_may_come_as_an_input_too(stub: encoder_pb2_grpc.EncoderServiceStub) -> None:
    short = stub.Embed(pb.EmbedRequest(encoder="words", texts=["some words"]))
    long = stub.Embed(
        pb.EmbedRequest(encoder="words", inputs=[pb.Input(text="some words")], outputs=["dense"])
    )
    assert short.embeddings[0].vectors == long.outputs[0].dense
    candidates = [pb.Candidate(text="a")]
    request = pb.RescoreRequest(encoder="toy", query="a", candidates=candidates)
    refused(
        stub.Rescore, request, grpc.StatusCode.INVALID_ARGUMENT, "toy reads image, and candidates are texts"
    )
    request = pb.RescoreRequest(encoder="words", query="a", candidates=candidates, output="x")
    refused(stub.Rescore, request, grpc.StatusCode.INVALID_ARGUMENT, "no output 'x'; it has dense, counts")


def test_nobody_has_the_kinds_without_the_package(bundle: Bundle) -> None:
    """In a process of its own: a registry keeps what it has found."""

    code = "import sys, pathlib\nfrom trimtab.artifacts import bundle\nbundle.read(pathlib.Path(sys.argv[1]))"
    done = subprocess.run(
        [sys.executable, "-c", code, str(bundle.path)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert BundleError.__name__ in done.stderr
    assert "the kind of input 'letters' is not known; there is pair, text" in done.stderr


def test_what_cannot_be_exported(st_bert: Path, tmp_path: Path) -> None:
    for settings, error, message in (
        (Settings(str(st_bert), reads="sounds"), NotFound, "kind of input 'sounds' is not known; there is"),
        (Settings(str(st_bert), also=("sounds",)), NotFound, "kind of output 'sounds' is not known"),
    ):
        with pytest.raises(error, match=message):
            export(settings, "odd", tmp_path)
    assert not list(tmp_path.iterdir())
