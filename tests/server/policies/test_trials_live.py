"""A new version on trial beside the old one: who is answered by which, in which space; how they compare."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import trimtab
from tests import adapters_made as made
from tests.server.server_process import NAME, ServerProcess, serve
from tests.texts import distinct
from trimtab.artifacts import adapter as adapters
from trimtab.v1 import encoder_pb2 as pb
from trimtab.v1 import encoder_pb2_grpc
from trimtab_server.policies.trials import falls_to

CONFIG = f"""
[canary.{NAME}]
share = 0.5
[shadow.{NAME}]
version = 2
share = 1.0
"""


@pytest.fixture(scope="module")
def repository(minilm_repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Version 2 is version 1 turned: a space of its own with the same neighbours. An adapter leads back."""
    repository = tmp_path_factory.mktemp("trials")
    old = made.copied(minilm_repository / NAME / "1", repository)
    turn = made.rotation(384, 384, 1)
    new = made.turned(old, repository, NAME, turn, version=2)
    ends = (made.end(new.manifest), made.end(old.manifest))
    made.adapter(repository, "back", *ends, made.linear(np.ascontiguousarray(turn.T)))
    return repository


@pytest.fixture(scope="module")
def server(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with serve(repository, tmp_path_factory.mktemp("config"), CONFIG) as running:
        yield running


def answer(stub: encoder_pb2_grpc.EncoderServiceStub, text: str, **wanted: object) -> pb.EmbedResponse:
    request = pb.EmbedRequest(texts=[text], **wanted)  # type: ignore[arg-type]
    response: pb.EmbedResponse = stub.Embed(request, timeout=240)
    return response


def vector(response: pb.EmbedResponse) -> np.ndarray:
    return np.frombuffer(response.embeddings[0].vectors.data, "<f4")


def test_the_canary_answers_its_share_of_the_queries_in_the_old_space(server: ServerProcess) -> None:
    import grpc

    with grpc.insecure_channel(server.url) as channel:
        stub = encoder_pb2_grpc.EncoderServiceStub(channel)
        versions = set()
        for text in distinct(20, 5):
            expected = answer(stub, text, version="1")
            query = answer(stub, text, role=pb.ROLE_QUERY)
            assert query.version == ("2" if falls_to(0.5, "", text) else "1")
            assert query.embeddings[0].space == expected.embeddings[0].space
            adapters = [f"{NAME}/back"] if query.version == "2" else []
            assert list(query.embeddings[0].adapters) == adapters
            np.testing.assert_allclose(vector(query), vector(expected), atol=1e-5)
            for other in (answer(stub, text), answer(stub, text, role=pb.ROLE_PASSAGE)):
                assert (other.version, list(other.embeddings[0].adapters)) == ("1", [])
            too_long = answer(stub, text, role=pb.ROLE_QUERY, truncate=pb.TRUNCATE_NONE)
            assert too_long.version == "1"
            versions.add(query.version)
        assert versions == {"1", "2"}
        pinned = answer(stub, text, version="2")
        assert pinned.embeddings[0].space != expected.embeddings[0].space
    counts = server.metrics()
    given, kept = (
        counts[f'trimtab_canary_requests_total{{encoder="{NAME}",outcome="{outcome}",version="2"}}']
        for outcome in ("given", "kept")
    )
    assert kept == 3 * given > 0


def test_the_shadow_is_compared_with_what_was_answered(server: ServerProcess) -> None:
    labels = f'{{encoder="{NAME}",shadow="2",version="1"}}'
    overlap, cosine = (f"trimtab_shadow_{each}" for each in ("neighbour_overlap", "cosine"))
    with trimtab.Client(server.url, timeout=100) as client:
        number = 0
        while not (counts := server.metrics()).get(f"{overlap}_count{labels}", 0) > 20:
            for text in distinct(10, 4):
                client.embed([f"{number} {text}"], version="1")
            number += 1
        assert [(each.version, each.canary_share, each.shadow_share) for each in client.encoders()] == [
            ("2", 0.5, 1.0),
            ("1", 0.0, 0.0),
        ]
    # The same neighbours in a space in which a text lies elsewhere.
    assert counts[f"{overlap}_sum{labels}"] > 0.98 * counts[f"{overlap}_count{labels}"]
    assert counts[f"{cosine}_sum{labels}"] < 0.5 * counts[f"{cosine}_count{labels}"]
    assert counts[f"trimtab_shadow_seconds_sum{labels}"] > 0


def test_queries_of_callers_who_know_nothing_of_it_pass_no_cascade(
    server: ServerProcess, repository: Path
) -> None:
    import grpc
    from tritonclient.grpc import InferenceServerClient

    manifest = repository / NAME / adapters.FOLDER / "back" / adapters.MANIFEST
    before = manifest.read_bytes()
    text = next(text for text in distinct(20, 5) if falls_to(0.5, "", text))
    with grpc.insecure_channel(server.url) as channel, InferenceServerClient(server.url) as triton:
        stub = encoder_pb2_grpc.EncoderServiceStub(channel)
        space = answer(stub, text).embeddings[0].space
        for content, version in ((before.replace(b'"bridge"', b'"cascade"'), "1"), (before, "2")):
            manifest.write_bytes(content)
            triton.load_model(NAME)
            assert answer(stub, text, role=pb.ROLE_QUERY).version == version
            asked = answer(stub, text, role=pb.ROLE_QUERY, version="2", spaces=[space])
            assert list(asked.embeddings[0].adapters) == [f"{NAME}/back"]
