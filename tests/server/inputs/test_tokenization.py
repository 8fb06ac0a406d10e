"""Text to ids: the same as the tokenizer's own truncation, for many callers at once."""

import asyncio
import gc
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest
import tokenizers

from trimtab.errors import InternalError, InvalidArgument
from trimtab.kinds import Truncate
from trimtab.tokens import Tokenizer, Tokens
from trimtab_server.inputs.preparation import Preparation
from trimtab_server.inputs.text import TextReader

LIMIT = 16


def reader(path: Path, most: int) -> TextReader:
    return TextReader(Tokenizer(path, most))


@pytest.fixture(scope="module")
def path(minilm_source: Path) -> Path:
    return minilm_source / "tokenizer.json"


def reference(path: Path, text: str, direction: str) -> list[int]:
    tokenizer = tokenizers.Tokenizer.from_file(str(path))
    tokenizer.no_padding()
    tokenizer.enable_truncation(LIMIT, direction=direction)
    return tokenizer.encode(text).ids


@pytest.mark.parametrize("words", [0, 1, 13, 14, 15, 40])
@pytest.mark.parametrize(("how", "direction"), [("end", "right"), ("start", "left")])
async def test_truncation_is_the_tokenizers_own(path: Path, words: int, how: str, direction: str) -> None:
    text = " ".join(f"word{number}" for number in range(words))
    preparation = Preparation(1)
    ids = await preparation.read(reader(path, LIMIT), [text], how)  # type: ignore[arg-type]
    assert ids[0].arrays["ids"].tolist() == reference(path, text, direction)
    preparation.stop()


async def test_none_refuses_and_names_the_text(path: Path) -> None:
    preparation = Preparation(1)
    with pytest.raises(InvalidArgument, match=r"texts\[1\] has 27 tokens or more, this encoder reads 16"):
        await preparation.read(reader(path, LIMIT), ["short", "long " * 30], "none")
    preparation.stop()


async def test_many_callers_each_get_their_own(path: Path) -> None:
    preparation = Preparation(2)
    tokenizer, other = Tokenizer(path, 512), Tokenizer(path, 4)
    whole, short = TextReader(tokenizer), TextReader(other)
    texts = [[f"caller {number} text {row}" for row in range(number % 70)] for number in range(150)]
    results = await asyncio.gather(
        *(
            preparation.read(short if number % 7 == 0 else whole, each, "end")
            for number, each in enumerate(texts)
        )
    )
    for number, (each, ids) in enumerate(zip(texts, results, strict=True)):
        expected = (other if number % 7 == 0 else tokenizer).read(each, "end")
        assert [one.arrays["ids"].tolist() for one in ids] == [one.ids.tolist() for one in expected]
    preparation.stop()


async def test_a_text_of_the_largest_size_does_not_hold_up_the_loop(path: Path) -> None:
    """Other calls go on while it is tokenised: the tokenizer's threads do not hold the interpreter's lock."""
    preparation = Preparation(1)
    turns, text = 0, "x" * (1 << 18)
    waiting = asyncio.create_task(preparation.read(reader(path, LIMIT), [text], "end"))
    while not waiting.done():
        turns += 1
        await asyncio.sleep(0)
    assert turns > 100
    assert (await waiting)[0].arrays["ids"].tolist() == reference(path, text, "right")
    preparation.stop()


class _Panics(Tokenizer):
    """As a library that panics: its exception is no Exception."""

    def read(self, texts: Sequence[str], how: Truncate) -> list[Tokens]:
        if "panic" in texts:
            raise BaseException("panic")
        return super().read(texts, how)


@pytest.mark.parametrize("texts", [["panic"], ["panic", "b"]], ids=["at once", "on a thread"])
async def test_a_panic_fails_its_request_and_the_thread_goes_on(path: Path, texts: list[str]) -> None:
    preparation, tokenizer = Preparation(1), TextReader(_Panics(path, LIMIT))
    for _ in range(2):
        with pytest.raises(InternalError, match="the tokenizer failed"):
            await preparation.read(tokenizer, texts, "end")
        assert len(await preparation.read(tokenizer, ["a", "b"], "end")) == 2
    preparation.stop()


