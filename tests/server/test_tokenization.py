"""Text to ids: the same as the tokenizer's own truncation, for many callers at once."""

import asyncio
from pathlib import Path

import pytest
import tokenizers

from trimtab.errors import InvalidArgument
from trimtab_server.tokenization import Tokenization, Tokenizer

LIMIT = 16


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
    tokenization = Tokenization(1)
    ids = await tokenization.encode(Tokenizer(path, LIMIT), [text], how)  # type: ignore[arg-type]
    assert ids[0].tolist() == reference(path, text, direction)
    tokenization.stop()


async def test_none_refuses_and_names_the_text(path: Path) -> None:
    tokenization = Tokenization(1)
    with pytest.raises(InvalidArgument, match=r"texts\[1\] has \d+ tokens, this encoder reads 16"):
        await tokenization.encode(Tokenizer(path, LIMIT), ["short", "long " * 30], "none")
    tokenization.stop()


async def test_many_callers_each_get_their_own(path: Path) -> None:
    tokenization = Tokenization(2)
    tokenizer, other = Tokenizer(path, 512), Tokenizer(path, 4)
    texts = [[f"caller {number} text {row}" for row in range(number % 70)] for number in range(150)]
    results = await asyncio.gather(
        *(
            tokenization.encode(other if number % 7 == 0 else tokenizer, each, "end")
            for number, each in enumerate(texts)
        )
    )
    for number, (each, ids) in enumerate(zip(texts, results, strict=True)):
        expected = [tokenizer.encode([text])[0] for text in each]
        if number % 7 == 0:
            expected = [[*one[:3], one[-1]] for one in expected]
        assert [one.tolist() for one in ids] == expected
    tokenization.stop()


async def test_a_caller_that_left_does_not_disturb_the_others(path: Path) -> None:
    tokenization = Tokenization(1)
    tokenizer = Tokenizer(path, 512)
    gone = asyncio.create_task(tokenization.encode(tokenizer, ["a text"] * 500, "end"))
    await asyncio.sleep(0)  # let it queue its jobs
    gone.cancel()
    ids = await tokenization.encode(tokenizer, ["hello world"], "end")
    assert ids[0].tolist() == [101, 7592, 2088, 102]
    with pytest.raises(asyncio.CancelledError):
        await gone
    tokenization.stop()
