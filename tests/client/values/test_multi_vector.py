"""MaxSim against its definition, as loops; and ragged rows on the wire."""

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimtab.errors import InvalidArgument
from trimtab.kinds import Dtype
from trimtab.v1 import encoder_pb2 as pb
from trimtab.values import multi_vector
from trimtab.values.multi_vector import MultiVectors, joined, maxsim

WIDTH = 16
DTYPES: tuple[Dtype, ...] = ("float32", "float16", "int8", "ubinary")
COUNTS = st.lists(st.integers(0, 6), max_size=8)


def made(counts: Sequence[int], dtype: Dtype = "float32", seed: int = 0, width: int = WIDTH) -> MultiVectors:
    """Items with so many rows each."""
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(sum(counts), width)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    offsets = np.cumsum([0, *counts]).astype(np.int64)
    match dtype:
        case "int8":
            return MultiVectors(np.rint(rows * 127).astype(np.int8), offsets, dtype, 1 / 127)
        case "ubinary":
            return MultiVectors(np.packbits(rows > 0, axis=1), offsets, dtype)
        case _:
            return MultiVectors(rows.astype(dtype), offsets, dtype)


def near(query: MultiVectors, one: np.ndarray, documents: MultiVectors, other: np.ndarray) -> float:
    """How near two rows are, component by component."""

    def numbers(of: MultiVectors, row: np.ndarray) -> list[float]:
        if of.dtype == "ubinary":
            bits = [int(byte) >> place & 1 for byte in row for place in range(7, -1, -1)]
            return [(2 * bit - 1) / len(bits) ** 0.5 for bit in bits]
        return [float(each) * (of.scale or 1.0) for each in row]

    return sum(a * b for a, b in zip(numbers(query, one), numbers(documents, other), strict=True))


def by_loops(query: MultiVectors, documents: MultiVectors) -> list[float]:
    return [
        sum(max(near(query, q, documents, d) for d in document) for q in query[0])
        if len(document)
        else -np.inf
        for document in documents
    ]


@given(st.integers(0, 5), COUNTS, st.sampled_from(DTYPES), st.sampled_from(DTYPES), st.integers(0, 99))
def test_maxsim_is_the_sum_of_the_largest_products(
    rows: int, counts: list[int], one: Dtype, other: Dtype, seed: int
) -> None:
    query, documents = made([rows], one, seed), made(counts, other, seed + 1)
    np.testing.assert_allclose(maxsim(query, documents), by_loops(query, documents), atol=1e-5)


def test_it_is_the_same_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = np.random.default_rng(0).integers(0, 30, 200).tolist()
    query, documents = made([7]), made(counts, seed=1)
    whole = maxsim(query, documents)
    for piece in (1, 200, 1000):
        monkeypatch.setattr(multi_vector, "_PIECE", piece)
        np.testing.assert_allclose(maxsim(query, documents), whole, atol=1e-6)


@given(st.lists(st.integers(1, 6), min_size=2, max_size=8), st.randoms(use_true_random=False))
def test_documents_do_not_matter_to_each_other(counts: list[int], shuffle: object) -> None:
    query, documents = made([4]), made(counts, seed=1)
    order = list(range(len(counts)))
    shuffle.shuffle(order)  # type: ignore[attr-defined]
    moved = joined([documents.only(place) for place in order])
    scores = maxsim(query, documents)
    np.testing.assert_allclose(maxsim(query, moved), scores[order], atol=1e-6)
    alone = [maxsim(query, documents.only(place))[0] for place in range(len(counts))]
    np.testing.assert_allclose(alone, scores, atol=1e-6)


def test_rows_in_another_order_and_repeated_rows_change_nothing() -> None:
    query, document = made([5]), made([9], seed=1)
    (score,) = maxsim(query, document)
    again = MultiVectors(np.concatenate([document.vectors[::-1], document.vectors[:3]]), np.array((0, 12)))
    assert maxsim(query, again)[0] == pytest.approx(score, abs=1e-6)
    assert maxsim(query, query)[0] == pytest.approx(5, abs=1e-5), "each row is nearest to itself"


def test_several_queries_at_once() -> None:
    queries, documents = made([2, 0, 3]), made([4, 1], seed=1)
    each = [maxsim(queries.only(row), documents) for row in range(3)]
    np.testing.assert_array_equal(queries.maxsim(documents), each)


def test_what_cannot_be_compared() -> None:
    with pytest.raises(InvalidArgument, match="one query with documents, and these are 2 queries"):
        maxsim(made([1, 1]), made([1]))
    with pytest.raises(InvalidArgument, match="the query's vectors have 8 components, and the documents' 16"):
        maxsim(made([1], width=8), made([1]))
    with pytest.raises(InvalidArgument, match="128 components, and the documents' 16"):
        maxsim(MultiVectors(np.zeros((1, 16), np.uint8), np.array((0, 1)), "ubinary"), made([1]))


@given(COUNTS, st.sampled_from(DTYPES))
def test_the_wire_keeps_everything(counts: list[int], dtype: Dtype) -> None:
    sent, message = made(counts, dtype), pb.MultiVector()
    multi_vector.write(message, sent)
    came = multi_vector.read(pb.MultiVector.FromString(message.SerializeToString()))
    assert len(came) == len(counts) and came.dtype == dtype and came.scale == pytest.approx(sent.scale)
    assert came.vectors.dtype == sent.vectors.dtype and came.offsets.dtype == np.int64
    for one, other in zip(came, sent, strict=True):
        np.testing.assert_array_equal(one, other)
    cut = len(counts) // 2
    parts = [made(counts[:cut], dtype), made(counts[cut:], dtype)]
    assert joined(parts).offsets.tolist() == sent.offsets.tolist()


@pytest.mark.parametrize("offsets", [[], [1, 3], [0, 2], [0, 4], [0, 2, 1, 3]])
def test_offsets_that_do_not_split_the_rows(offsets: list[int]) -> None:
    message = pb.MultiVector()
    multi_vector.write(message, made([3]))
    message.offsets = np.array(offsets, "<i4").tobytes()
    with pytest.raises(InvalidArgument, match="multi-vectors have"):
        multi_vector.read(message)
    message.offsets = b"\0" * 5
    with pytest.raises(InvalidArgument, match="offsets of 5 bytes"):
        multi_vector.read(message)


def test_items_are_found_as_in_a_list() -> None:
    vectors = made([2, 0, 3])
    assert [len(rows) for rows in vectors] == [2, 0, 3] and len(vectors[-1]) == 3
    for place in (3, -4):
        with pytest.raises(IndexError, match="of 3"):
            vectors[place]
