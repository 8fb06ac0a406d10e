"""Several outputs of one pass, by both clients: their values, spaces and scales; split, joined, refused."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import trimtab
from tests.client.either import Async, Sync
from tests.client.fake_server import SCALE, FakeServer, pack_as, sparse_of, vectors
from trimtab.v1 import encoder_pb2 as pb
from trimtab.values.dense import unpack

Either = Sync | Async
BOTH = ("sparse", "dense")


def test_each_output_has_its_value_and_its_space(either: Either, server: FakeServer, url: str) -> None:
    texts = ["a", "b c", "d"]
    found: trimtab.Outputs = either.call(url, "embed_outputs", texts, BOTH, role="query")
    assert list(found) == list(BOTH) and len(found) == 2 and "other" not in found
    np.testing.assert_array_equal(found["dense"], vectors(texts, role=1))
    expected = sparse_of(vectors(texts, role=1))
    for name in ("indptr", "indices", "values"):
        np.testing.assert_array_equal(getattr(found["sparse"], name), getattr(expected, name))
    assert found.spaces == {"sparse": "sparse-1", "dense": "space-1"}
    assert found.forms == {"sparse": "sparse", "dense": "dense"}
    assert (found.encoder, found.version, found.scales["dense"]) == ("fake", "1", 0.0)
    assert found.token_counts.tolist() == [3, 4, 3] and found.times.compute == pytest.approx(0.003)
    assert found["dense"].flags.writeable
    assert [list(request.outputs) for request in server.requests] == [list(BOTH)]


def test_int8_comes_with_its_scale(either: Either, url: str) -> None:
    found = either.call(url, "embed_outputs", ["a"], "dense", dtype="int8")
    assert found.scales == {"dense": pytest.approx(SCALE)} and found["dense"].dtype == np.int8
    np.testing.assert_array_equal(found["dense"], unpack(pack_as(vectors(["a"]), "int8")))


def test_what_exceeds_the_limit_is_split_and_joined(either: Either, server: FakeServer, url: str) -> None:
    texts = [f"text {number}" for number in range(150)]
    found = either.call(url, "embed_outputs", texts, BOTH)
    assert sorted(len(request.texts) for request in server.requests) == [22, 64, 64]
    assert {request.version for request in server.requests} == {"1"}, "all parts are of one version"
    np.testing.assert_array_equal(found["dense"], vectors(texts))
    expected = sparse_of(vectors(texts))
    np.testing.assert_array_equal(found["sparse"].indices, expected.indices)
    np.testing.assert_array_equal(found["sparse"].indptr, expected.indptr)
    assert len(found.token_counts) == 150


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        ((), "outputs is empty"),
        (("dense", ""), r"outputs\[1\] is ''"),
        (("dense", 7), r"outputs\[1\] is 7"),
        (("dense", "dense"), r"outputs\[1\] is 'dense' again"),
    ],
)
def test_outputs_that_make_no_sense_never_leave(
    either: Either, server: FakeServer, url: str, outputs: Any, message: str
) -> None:
    with pytest.raises(trimtab.InvalidArgument, match=message):
        either.call(url, "embed_outputs", ["a"], outputs)
    assert not server.requests


def moved(response: pb.EmbedResponse) -> None:
    if len(response.token_counts) < 64:
        response.outputs[0].space = "elsewhere"


def test_parts_of_two_spaces_are_refused(either: Either, server: FakeServer, url: str) -> None:
    server.faults.tamper = moved
    with pytest.raises(trimtab.FailedPrecondition, match=r"changed during the call.*sparse-1.*elsewhere"):
        either.call(url, "embed_outputs", ["a"] * 100, BOTH)


@pytest.mark.parametrize(
    ("tamper", "message"),
    [
        (lambda response: response.outputs.pop(), r"outputs \['sparse'\] instead of \['sparse', 'dense'\]"),
        (lambda response: response.token_counts.pop(), "2 texts with 1 token counts"),
        (lambda response: response.outputs[0].ClearField("sparse"), "sparse has a form that this client"),
        (
            lambda response: response.outputs[0].sparse.ClearField("indices"),
            "sparse cannot be read: .*offsets",
        ),
        (
            lambda response: response.outputs[1].dense.CopyFrom(pack_as(vectors(["a"]), "float32")),
            "2 texts with 1 of dense",
        ),
    ],
)
def test_an_answer_that_does_not_fit_is_a_fault_of_the_server(
    either: Either, server: FakeServer, url: str, tamper: Callable[[pb.EmbedResponse], object], message: str
) -> None:
    server.faults.tamper = lambda response: void(tamper(response))
    with pytest.raises(trimtab.InternalError, match=message):
        either.call(url, "embed_outputs", ["a", "b"], BOTH)


def void(_: object) -> None:
    pass
