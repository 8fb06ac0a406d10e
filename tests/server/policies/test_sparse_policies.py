"""Policies and encoders with sparse vectors: a canary with other ones, and a guard of the dense ones."""

from collections.abc import Iterator, Sequence
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

import trimtab
from tests import hostile, sparse_made
from tests.server.server_process import ServerProcess, serve
from trimtab.hubness import HubnessGuard
from trimtab.v1 import encoder_pb2 as pb
from trimtab.v1 import encoder_pb2_grpc
from trimtab.values import sparse

PARTS = ("sparse_indices", "sparse_values", "sparse_offsets")
# All queries have a word that no ordinary passage has, so a passage of that word alone is near to them all.
QUERIES = [f"w1 w1 w1 {word}" for word in hostile.WORDS[2:]] * 5
ORDINARY = [f"{one} {other}" for one in hostile.WORDS[2:12] for other in hostile.WORDS[12:32]]
HUB = "w1"


def infer(url: str, encoder: str, text: str, *names: str, **parameters: Any) -> Any:
    tensor = triton.InferInput("text", [1], "BYTES")
    tensor.set_data_from_numpy(np.array([text.encode()], object))
    outputs = [triton.InferRequestedOutput(name) for name in names]
    with triton.InferenceServerClient(url) as infers:
        return infers.infer(encoder, [tensor], outputs=outputs, parameters=parameters).get_response()


# -- a canary ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trial(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """Version 2 is on trial: `other` and `dense` in another space than version 1, `same` in the same."""
    repository = tmp_path_factory.mktemp("trial")
    other = {**sparse_made.SETTINGS, "top_k": sparse_made.VOCABULARY}
    for name, changes in (
        ("other", {"sparse_first": True, "settings": other}),
        ("dense", {"sparse_first": False}),
        ("same", {"sparse_first": True}),
    ):
        sparse_made.bundle(repository, name, sparse_first=True)
        sparse_made.bundle(repository, name, version=2, **changes)
    config = "".join(f"[canary.{name}]\nversion = 2\nshare = 1.0\n" for name in ("other", "dense", "same"))
    with serve(repository, tmp_path_factory.mktemp("config"), config) as server:
        yield server


@pytest.mark.parametrize("encoder", ["other", "dense"])
def test_a_canary_of_other_sparse_vectors_answers_nobody_who_has_not_named_it(
    trial: ServerProcess, encoder: str
) -> None:
    with grpc.insecure_channel(trial.url) as channel:
        stub = encoder_pb2_grpc.EncoderServiceStub(channel)

        def answer(role: int = 0, version: str = "") -> tuple[str, list[str]]:
            request = pb.EmbedRequest(encoder=encoder, version=version, texts=["w1 w2"], role=role)
            found = stub.Embed(request, timeout=240)
            return found.version, [each.space for each in (*found.outputs, *found.embeddings)]

        old, new = answer(version="1"), answer(version="2")
        assert (old[0], new[0]) == ("1", "2") and old[1] != new[1]
        for role in (pb.ROLE_UNSPECIFIED, pb.ROLE_QUERY, pb.ROLE_PASSAGE):
            assert answer(role) == old
        found = infer(trial.url, encoder, "w1 w2", *PARTS, input_type="query")
        assert (found.model_version, [found.parameters["space"].string_param]) == old
    counts = trial.metrics()
    assert counts[f'trimtab_canary_requests_total{{encoder="{encoder}",outcome="kept",version="2"}}'] >= 3
    assert not counts.get(f'trimtab_canary_requests_total{{encoder="{encoder}",outcome="given",version="2"}}')


def test_a_canary_of_the_same_sparse_vectors_answers(trial: ServerProcess) -> None:
    with trimtab.Client(trial.url, timeout=240) as client:
        one = client.embed_outputs(["w1 w2"], ["sparse"], encoder="same", version="1")
    with grpc.insecure_channel(trial.url) as channel:
        request = pb.EmbedRequest(encoder="same", texts=["w1 w2"], role=pb.ROLE_PASSAGE)
        found = encoder_pb2_grpc.EncoderServiceStub(channel).Embed(request, timeout=240)
    assert (found.version, found.outputs[0].space) == ("2", one.spaces["sparse"])


# -- a guard -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("guarded")
    sparse_made.bundle(folder / "repository", "both")
    (folder / "queries.txt").write_text("\n".join(QUERIES))
    (folder / "passages.txt").write_text("\n".join(ORDINARY))
    config = f"""
[encoders.both.guard]
queries = "{folder}/queries.txt"
passages = "{folder}/passages.txt"
action = "refuse"
"""
    with serve(folder / "repository", folder, config) as server:
        yield server


def ordinary() -> list[str]:
    """Passages that the same check of the SDK's does not flag, though it flags HUB."""
    guard = HubnessGuard(hostile.vectors(QUERIES), hostile.vectors(ORDINARY))
    assert guard.suspicious(hostile.vectors([HUB])).tolist() == [True]
    return [text for text in ORDINARY if not guard.suspicious(hostile.vectors([text]))[0]][:4]


@pytest.mark.parametrize("outputs", [["dense"], ["sparse"], ["sparse", "dense"]])
def test_a_guard_looks_whatever_outputs_are_named(guarded: ServerProcess, outputs: Sequence[str]) -> None:
    fine = ordinary()
    with trimtab.Client(guarded.url, timeout=240) as client:
        with pytest.raises(trimtab.InvalidArgument, match=r"^texts\[1\] \(\d+\.\d%\) would be shown"):
            client.embed_outputs([fine[0], HUB, fine[1]], outputs, encoder="both", role="passage")
        found = client.embed_outputs(fine, outputs, encoder="both", role="passage")
        assert list(found) == outputs
        assert list(client.embed_outputs([HUB], outputs, encoder="both", role="query")) == outputs
    if "sparse" in outputs:
        expected = sparse_made.truth(fine)
        np.testing.assert_array_equal(found["sparse"].indices, expected.indices)
        np.testing.assert_allclose(found["sparse"].values, expected.values, atol=1e-5)


def test_a_guard_looks_at_the_requests_of_streams_and_tritonclient(guarded: ServerProcess) -> None:
    asked = [
        pb.EmbedStreamRequest(
            id=number,
            request=pb.EmbedRequest(encoder="both", texts=[text], role=pb.ROLE_PASSAGE, outputs=["sparse"]),
        )
        for number, text in enumerate((HUB, ordinary()[0]))
    ]
    with grpc.insecure_channel(guarded.url) as channel:
        answers = encoder_pb2_grpc.EncoderServiceStub(channel).EmbedStream(iter(asked))
        found = {answer.id: answer for answer in answers}
    assert "would be shown for more of the sentinel queries" in found[0].error.message
    assert len(sparse.unpack(found[1].response.outputs[0].sparse)) == 1
    assert len(found[1].response.hubness.reach) == 1
    with pytest.raises(InferenceServerException, match=r"INVALID_ARGUMENT.*would be shown"):
        infer(guarded.url, "both", HUB, *PARTS, input_type="passage")
    response = infer(guarded.url, "both", ordinary()[0], *PARTS, input_type="passage")
    assert [each.name for each in response.outputs] == list(PARTS)
    assert response.parameters["suspicious"].string_param == ""
