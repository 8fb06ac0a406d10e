"""Questions to a client and to stores, for what is written once and offered to both clients.

Such an operation is a generator of questions (see trimtab.core.steps): a Client's answer is there when it is
asked, an AsyncClient's is awaited, and stores answer in a thread, so that the event loop is not blocked.
"""

import asyncio
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

from trimtab.core.steps import run, run_async

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Question:
    """A question to the client, which an AsyncClient answers with an awaitable, or to the stores."""

    ask: Callable[[], Any]
    stores: bool = False


Questions: TypeAlias = Generator[Question, Any, Result]


def answered(questions: Questions[Result]) -> Result:
    """The result of an operation with a Client."""
    return run(questions, lambda question: question.ask())


async def answered_async(questions: Questions[Result]) -> Result:
    """The result of an operation with an AsyncClient."""

    async def perform(question: Question) -> Any:
        return await (asyncio.to_thread(question.ask) if question.stores else question.ask())

    return await run_async(questions, perform)
