"""How far a quantized graph's answers are from those of fp32. Pure functions on arrays."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from service.figures import Quality, RankQuality
from service.manifest import Kind, Precision

NUM_NEIGHBOURS = 10


@dataclass(frozen=True)
class Floors:
    """What a rounded precision must reach to be verified."""

    mean_cosine: float = 0.998
    top10_overlap: float = 0.96
    rank_correlation: float = 0.96
    score_error: float = 0.05  # of a reranker's scores: 0 to 1, or listwise -1 to 1


FLOORS = Floors()
FLOORS_OF = {  # where they are others
    Precision.INT4: Floors(mean_cosine=0.96, top10_overlap=0.85, rank_correlation=0.85, score_error=0.2)
}

# What a search for a mixture asks for: more than the floors of int8, for other texts will judge it.
SEARCH_FLOORS = Floors(mean_cosine=0.9983, top10_overlap=0.963, rank_correlation=0.963, score_error=0.045)

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


def compared(kind: Kind, answers: Floats, exact: Floats) -> Quality | RankQuality:
    """Compare what a model of a kind answers with what it answers in fp32."""
    return of_scores(answers, exact) if kind == Kind.RERANKER else of_vectors(answers, exact)


def distance(kind: Kind, answers: Floats, exact: Floats) -> float:
    """Return one number for how far answers are from exact ones: 1 - mean cosine, or mean error of scores."""
    if kind == Kind.RERANKER:
        return float(np.abs(answers - exact).mean())
    return float(1 - np.einsum("nd,nd->n", answers.astype(np.float64), exact.astype(np.float64)).mean())


def is_good(found: Quality | RankQuality, precision: Precision, floors: Floors | None = None) -> bool:
    """Tell whether every figure reaches the floor of its precision, or `floors`. NaN does not."""
    floors = floors or FLOORS_OF.get(precision, FLOORS)
    if isinstance(found, RankQuality):
        is_near = found.worst_score_error <= floors.score_error
        return is_near and found.rank_correlation >= floors.rank_correlation
    is_near = found.mean_cosine >= floors.mean_cosine
    return is_near and (found.top10_overlap is None or found.top10_overlap >= floors.top10_overlap)


def _ranks(scores: Floats) -> npt.NDArray[np.int64]:
    return np.argsort(np.argsort(scores, kind="stable"), kind="stable")


def _neighbours(vectors: Floats) -> list[set[int]]:
    similarities = vectors @ vectors.T
    np.fill_diagonal(similarities, -np.inf)
    count = min(NUM_NEIGHBOURS, len(vectors) - 1)
    return [set(row[:count].tolist()) for row in np.argsort(-similarities, axis=1, kind="stable")]
