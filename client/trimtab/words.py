"""Where a long text may be cut before it is tokenised, so that its first or last tokens stay the same.

    ... a word| and another ...      between a letter and a single space that a letter follows

This holds if every part of the tokenizer is known to act on each word by itself. Normalizers like NFKC join a
character with the marks that follow it, but at such a place there are a letter, a space and a letter. The
pre-tokenizers below split before or at a space, depending on the characters on both sides. Models see one
piece at a time. No added token spans a space. With any other part, such as a custom pattern, this cannot be
known, and texts are tokenised whole.
"""

import json
import re
from typing import Any

import tokenizers

_NORMALIZERS = {
    *("BertNormalizer", "Lowercase", "NFC", "NFD", "NFKC", "NFKD", "Nmt", "Precompiled"),
    "StripAccents",
}
_PRE_TOKENIZERS = {
    *("BertPreTokenizer", "ByteLevel", "Digits", "Metaspace", "Punctuation", "Whitespace", "WhitespaceSplit"),
}
_MODELS = {"BPE", "Unigram", "WordLevel", "WordPiece"}
# Runs of spaces become one: a single space stays.
_SPACES = {"Regex": " {2,}"}
_BOUNDARY = re.compile("[A-Za-zА-Яа-я](?= [A-Za-zА-Яа-я])")
# How far from the limit a boundary is looked for, in characters.
_WINDOW = 1024


def acts_by_words(tokenizer: tokenizers.Tokenizer) -> bool:
    """Whether any text's first tokens are those of its `beginning`, and its last ones those of its `end`."""
    parts = json.loads(tokenizer.to_str())
    model = parts["model"]
    if model.get("type") not in _MODELS or model.get("dropout"):
        return False
    if not all(_known(each) for each in _flat(parts["normalizer"], "normalizers")):
        return False
    splits = list(_flat(parts["pre_tokenizer"], "pretokenizers"))
    if not splits or any(each["type"] not in _PRE_TOKENIZERS for each in splits):
        return False
    if not all(_within_a_word(each) for each in parts["added_tokens"]):
        return False
    text = "ab cd" if tokenizer.normalizer is None else tokenizer.normalizer.normalize_str("ab cd")
    pieces = [piece for piece, _ in tokenizer.pre_tokenizer.pre_tokenize_str(text)]
    return len(pieces) > 1 and not any({*"ab"} & {*piece} and {*"cd"} & {*piece} for piece in pieces)


def beginning(text: str, characters: int) -> str:
    """At most so many characters from a text's beginning; the whole text if there is no place to cut."""
    if len(text) <= characters:
        return text
    places = _BOUNDARY.finditer(text, max(characters - _WINDOW, 0), characters)
    return text[: max((place.end() for place in places), default=len(text))]


def end(text: str, characters: int) -> str:
    """At most so many characters from a text's end; the whole text if there is no place to cut."""
    start = len(text) - characters
    if start <= 0:
        return text
    place = _BOUNDARY.search(text, start, start + _WINDOW)
    return text[place.end() :] if place else text


def _flat(part: dict[str, Any] | None, within: str) -> list[dict[str, Any]]:
    """The parts of a sequence, flattened: a sequence may hold others."""
    if part is None:
        return []
    if part["type"] != "Sequence":
        return [part]
    return [each for inner in part[within] for each in _flat(inner, within)]


def _known(normalizer: dict[str, Any]) -> bool:
    if normalizer["type"] == "Replace":
        return bool(normalizer["pattern"] == _SPACES)
    if normalizer["type"] == "Strip":
        return not normalizer["strip_left"]  # otherwise an end would lose its first space
    return normalizer["type"] in _NORMALIZERS


def _within_a_word(token: dict[str, Any]) -> bool:
    """Whether a token contains no space, even after normalisation, and takes none that follows it."""
    content = str(token["content"])
    return (
        not token["rstrip"]
        and not any(each.isspace() for each in content)
        and (content.isascii() or not token["normalized"])
    )
