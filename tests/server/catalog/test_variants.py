"""Requests name a variant, by its name or its depth, through every client; or are refused with a cure."""

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc

import trimtab
from tests import adapters_made, variants_made
from tests.server.server_process import ServerProcess, serve
from tests.server.spaces_made import unit
from tests.variants_made import NAME, TEXTS
from trimtab.artifacts import variants
from trimtab.artifacts.bundle import Bundle
from trimtab_server.app import App
from trimtab_server.config import BrownoutSettings, Config, EncoderSettings, ServerSettings

TOLERANCE = 1e-5
CONFIG = """
devices = ["cpu"]
[encoders.layered]
variants = ["small", "early-16"]
"""
WIDEN = adapters_made.rotation(32, 16, 3).T  # of early-16 into the encoder's own space


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    bundle = variants_made.bundle(tmp_path_factory.mktemp("variants"))
    early = next(each for each in bundle.manifest.variants if each.name == "early-16")
    adapters_made.adapter(
        bundle.path.parent.parent, "early-16-to-whole",
        adapters_made.end(variants.alone(bundle.manifest, early)), adapters_made.end(bundle.manifest),
        adapters_made.linear(WIDEN),
    )  # fmt: skip
    return bundle


@pytest.fixture(scope="module")
def running(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with serve(bundle.path.parent.parent, tmp_path_factory.mktemp("variants-server"), CONFIG) as running:
        yield running


@pytest.fixture(scope="module")
def client(running: ServerProcess) -> Iterator[trimtab.Client]:
    with trimtab.Client(running.url, timeout=100) as client:
        yield client


@pytest.fixture(scope="module")
def alone(bundle: Bundle) -> dict[str, np.ndarray]:
    """The rows of TEXTS by each loaded variant, each text alone, without a server."""
    return {name: variants_made.rows(bundle, name, TEXTS) for name in ("fp32", "small", "early-16")}


def test_a_variant_alone_is_the_variant_in_a_mixed_batch(
    running: ServerProcess, bundle: Bundle, alone: dict[str, np.ndarray]
) -> None:
    async def ask() -> list[trimtab.Embeddings]:
        async with trimtab.AsyncClient(running.url, timeout=100) as client:
            calls = (
                client.embed_detailed([TEXTS[n % len(TEXTS)]], variant=names[n % 3], timeout=240)
                for n in range(120)
            )
            return await asyncio.gather(*calls)

    names = list(alone)
    for n, answer in enumerate(asyncio.run(ask())):
        name = names[n % 3]
        assert (answer.variant, answer.browned_out) == (name, False)
        assert answer.space == variants_made.space(bundle, name)
        np.testing.assert_allclose(answer.vectors[0], alone[name][n % len(TEXTS)], atol=TOLERANCE)


def test_without_a_variant_the_encoder_itself_answers(
    client: trimtab.Client, bundle: Bundle, alone: dict[str, np.ndarray]
) -> None:
    answer = client.embed_detailed(TEXTS)
    assert (answer.variant, answer.space, answer.adapters) == ("fp32", bundle.manifest.space, ())
    np.testing.assert_allclose(answer.vectors, alone["fp32"], atol=TOLERANCE)
    assert not np.allclose(alone["small"], alone["fp32"], atol=0.1)


@pytest.mark.parametrize(
    ("options", "variant", "columns"),
    [
        ({"layers": 8}, "fp32", 32),
        ({"layers": 2}, "small", 32),
        ({"layers": 4}, "early-16", 16),  # the other of this depth is not loaded
        ({"layers": 4, "variant": "early-16"}, "early-16", 16),
        ({"layers": 4, "dimensions": 8}, "early-16", 8),
        ({"variant": "small", "dimensions": 8}, "small", 8),
        ({"variant": "small", "dimensions": 8, "dtype": "float16"}, "small", 8),
    ],
)
def test_depth_and_dimensions(
    client: trimtab.Client, bundle: Bundle, alone: dict[str, np.ndarray],
    options: trimtab.EmbedOptions, variant: str, columns: int,
) -> None:  # fmt: skip
    answer = client.embed_detailed(TEXTS, **options)
    assert (answer.variant, answer.space) == (variant, variants_made.space(bundle, variant))
    np.testing.assert_allclose(answer.vectors, unit(alone[variant][:, :columns]), atol=1e-3)


@pytest.mark.parametrize(
    ("options", "error", "parts"),
    [
        ({"variant": "tiny"}, trimtab.NotFound, ["no variant 'tiny'", "fp32 (8 layers), small (2 layers)"]),
        ({"layers": 3}, trimtab.NotFound, ["no variant of 3 layers", "early (4 layers)"]),
        (
            {"variant": "early"},
            trimtab.FailedPrecondition,
            ["variant early (4 layers)", "not loaded", "`variants` of [encoders.layered]"],
        ),
        ({"variant": "small", "layers": 4}, trimtab.InvalidArgument, ["layers is 4", "small (2 layers)"]),
        ({"variant": "early-16", "dimensions": 17}, trimtab.InvalidArgument, ["dimensions is 17", "has 16"]),
        ({"variant": "early-16", "dtype": "int8"}, trimtab.FailedPrecondition, ["range of int8", "early-16"]),
    ],
)
def test_what_cannot_be_had_is_refused_with_a_cure(
    client: trimtab.Client, options: trimtab.EmbedOptions, error: type[Exception], parts: list[str]
) -> None:
    with pytest.raises(error) as caught:
        client.embed(["w1"], **options)
    assert all(part in str(caught.value) for part in parts), str(caught.value)


def test_int8_has_the_range_of_the_variant(client: trimtab.Client, alone: dict[str, np.ndarray]) -> None:
    for name, limit in (("fp32", 0.6), ("small", 0.7)):
        answer = client.embed_detailed(TEXTS, variant=name, dtype="int8")
        assert answer.scale == pytest.approx(limit / 127)
        expected = np.clip(alone[name], -limit, limit)
        np.testing.assert_allclose(answer.vectors * answer.scale, expected, atol=limit / 127)


def test_small_queries_on_the_whole_index(
    client: trimtab.Client, bundle: Bundle, alone: dict[str, np.ndarray]
) -> None:
    space = bundle.manifest.space
    answer = client.embed_detailed(TEXTS, variant="early-16", space=space)
    assert (answer.variant, answer.space) == ("early-16", space)
    assert answer.adapters == (f"{NAME}/early-16-to-whole",)
    np.testing.assert_allclose(answer.vectors, unit(alone["early-16"] @ WIDEN), atol=TOLERANCE)
    both = client.embed_spaces(TEXTS, [variants_made.space(bundle, "early-16"), space], variant="early-16")
    np.testing.assert_allclose(both[space].vectors, answer.vectors, atol=TOLERANCE)
    (listed,) = client.adapters()
    assert listed.problem == ""
    with pytest.raises(trimtab.FailedPrecondition, match=r"not in reach of this encoder's own.*adapter fit"):
        client.embed(TEXTS, variant="small", space=space)
    with pytest.raises(
        trimtab.FailedPrecondition, match="that of layered version 1, variant small"
    ) as caught:
        client.embed(TEXTS, space=variants_made.space(bundle, "small"))
    assert "`trimtab adapter fit --from layered/1 --to layered/1:small`" in str(caught.value)


def test_streams(running: ServerProcess, bundle: Bundle, alone: dict[str, np.ndarray]) -> None:
    with trimtab.Client(running.url, timeout=100) as client:
        with client.embed_stream(TEXTS, variant="small", timeout=240) as stream:
            np.testing.assert_allclose(np.stack(list(stream)), alone["small"], atol=TOLERANCE)
            assert (stream.variant, stream.browned_out) == ("small", False)
        with pytest.raises(trimtab.NotFound, match=r"no variant 'tiny'; it has fp32 \(8 layers\), small"):
            client.embed_stream(TEXTS, variant="tiny", timeout=240)
        with pytest.raises(trimtab.FailedPrecondition, match="not loaded: name it in"):
            list(client.embed_stream(TEXTS, variant="early", timeout=240))

    async def read() -> list[np.ndarray]:
        async with trimtab.AsyncClient(running.url, timeout=100) as client:
            stream = client.embed_stream(TEXTS, layers=2, timeout=240)
            rows = [row async for row in stream]
            assert (stream.variant, stream.browned_out) == ("small", False)
            return rows

    np.testing.assert_allclose(np.stack(asyncio.run(read())), alone["small"], atol=TOLERANCE)


def test_tritonclient(running: ServerProcess, bundle: Bundle, alone: dict[str, np.ndarray]) -> None:
    with tritonclient.grpc.InferenceServerClient(running.url) as triton:
        tensor = tritonclient.grpc.InferInput("text", [len(TEXTS), 1], "BYTES")
        tensor.set_data_from_numpy(np.array([[text.encode()] for text in TEXTS], object))
        for parameters, name in (({"variant": "small"}, "small"), ({"layers": 4}, "early-16"), ({}, "fp32")):
            result = triton.infer(NAME, [tensor], parameters=parameters)
            np.testing.assert_allclose(result.as_numpy("embeddings"), alone[name], atol=TOLERANCE)
            sent = result.get_response().parameters
            assert sent["variant"].string_param == name and "browned_out" not in sent
            assert sent["space"].string_param == variants_made.space(bundle, name)
        for wrong, status in (
            ({"variant": "tiny"}, "NOT_FOUND"),
            ({"variant": 3}, "INVALID"),
            ({"allow_brownout": "x"}, "INVALID"),
        ):
            with pytest.raises(tritonclient.grpc.InferenceServerException) as caught:
                triton.infer(NAME, [tensor], parameters=wrong)
            assert status in str(caught.value.status())


def test_the_commands(
    running: ServerProcess, bundle: Bundle, alone: dict[str, np.ndarray], tmp_path: Path
) -> None:
    def trimtab_(*arguments: str) -> str:
        command = [sys.executable, "-m", "trimtab.cli", *arguments, "--url", running.url]
        done = subprocess.run(command, capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stderr
        return done.stdout

    (tmp_path / "texts.txt").write_text("".join(f"{text}\n" for text in TEXTS))
    out = tmp_path / "vectors.npy"
    trimtab_("embed", str(tmp_path / "texts.txt"), "--variant", "small", "--output", str(out))
    np.testing.assert_allclose(np.load(out), alone["small"], atol=TOLERANCE)
    described = json.loads((tmp_path / "vectors.npy.json").read_text())["vectors"]
    assert (described["variant"], described["space"]) == ("small", variants_made.space(bundle, "small"))

    shown = trimtab_("info")
    assert (
        f"small: loaded, fp32 in ONNX Runtime, 2 layers, 32 dimensions, space {described['space']}" in shown
    )
    assert "early: not loaded" in shown and "queries alone      0.980 (0.970 to 0.990)" in shown
    assert "times as fast      2.50 at 8 x 16" in shown
    (encoder,) = json.loads(trimtab_("info", "--json"))
    assert [each["name"] for each in encoder["variants"]] == ["fp32", "small", "early", "early-16"]


def test_a_card_that_nothing_counts_on_is_named_in_the_log(running: ServerProcess) -> None:
    said = "".join(running.log)
    assert (
        "the report card of variant early-16 of layered version 1 is provisional: judged by the kind" in said
    )
    assert "variant small of" not in said


def test_variants_are_described_and_counted(
    running: ServerProcess, client: trimtab.Client, bundle: Bundle
) -> None:
    described = client.encoder().variants
    for variant, there in zip(bundle.manifest.variants, described, strict=True):
        assert variant.report.fidelity == there.fidelity
        assert (there.name, there.dimensions) == (
            variant.name,
            variants.alone(bundle.manifest, variant).dimensions,
        )
        assert there.loaded == (variant.name != "early")
    counted = 'trimtab_variant_texts_total{encoder="layered",variant="small",version="1"}'
    before = running.metrics().get(counted, 0)
    client.embed(TEXTS, variant="small")
    assert running.metrics()[counted] == before + len(TEXTS)
    assert running.metrics()['trimtab_texts_total{encoder="layered",protocol="trimtab.v1",version="1"}'] > 0


@pytest.mark.parametrize(
    ("encoder", "message"),
    [
        (
            EncoderSettings(variants=("samll",)),
            r"names the variant 'samll', and layered version 1 has fp32, small, early",
        ),
        (
            EncoderSettings(brownout=BrownoutSettings(variant="fp32", min_quality=0.9)),
            r"'fp32': give one of small, early",
        ),
        (
            EncoderSettings(brownout=BrownoutSettings(variant="small", min_quality=0.99)),
            r"min_quality = 0\.99.*queries alone keep 0\.980 of nDCG@10.*adapter fit --from layered/1:small",
        ),
        (
            EncoderSettings(brownout=BrownoutSettings(variant="early-16", min_quality=0.99)),
            r"adapter layered/early-16-to-whole keeps 0\.980 of R@10",
        ),
    ],
)
async def test_a_server_does_not_start_as_it_cannot_be_meant(
    bundle: Bundle, encoder: EncoderSettings, message: str
) -> None:
    anywhere = ServerSettings(grpc_address="127.0.0.1:0", metrics_address="127.0.0.1:0")
    app = App(Config(server=anywhere, encoders={NAME: encoder}), bundle.path.parent.parent)
    try:
        with pytest.raises(trimtab.ConfigError, match=message):
            await app.start()
    finally:
        await app.stop()
