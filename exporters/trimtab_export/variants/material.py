"""The texts that variants are measured and trained on: the user's, or docstrings; never the same for both."""

from dataclasses import dataclass
from pathlib import Path

from trimtab_export.texts import gather as texts_at_hand
from trimtab_export.variants import retrieval
from trimtab_export.variants.retrieval import Pairs

QUERIES = 500
DOCUMENTS = 1000
ENOUGH = 2000  # texts of the user below which docstrings are added


@dataclass(frozen=True)
class Material:
    """Held-out pairs, and texts for calibration and training, by their kind, of which none is among them.

    `watched` are pairs of a kind that is neither trained on nor judged by.
    """

    pairs: Pairs
    kinds: list[list[str]]
    watched: Pairs | None = None


def gather(pairs: Path | None, texts: Path | None) -> Material:
    """From files of pairs and of texts, where they are given.

    Pairs come from the file of pairs, else are made of the texts, else of docstrings; the texts to train on
    are those of the other file, the pairs beyond the held-out ones, and docstrings where both are few.
    """
    given = retrieval.lines(texts) if texts is not None else []
    if pairs is not None:
        name, found = pairs.name, retrieval.load(pairs)
    elif texts is not None:
        name, found = f"pairs made of {texts.name}", retrieval.split(given)
    else:
        name, found = "docstrings", texts_at_hand.docstrings()
    held = retrieval.held_out(name, found, QUERIES, DOCUMENTS)
    taken = {*held.queries, *held.documents}
    if pairs is None and texts is not None:  # a held-out pair and the text that it was cut from
        taken |= {f"{query} {document}" for query, document in found if document in taken}
    kinds = [[text for text in given if " ".join(text.split()) not in taken and text not in taken]]
    if texts is None:
        kinds.append([text for pair in found for text in pair if text not in taken])
    if sum(map(len, kinds)) < ENOUGH and name != "docstrings":
        kinds.append([text for pair in texts_at_hand.docstrings() for text in pair if text not in taken])
    return Material(held, [list(dict.fromkeys(kind)) for kind in kinds if kind])
