"""Which text serves for what."""

from dataclasses import replace

import pytest

from trimtab.errors import AdapterError
from trimtab_export.adapters import split
from trimtab_export.adapters.inputs import Query, RelevantPair

PAIRS = [RelevantPair(Query(f"query {number}"), f"document {number}") for number in range(600)]
TEXTS = [f"text {number}" for number in range(50)]
QUERIES = [Query("one more query"), Query("query 7")]


def test_pairs_that_judge_nothing_teach() -> None:
    found = split.by_pairs(TEXTS, QUERIES, PAIRS, documents=1000)
    taught = {
        query.text: [found.documents[row] for row in right]
        for query, right in zip(found.fit_queries, found.fit_right, strict=True)
    }
    judging = {query.text for judged in (found.select, found.test) for query in judged.queries}
    assert len(judging) == 480
    assert {name for name, right in taught.items() if right} == {pair.query.text for pair in PAIRS} - judging
    assert all(right == [name.replace("query", "document")] for name, right in taught.items() if right)
    assert taught["one more query"] == []


def test_of_a_small_index_only_what_it_holds_is_taught() -> None:
    found = split.by_pairs(TEXTS, [], PAIRS, documents=500)
    assert len(found.documents) == 500
    assert sum(1 for right in found.fit_right if right) == 20


def test_what_judges_may_not_teach() -> None:
    found = split.by_pairs(TEXTS, [], PAIRS, documents=1000)
    with pytest.raises(AdapterError, match="a document that answers a held-out query is in two of the sets"):
        split.checked(replace(found, fit_right=[found.test.right[0], *found.fit_right[1:]]))
