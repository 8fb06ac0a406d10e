"""The words behind the components of sparse vectors, read from a tokenizer's file."""

from pathlib import Path
from typing import Any

import msgspec

from trimtab.errors import BundleError

MOST_WORDS = 1 << 24
TOKENIZER = "tokenizer.json"


def read_vocabulary(path: Path | str) -> list[str]:
    """The token of each id, "" for ids without one, from a bundle's folder or a tokenizer.json.

    A component of a sparse vector is the weight of the token with its number: see `SparseVectors.words`.
    Raises BundleError if the file is no tokenizer. Needs no package besides this one.
    """
    file = Path(path, TOKENIZER) if Path(path).is_dir() else Path(path)
    try:
        content = msgspec.json.decode(file.read_bytes(), type=dict[str, Any])
        tokens = _tokens(content)
    except OSError as error:
        raise BundleError(f"{file} cannot be read: {error.strerror}") from None
    except (msgspec.MsgspecError, KeyError, TypeError, ValueError) as error:
        raise BundleError(f"{file} is no tokenizer of the package tokenizers: {error!r}") from None
    highest = max(tokens, default=-1)
    if not 0 <= highest < MOST_WORDS or min(tokens) < 0:
        raise BundleError(f"{file} has ids that are not between 0 and {MOST_WORDS - 1}")
    return [tokens.get(number, "") for number in range(highest + 1)]


def _tokens(content: dict[str, Any]) -> dict[int, str]:
    """Tokens by id: those of the model, a mapping or, for Unigram, a list; then the added ones."""
    vocabulary = content["model"]["vocab"]
    if isinstance(vocabulary, dict):
        tokens = {int(number): str(token) for token, number in vocabulary.items()}
    else:
        tokens = {number: str(piece) for number, (piece, _) in enumerate(vocabulary)}
    return tokens | {int(each["id"]): str(each["content"]) for each in content.get("added_tokens", ())}
