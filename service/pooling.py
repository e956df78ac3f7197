"""From pooled states to unit vectors. Pure functions on arrays."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

SMALLEST_NORM = 1e-12  # as torch.nn.functional.normalize

Floats = npt.NDArray[np.float32]


def unit(vectors: Floats, dimensions: int) -> Floats:
    """Keep the first `dimensions` columns of (n, d) and scale every row to length 1."""
    kept = vectors[:, :dimensions]
    norms = np.linalg.norm(kept.astype(np.float64), axis=1, keepdims=True)  # squares overflow float32
    return np.ascontiguousarray(kept / np.maximum(norms, SMALLEST_NORM), dtype=np.float32)
