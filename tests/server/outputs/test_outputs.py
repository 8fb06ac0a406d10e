"""Cutting, normalising and quantising: pure functions, checked against their definitions."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from trimtab.errors import InternalError
from trimtab.values.column import Column
from trimtab_server.outputs.dense import finish
from trimtab_server.outputs.kind import check_finite


def unit(rows: int = 6, width: int = 32) -> np.ndarray:
    vectors = np.random.default_rng(0).normal(size=(rows, width)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def call(vectors: np.ndarray, **changes: object):
    settings = {"dimensions": vectors.shape[1], "normalized": True, "dtype": "float32", "int8_limit": 0.5}
    return finish(vectors, **{**settings, **changes})  # type: ignore[arg-type]


def test_float32_at_full_width_is_untouched() -> None:
    vectors = unit()
    assert call(vectors).matrix is vectors


@given(st.integers(1, 32))
def test_a_cut_vector_has_length_one_and_the_same_direction(dimensions: int) -> None:
    vectors = unit()
    cut = call(vectors, dimensions=dimensions).matrix
    assert cut.shape == (6, dimensions)
    np.testing.assert_allclose(np.linalg.norm(cut, axis=1), 1, atol=1e-6)
    head = vectors[:, :dimensions]
    np.testing.assert_allclose(cut * np.linalg.norm(head, axis=1, keepdims=True), head, atol=1e-6)


def test_a_space_that_is_not_normalised_is_only_cut() -> None:
    vectors = 3 * unit()
    np.testing.assert_array_equal(call(vectors, dimensions=5, normalized=False).matrix, vectors[:, :5])


@given(
    hnp.arrays(np.float32, (3, 16), elements=st.floats(-2, 2, width=32)),
    st.floats(0.01, 1.0),
)
def test_int8_is_near_where_it_can_be_and_clips_where_it_cannot(vectors: np.ndarray, limit: float) -> None:
    output = call(vectors, normalized=False, dtype="int8", int8_limit=limit)
    assert output.matrix.dtype == np.int8
    back = output.matrix.astype(np.float32) * output.scale
    assert np.abs(back - np.clip(vectors, -limit, limit)).max() <= output.scale / 2 + 1e-5
    assert np.all(np.sign(back) * np.sign(vectors) >= 0), "a large component never wraps to the other sign"


def test_int8_keeps_cosines() -> None:
    vectors = unit(50, 384)
    output = call(vectors, dtype="int8", int8_limit=float(np.abs(vectors).max()))
    back = output.matrix.astype(np.float32)
    cosines = (back * vectors).sum(1) / np.linalg.norm(back, axis=1)
    assert cosines.min() > 0.999


def test_ubinary_holds_the_signs_first_in_the_highest_bit() -> None:
    vectors = np.array([[1, -1, 1, 1, -1, -1, -1, 2, 5, -1, -1, -1, -1, -1, -1, -1]], np.float32)
    output = call(vectors, dtype="ubinary")
    assert output.matrix.tolist() == [[0b10110001, 0b10000000]]


def test_float16_clips_what_it_cannot_hold() -> None:
    vectors = np.array([[1e6, -1e6, 0.5]], np.float32)
    matrix = call(vectors, normalized=False, dtype="float16").matrix
    assert matrix.dtype == np.float16 and np.isfinite(matrix).all()


def test_a_vector_that_is_no_number_is_named() -> None:
    vectors = unit()
    vectors[3, 2] = np.nan
    check_finite({"dense": Column(vectors[:3])}, ("dense",), "texts[{}]".format)
    with pytest.raises(InternalError, match=r"texts\[3\]"):
        check_finite({"dense": Column(vectors)}, ("dense",), "texts[{}]".format)
