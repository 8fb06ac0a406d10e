"""Parquet files with several outputs, as `trimtab embed --outputs` writes them, opened as stores."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
from pyarrow import parquet

import trimtab
from tests.client.stores.conftest import address
from tests.client.stores.test_outputs import FORMS, WIDTH, D, brute, check_hits, check_values, made, query_of
from trimtab.commands import shards
from trimtab.commands.description import Description, OutputDescription
from trimtab.core.answers import Outputs, StageTimes
from trimtab.stores import Rows, create_store, open_store

ROWS = made(200)


def block(rows: Rows, path: Path) -> Path:
    """The file of a block of these rows, in two parts."""
    described = {
        name: OutputDescription(
            form=form.kind, space=form.space or "", dimensions=form.dimensions, similarity=form.similarity
        )
        for name, form in FORMS.items()
    }
    description = Description(
        encoder="e", version="1", space="space-d", role=None, truncate="end", dtype="float32", columns=D,
        outputs=described,
    )  # fmt: skip
    cuts = (range(120), range(120, len(rows)))
    shards.write_outputs(path, 0, [part(rows, list(cut)) for cut in cuts], description)
    return path


def part(rows: Rows, places: list[int]) -> Outputs:
    """What the SDK gives of these rows."""
    cut = trimtab.stores.columns.chosen(rows, places, FORMS)
    return Outputs(
        by_name={"dense": cut.vectors, **cut.others}, forms={}, spaces={}, scales={}, adapters={},
        token_counts=np.ones(len(places), np.uint32), encoder="e", version="1", variant="", browned_out=False,
        times=StageTimes(),
    )  # fmt: skip


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return block(ROWS, tmp_path / "block.parquet")


def test_all_outputs_are_read(path: Path) -> None:
    with open_store(str(path)) as store:
        assert store.outputs == FORMS and list(store.beside) == []
        assert store.count() == 200
        found = store.get([5, 100, 999, 150])
        assert found.ids == [5, 100, 150]
        check_values(found, ROWS, [5, 100, 150])


@pytest.mark.parametrize("output", FORMS)
def test_each_output_is_searched(path: Path, output: str) -> None:
    texts = Rows([trimtab.stores.Document(id, None) for id in range(200)], ROWS.vectors, ROWS.others)
    queries = made(6, seed=8)
    with open_store(str(path)) as store:
        for place in range(6):
            query = query_of(queries, place)[output]
            for k in (1, 10, 300):
                check_hits(store.search_output(output, query, k), texts, output, query, k)
        with pytest.raises(trimtab.InvalidArgument, match="no output 'bm25'; it has 'dense', 'sparse'"):
            store.search_output("bm25", query, 3)
        with pytest.raises(trimtab.InvalidArgument, match="takes the pair"):
            store.search_output("sparse", np.ones(3), 3)
    assert brute(ROWS, output, query, 1)


@pytest.mark.parametrize("kind", ["qdrant", "postgresql"])
def test_a_file_fills_a_store(kind: str, path: Path, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    with open_store(str(path)) as source:
        with create_store(address(kind, tmp_path, request), source.outputs, example=0) as target:
            for rows in source.batches(64):
                target.upsert(rows)
            assert target.count() == 200
            check_values(target.get([3, 199]), ROWS, [3, 199])


def test_another_dense_output_by_its_name(tmp_path: Path) -> None:
    """Each has the space that is recorded for it, not another's."""
    recorded = {
        name: {"form": "dense", "space": f"space of {name}", "dimensions": 2, "similarity": "dot"}
        for name in ("title", "body")
    }
    table = pyarrow.table({"id": [1, 2], "title": [[1.0, 0.0]] * 2, "body": [[0.0, 1.0]] * 2})
    table = table.replace_schema_metadata({"trimtab_outputs": json.dumps(recorded)})
    parquet.write_table(table, tmp_path / "docs.parquet")
    for named, output in (("", "title"), ("#?vector=body", "body")):
        with open_store(f"{tmp_path / 'docs.parquet'}{named}") as store:
            assert store.output == output and store.form.space == f"space of {output}"
            assert store.form.similarity == "dot" and len(store.outputs) == 1
            assert store.beside == [{"title": "body", "body": "title"}[output]]


def without(name: str) -> Callable[[Any], Any]:
    return lambda table: table.drop_columns([name])


def replaced(name: str, value: Any) -> Callable[[Any], Any]:
    return lambda table: table.set_column(
        table.column_names.index(name), name, pyarrow.array([value] * len(table))
    )


def noted(content: str) -> Callable[[Any], Any]:
    return lambda table: table.replace_schema_metadata({"trimtab_outputs": content})


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        (without("sparse_values"), trimtab.InvalidArgument, "no column 'sparse_values' of one"),
        (without("multi_vector"), trimtab.InvalidArgument, "no column 'multi_vector' of one"),
        (without("dense"), trimtab.InvalidArgument, "has no column 'dense'"),
        (replaced("sparse_values", [1.0]), trimtab.InvalidArgument, "more indices than values, or fewer"),
        (replaced("sparse_values", None), trimtab.InvalidArgument, "'sparse' is missing in 200 rows"),
        (replaced("multi_vector", [[1.0] * (WIDTH + 1)]), trimtab.InvalidArgument, "not of 6 numbers"),
        (noted("{"), trimtab.ConfigError, "records outputs that this Trimtab cannot read"),
        (
            noted('{"sparse": {"form": "sparse", "space": "s", "dimensions": 9, "similarity": "dot"}}'),
            trimtab.ConfigError,
            "has sparse, and none is dense",
        ),
    ],
)
def test_files_that_are_not_what_they_say(
    path: Path, damage: Callable[[Any], Any], error: type[Exception], message: str
) -> None:
    parquet.write_table(damage(parquet.read_table(path)), path)
    with pytest.raises(error, match=message):
        open_store(str(path))
