"""What is said of a store's vectors before a re-index begins."""

from pathlib import Path
from typing import cast

import pytest

import trimtab
from bench.chaos import halves
from trimtab.kinds import Similarity
from trimtab.migration import claims
from trimtab.stores import Document, Form, Rows, create_store


@pytest.mark.parametrize(
    ("similarity", "factor", "said"),
    [
        ("cosine", 1.0, ""),
        ("cosine", 3.0, ""),
        ("dot", 1.0, ""),
        ("euclidean", 1.0, ""),
        ("dot", 3.0, "they are 3 times as long as old's, and similarity dot"),
        ("euclidean", 0.5, "they are 0.5 times as long as old's, and similarity euclidean"),
        ("manhattan", 1.0, "compares them by manhattan, and old's are made for cosine"),
    ],
)
def test_metric_encoder_and_lengths_are_looked_at_together(
    tmp_path: Path, similarity: Similarity, factor: float, said: str
) -> None:
    texts = [f"text {number}" for number in range(20)]
    form = Form(space=halves.OLD.space, dimensions=halves.OLD.dimensions, similarity=similarity)
    documents = [Document(number, text) for number, text in enumerate(texts)]
    with create_store(f"faiss:{tmp_path}", form) as store:
        store.upsert(Rows(documents, factor * halves.old(texts)))
        found = claims.check_source(cast("trimtab.Client", halves.InProcessClient()), store)
    assert "20 sampled vectors" in found
    assert said in found and ("; but" in found) == bool(said)
