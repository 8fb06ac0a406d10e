"""Queries that need no model: each of their tokens has a weight in a table (SparseStaticEmbedding)."""

from typing import Any

import numpy as np
import tokenizers
from numpy.typing import NDArray

from trimtab.errors import ExportError
from trimtab.outputs.sparse import SparseSettings
from trimtab_export.kinds.sparse import TokenTable
from trimtab_export.load import files, refused
from trimtab_export.load.declared import Declared
from trimtab_export.source import TokenizerFile
from trimtab_export.tokens import Collator


def check(location: str, folder: str) -> None:
    """Refuse a table because of what its files say, before anything is loaded."""
    refused.check(location, Declared((("SparseStaticEmbedding", folder),), {}))
    cure = f"SparseEncoder({location!r}).save({location!r})"
    if files.mapping(location, "config.json", folder).get("path"):
        raise ExportError(
            f"{folder}/config.json of {location} takes the table from elsewhere (path): write it into "
            f"the folder with {cure}"
        )
    if files.find(location, "model.safetensors", folder) is None:
        raise ExportError(
            f"{location} has no {folder}/model.safetensors. Pickles can hold code and are never read: where "
            f"you trust one, write safetensors with {cure}"
        )


def read(source: str, module: Any, words: int, settings: SparseSettings) -> NDArray[np.float32]:
    """The table, float32 (words,), without the stop tokens. ExportError if it does not fit the vocabulary, or
    has numbers that no weight can be."""
    given: NDArray[np.float32] = module.weight.detach().float().numpy()
    if np.any(given[words:]):
        raise ExportError(f"the table of {source} has {len(given)} weights, and its vocabulary {words} words")
    if not np.isfinite(given).all() or (given < 0).any():
        raise ExportError(f"the table of {source} has weights that are below 0, or no numbers")
    table = np.zeros(words, np.float32)
    table[: len(given)] = given[:words]
    table[list(settings.stop_tokens)] = 0
    return table


def scores(tokenizer: TokenizerFile, most: int, table: NDArray[np.float32]) -> TokenTable:
    """The table behind a tokenizer that adds special tokens; the library's own leaves them out.

    Raises ExportError if the tokenizer has more tokens than the table has weights.
    """
    read = tokenizers.Tokenizer.from_str(tokenizer.json)
    highest = max(read.get_vocab(with_added_tokens=True).values())
    if highest >= len(table):
        raise ExportError(
            f"the tokenizer has the id {highest}, and the vocabulary {len(table)} words: take the "
            "token out of it"
        )
    before, after = Collator(tokenizer, most).special
    return TokenTable(table, before, after)


def max_tokens(module: Any, most: int, table: TokenTable) -> int:
    """How many tokens of a query are read, including special tokens; also sets this on the library's module,
    which does not count them."""
    own = module.tokenizer.model_max_length
    room = min(own if own < files.UNLIMITED else most, most)
    module.tokenizer.model_max_length = module.max_seq_length = room
    return int(room) + table.before + table.after
