"""From states and weights of tokens to vectors. Arithmetic on arrays; knows no model."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

SMALLEST_NORM = 1e-12  # as torch.nn.functional.normalize

Floats = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int64]


@dataclass(frozen=True)
class SparseVector:
    """Weights of token ids, ids ascending."""

    indices: Ids
    values: Floats


def unit(vectors: npt.NDArray[np.floating], dimensions: int) -> Floats:
    """Keep the first `dimensions` columns of (n, d) and scale every row to length 1."""
    kept = vectors[:, :dimensions]
    norms = np.linalg.norm(kept.astype(np.float64), axis=1, keepdims=True)  # squares overflow float32
    return np.ascontiguousarray(kept / np.maximum(norms, SMALLEST_NORM), dtype=np.float32)


def sparse(ids: Ids, weights: Floats, excluded: Collection[int]) -> SparseVector:
    """Give every token id of a text the largest of its weights (tokens,); keep what is above 0, not excluded.

    Source: FlagEmbedding, M3Embedder.
    """
    unique, places = np.unique(ids, return_inverse=True)
    largest = np.zeros(len(unique), dtype=np.float32)
    np.maximum.at(largest, places, weights)
    kept = (largest > 0) & ~np.isin(unique, list(excluded))
    return SparseVector(unique[kept], largest[kept])


class SpanMeans:
    """Means of token states over spans, fed window by window."""

    def __init__(self, num_spans: int, size: int) -> None:
        """Start with nothing in any span."""
        self._sums = np.zeros((num_spans, size))
        self._counts = np.zeros(num_spans)

    def add(self, states: Floats, spans: Ids) -> None:
        """Add (tokens, size) states; `spans` (tokens,), ascending, names each token's span, -1 for none."""
        kept = spans >= 0
        begins = np.flatnonzero(np.diff(spans[kept], prepend=-1))
        found = spans[kept][begins]
        self._sums[found] += np.add.reduceat(states[kept], begins, axis=0, dtype=np.float64)
        self._counts[found] += np.diff(begins, append=kept.sum())

    def means(self) -> npt.NDArray[np.float64]:
        """Return (spans, size)."""
        return np.asarray(self._sums / self._counts[:, None])
