"""Unit vectors and their encodings."""

from __future__ import annotations

import base64

import numpy as np
import pytest

from service.encoding import EmbeddingType, encode
from service.pooling import sparse, unit

VECTORS = np.array([[3.0, -4.0, 0.0, 12.0, 1.0, -1.0, 2.0, -2.0, 5.0]], dtype=np.float32)


def test_unit_slices_before_it_normalises() -> None:
    assert np.allclose(unit(VECTORS, 2), [[0.6, -0.8]])
    assert unit(VECTORS, 2).dtype == np.float32


def test_unit_holds_for_large_values() -> None:
    assert np.allclose(unit(np.full((1, 4), 1e30, dtype=np.float32), 4), 0.5)


def test_unit_leaves_zero_alone() -> None:
    assert not unit(np.zeros((1, 3), dtype=np.float32), 3).any()


def test_base64_is_little_endian_float32() -> None:
    (encoded,) = encode(VECTORS, EmbeddingType.BASE64)
    assert isinstance(encoded, str)
    assert np.array_equal(np.frombuffer(base64.b64decode(encoded), dtype="<f4"), VECTORS[0])


def test_binary_packs_signs_most_significant_bit_first_and_fills_with_zeros() -> None:
    # signs 1001 1010 1 -> 0b10011010, 0b10000000 -> 154 - 128, 128 - 128
    assert encode(VECTORS, EmbeddingType.BINARY) == [[26, 0]]


@pytest.mark.parametrize("value", [0.0, -0.0])
def test_zero_is_bit_zero(value: float) -> None:
    assert encode(np.full((1, 8), value, dtype=np.float32), EmbeddingType.BINARY) == [[-128]]


def test_sparse_takes_the_largest_weight_of_an_id_and_drops_zeros_and_excluded_ids() -> None:
    ids = np.array([0, 9, 7, 9, 5, 2])
    weights = np.array([3.0, 0.5, 0.0, 0.25, 1.0, 4.0], dtype=np.float32)
    found = sparse(ids, weights, {0, 2})
    assert found.indices.tolist() == [5, 9]
    assert found.values.tolist() == [1.0, 0.5]


def test_sparse_of_special_tokens_alone_is_empty() -> None:
    found = sparse(np.array([0, 2]), np.ones(2, dtype=np.float32), {0, 2})
    assert (found.indices.size, found.values.size) == (0, 0)
