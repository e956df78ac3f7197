"""How far a quantized graph's answers are from those of fp32. Pure functions on arrays."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from service.figures import Quality, RankQuality

NUM_NEIGHBOURS = 10
# A quantized precision below one of these is not verified.
FLOORS = {"mean_cosine": 0.998, "top10_overlap": 0.96}
RANK_FLOORS = {"rank_correlation": 0.96}
MAX_SCORE_ERROR = 0.05  # of a reranker's scores: 0 to 1, or listwise -1 to 1

Floats = npt.NDArray[np.float32]


def of_vectors(vectors: Floats, exact: Floats) -> Quality:
    """Compare unit vectors with those of fp32: cosines, and how many of the nearest neighbours stay."""
    cosines = np.einsum("nd,nd->n", vectors.astype(np.float64), exact.astype(np.float64))
    shared = [
        len(ours & theirs) for ours, theirs in zip(_neighbours(vectors), _neighbours(exact), strict=True)
    ]
    count = min(NUM_NEIGHBOURS, len(exact) - 1)
    return Quality(
        mean_cosine=round(float(cosines.mean()), 6),
        worst_cosine=round(float(cosines.min()), 6),
        top10_overlap=round(float(np.mean(shared)) / count, 6),
        num_texts=len(exact),
    )


def of_scores(scores: Floats, exact: Floats) -> RankQuality:
    """Compare scores (queries, documents) with fp32: Spearman's rank correlation, mean over queries."""
    correlations = [
        float(np.corrcoef(_ranks(ours), _ranks(theirs))[0, 1])
        for ours, theirs in zip(scores, exact, strict=True)
    ]
    return RankQuality(
        rank_correlation=round(float(np.mean(correlations)), 6),
        worst_score_error=round(float(np.abs(scores - exact).max()), 6),
        num_pairs=exact.size,
    )


def is_good(found: Quality | RankQuality) -> bool:
    """Tell whether every figure reaches its floor, and no score is too far off."""
    floors = FLOORS if isinstance(found, Quality) else RANK_FLOORS
    is_near = isinstance(found, Quality) or found.worst_score_error <= MAX_SCORE_ERROR
    return is_near and all(getattr(found, name) >= floor for name, floor in floors.items())


def _ranks(scores: Floats) -> npt.NDArray[np.int64]:
    return np.argsort(np.argsort(scores, kind="stable"), kind="stable")


def _neighbours(vectors: Floats) -> list[set[int]]:
    similarities = vectors @ vectors.T
    np.fill_diagonal(similarities, -np.inf)
    count = min(NUM_NEIGHBOURS, len(vectors) - 1)
    return [set(row[:count].tolist()) for row in np.argsort(-similarities, axis=1, kind="stable")]
