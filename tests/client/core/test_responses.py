"""Answers into arrays."""

from typing import Any

import numpy as np
import pytest

from tests.client.fake_server import pack_as, vectors
from trimtab.core.descriptions import describe_adapter
from trimtab.core.responses import join, parse
from trimtab.errors import FailedPrecondition, InternalError
from trimtab.v1 import encoder_pb2 as pb

TEXTS = ["a", "b", "c"]


def response(**changes: object) -> pb.EmbedResponse:
    message = pb.EmbedResponse(
        embeddings=[pb.Embeddings(vectors=pack_as(vectors(TEXTS), "float32"), space="s")],
        token_counts=[3, 4, 5],
        encoder="fake",
        version="1",
        times=pb.StageTimes(tokenize=2_000_000_000, queue=1, compute=500_000_000, output=0),
    )
    if "token_counts_of" in changes:
        del message.token_counts[int(str(changes.pop("token_counts_of"))) :]
    for name, value in changes.items():
        setattr(message.embeddings[0] if name == "space" else message, name, value)
    return message


def test_the_array_is_the_callers_own() -> None:
    (part,) = parse(response(), 3)
    assert part.vectors.dtype == np.float32
    assert part.vectors.dtype.isnative
    part.vectors[0] = 0
    assert part.token_counts.tolist() == [3, 4, 5]
    assert part.times.tokenize == 2.0
    assert part.times.compute == 0.5


def test_parts_of_one_space_are_joined() -> None:
    joined = join([*parse(response(), 3), *parse(response(), 3)])
    assert np.array_equal(joined.vectors, np.concatenate([vectors(TEXTS)] * 2))
    assert joined.token_counts.tolist() == [3, 4, 5, 3, 4, 5]
    assert joined.times.tokenize == 4.0
    assert (joined.encoder, joined.version, joined.space, joined.dtype) == ("fake", "1", "s", "float32")


def test_what_is_suspicious_stays_with_its_row() -> None:
    looked_at = response()
    looked_at.hubness.CopyFrom(pb.Hubness(reach=[0.1, 0.5, 0.25], threshold=0.25))
    joined = join([*parse(response(), 3), *parse(looked_at, 3)])
    assert joined.reach is not None and joined.suspicious is not None
    assert joined.suspicious.tolist() == [False, False, False, False, True, False]
    np.testing.assert_array_equal(joined.reach, np.float32([np.nan] * 3 + [0.1, 0.5, 0.25]))
    unseen = join(parse(response(), 3))
    assert unseen.reach is None and unseen.suspicious is None
    looked_at.hubness.reach.pop()
    with pytest.raises(InternalError, match="checked 2 of 3 passages"):
        parse(looked_at, 3)


@pytest.mark.parametrize("changes", [{"space": "other"}, {"version": "2"}, {"encoder": "another"}])
def test_parts_of_two_spaces_never_are(changes: dict[str, str]) -> None:
    with pytest.raises(FailedPrecondition, match="must not be mixed"):
        join([*parse(response(), 3), *parse(response(**changes), 3)])


def test_an_answer_that_does_not_fit_the_texts_is_a_fault_of_the_server() -> None:
    with pytest.raises(InternalError, match="2 texts with 3 token counts"):
        parse(response(), 2)
    with pytest.raises(InternalError, match="2 texts with 3 vectors"):
        parse(response(token_counts_of=2), 2)
    short = response()
    short.embeddings[0].vectors.data = short.embeddings[0].vectors.data[:-1]
    with pytest.raises(InternalError, match="cannot be read"):
        parse(short, 3)
    unknown = response()
    unknown.embeddings[0].vectors.dtype = 99
    with pytest.raises(InternalError, match="Upgrade the client"):
        parse(unknown, 3)


@pytest.mark.parametrize(
    "changes",
    [
        {"source": pb.Endpoint(version="")},
        {"target": pb.Endpoint(version="one")},
        {"calibrator": pb.Calibrator(adapted=[1, 0], target=[0, 1])},
    ],
)
def test_an_adapter_that_none_can_be_is_a_fault_of_the_server(changes: dict[str, Any]) -> None:
    point = pb.Endpoint(encoder="a", version="1", space="s", dimensions=4)
    described = {"name": "french", "source": point, "target": point} | changes
    with pytest.raises(InternalError, match="'french'"):
        describe_adapter(pb.Adapter(**described))