async def test_as_many_threads_as_configured() -> None:
    before = {thread for thread in threading.enumerate() if thread.name.startswith("tokenizer-")}
    preparation = Preparation(3)
    after = {thread for thread in threading.enumerate() if thread.name.startswith("tokenizer-")}
    assert len(after - before) == 3
    preparation.stop()


async def test_a_caller_that_left_does_not_disturb_the_others(path: Path) -> None:
    preparation = Preparation(1)
    tokenizer = reader(path, 512)
    gone = asyncio.create_task(preparation.read(tokenizer, ["a text"] * 500, "end"))
    await asyncio.sleep(0)  # let it queue its jobs
    gone.cancel()
    ids = await preparation.read(tokenizer, ["hello world"], "end")
    assert ids[0].arrays["ids"].tolist() == [101, 7592, 2088, 102]
    with pytest.raises(asyncio.CancelledError):
        await gone
    preparation.stop()


async def test_nobody_waits_behind_long_texts(path: Path) -> None:
    """Of one flow, too: a text of a few hundred characters is done while long ones are under way."""
    preparation = Preparation(1)
    tokenizer = reader(path, LIMIT)
    long = asyncio.create_task(preparation.read(tokenizer, ["x" * (1 << 16)] * 60, "end"))
    await asyncio.sleep(0)  # it has queued its jobs
    await preparation.read(tokenizer, ["a few words " * 40], "end")
    assert preparation.waiting > 10 and not long.done()
    long.cancel()
    await asyncio.wait([long])
    preparation.stop()


async def test_who_sends_much_does_not_keep_others_waiting(path: Path) -> None:
    """Of two flows the second, which sends little, is done while the first has most of its work to do."""
    preparation = Preparation(1)
    tokenizer = reader(path, 512)
    flood = asyncio.create_task(preparation.read(tokenizer, ["many words " * 200] * 1000, "end", "a"))
    await asyncio.sleep(0)  # it has queued its jobs
    await preparation.read(tokenizer, ["a few words " * 40] * 2, "end", "b")
    assert preparation.waiting > 10 and not flood.done()
    flood.cancel()
    await asyncio.wait([flood])
    preparation.stop()


def test_a_thread_that_ends_after_the_loop_ends_quietly(path: Path) -> None:
    """The server does not wait for it, and its late result is discarded."""
    begun, go_on = threading.Event(), threading.Event()

    class Late(Tokenizer):
        def read(self, texts: Sequence[str], how: Truncate) -> list[Tokens]:
            begun.set()
            assert go_on.wait(60)
            return super().read(texts, how)

    async def run() -> Preparation:
        preparation = Preparation(1)
        waiting = asyncio.create_task(preparation.read(TextReader(Late(path, LIMIT)), ["a", "b"], "end"))
        await asyncio.to_thread(begun.wait, 60)
        waiting.cancel()
        await asyncio.wait([waiting])
        return preparation

    preparation = asyncio.run(run())
    go_on.set()
    preparation.stop()  # an exception of a thread would fail the test


async def test_the_garbage_collector_leaves_texts_out(path: Path) -> None:
    """A hundred thousand of them are as many objects that it would look at, again and again."""
    preparation = Preparation(1)
    try:
        tokenizer = Tokenizer(path, 8)
        assert not any(gc.is_tracked(tokens) for tokens in tokenizer.read(["one"] * 3, "end"))
        payloads = await preparation.read(TextReader(tokenizer), ["one"] * 3, "end")
        assert not any(gc.is_tracked(payload) or gc.is_tracked(payload.arrays) for payload in payloads)
    finally:
        preparation.stop()
