"""A request's texts are looked at in its caller's turn, where they are many."""

import asyncio
import time
from typing import Any
from unittest import mock

import pytest

from trimtab.errors import DeadlineExceeded
from trimtab_server.callers.access import ANYONE
from trimtab_server.callers.call import Call
from trimtab_server.config import LimitSettings
from trimtab_server.tasks.embed import Embedder, EmbedRequest
from trimtab_server.tasks.pipeline import Pipeline
from trimtab_server.tasks.rescore import Candidate, Rescorer, RescoreRequest
from trimtab_server.turns import PIECE, Flow, Turns


class FoundError(Exception):
    """The request's encoder was asked for: its texts are looked at from then on."""


@pytest.fixture
def pipeline() -> Pipeline:
    repository: Any = mock.Mock(find=mock.Mock(side_effect=FoundError))
    unused: Any = mock.Mock()
    return Pipeline(LimitSettings(), repository, unused, unused, mock.Mock(), turns=Turns())


async def busy(pipeline: Pipeline) -> None:
    """Large work has had more than its share, and calls arrive."""
    await pipeline.turns.wait(Flow("other", small=False), 60.0)
    await asyncio.sleep(0)
    pipeline.turns.arrived()


async def embed(pipeline: Pipeline, texts: int, deadline: float | None = None) -> None:
    call = Call(ANYONE, "", "embed", "protocol", time.monotonic(), deadline, "interactive", "")
    await Embedder(pipeline, ()).embed(call, EmbedRequest("encoder", "", ["text"] * texts))


async def rescore(pipeline: Pipeline, texts: int, deadline: float | None = None) -> None:
    call = Call(ANYONE, "", "rescore", "protocol", time.monotonic(), deadline, "interactive", "")
    candidates = [Candidate("", "text", b"")] * (texts - 1)
    await Rescorer(pipeline, 0).rescore(call, RescoreRequest("encoder", "", "query", candidates, "end"))


@pytest.mark.parametrize("task", [embed, rescore])
async def test_many_texts_wait_for_their_turn_and_few_do_not(pipeline: Pipeline, task: Any) -> None:
    await busy(pipeline)
    many = asyncio.create_task(task(pipeline, PIECE + 1))
    few = asyncio.create_task(task(pipeline, PIECE))
    await asyncio.sleep(0)
    assert few.done() and not many.done()
    with pytest.raises(FoundError):
        await few
    with pytest.raises(FoundError):
        await many  # nobody else has arrived meanwhile


@pytest.mark.parametrize("task", [embed, rescore])
async def test_many_texts_wait_for_their_turn_until_their_deadline(pipeline: Pipeline, task: Any) -> None:
    await busy(pipeline)
    with pytest.raises(DeadlineExceeded):
        await task(pipeline, PIECE + 1, deadline=0.0)
