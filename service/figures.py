"""What a bake has measured of a graph: quality, speed, distance from a reference. Data only."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Quality:
    """A variant against fp32 over `num_texts` texts; overlap is the share of 10 nearest neighbours kept."""

    mean_cosine: float
    worst_cosine: float
    top10_overlap: float | None = None  # not of too few to have neighbours
    num_texts: int  # or images


@dataclass(frozen=True, kw_only=True)
class Speed:
    """Tokens per second of one run of 8 rows x 128 tokens on one instruction set."""

    tokens_per_second: float
    instruction_set: str
    num_threads: int


@dataclass(frozen=True, kw_only=True)
class Reference:
    """The fp32 variant against vectors, states or cosines of the reference implementation."""

    max_abs_difference: float
    num_texts: int
    passed: bool
    worst_cosine: float | None = None  # not where cosines themselves are compared


@dataclass(frozen=True, kw_only=True)
class RankQuality:
    """A reranker's variant against fp32: rank correlation within a query (mean), largest error of a score."""

    rank_correlation: float
    worst_score_error: float
    num_pairs: int
