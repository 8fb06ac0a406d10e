"""The texts that every export is checked on: many languages and scripts, queries, passages, odd ones."""

from collections.abc import Callable
from importlib import resources

# Hostile but legal: the empty text, white space, control characters, bytes that tokenizers often drop.
ODD = (
    "",
    "   \n\t ",
    "tab\tbell\x07 null\x00 escape\x1b[0m end",
    "zero\u200bwidth\ufeff \u202eright to left",
)


def load() -> list[str]:
    """The shipped sentences, one per line, and the odd ones."""
    text = resources.files("trimtab_export").joinpath("data/sentences.txt").read_text("utf-8")
    return [*text.rstrip("\n").split("\n"), *ODD]


def of_length(least: int, count: Callable[[str], int]) -> str:
    """A text of at least `least` tokens by `count`: the shipped sentences, repeated.

    It ends earlier if more text gives no more tokens, so `count` may cut at any length.
    """
    passage = " ".join(text for text in load() if text.strip())
    text, before, now = passage, 0, count(passage)
    while before < now < least:
        text, before = f"{text} {passage}", now
        now = count(text)
    return text
