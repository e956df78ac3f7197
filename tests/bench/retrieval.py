"""Retrieval quality through HTTP: recall@1 and nDCG@10. Knows vectors and gains, nothing of time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from service.manifest import Precision
from tests.bench import load, tables
from tests.bench.errors import BenchError
from tests.bench.server import Service
from tests.bench.texts import RetrievalSet

TEXTS_PER_REQUEST = 64
DEPTH = 10  # of nDCG
HEADER = ("precision", "recall@1", "to fp32", "nDCG@10", "to fp32")
# What sentence-transformers gives with this model on XQuAD English, and how near fp32 has to come.
REFERENCE_RECALL, REFERENCE_NDCG, TOLERANCE = 0.885, 0.943, 0.003
MAX_LOSS = 0.002  # of int8-block to fp32

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Figures:
    """Means over the questions."""

    recall: float
    ndcg: float


def measure(service: Service, texts: RetrievalSet) -> Figures:
    """Embed questions and paragraphs through HTTP and rank every paragraph for every question."""
    names = list(texts.paragraphs)
    questions = _embed(service, list(texts.questions.values()))
    scores = questions @ _embed(service, list(texts.paragraphs.values())).T  # (questions, paragraphs)
    ranked = np.argsort(-scores, axis=1, kind="stable")[:, :DEPTH]
    found = [
        (texts.gains[question], [names[index] for index in row])
        for question, row in zip(texts.questions, ranked, strict=True)
    ]
    return Figures(
        recall=float(np.mean([recall_at_1(gains, ranking) for gains, ranking in found])),
        ndcg=float(np.mean([ndcg(gains, ranking) for gains, ranking in found])),
    )


def mean_ndcg(scores: Floats, texts: RetrievalSet) -> float:
    """Return the mean nDCG of scores (questions, paragraphs)."""
    names = list(texts.paragraphs)
    ranked = np.argsort(-scores, axis=1, kind="stable")[:, :DEPTH]
    rankings = zip(texts.questions, ranked, strict=True)
    return float(np.mean([ndcg(texts.gains[key], [names[index] for index in row]) for key, row in rankings]))


def recall_at_1(gains: Mapping[str, float], ranking: Sequence[str]) -> float:
    """Return the share of the relevant paragraphs that is ranked first."""
    num_relevant = sum(gain > 0 for gain in gains.values())
    return (gains.get(ranking[0], 0) > 0) / num_relevant


def ndcg(gains: Mapping[str, float], ranking: Sequence[str]) -> float:
    """Return the discounted gain of the ranking as a share of the best possible one, both to `DEPTH`."""
    best = sorted(gains.values(), reverse=True)
    return _discounted([gains.get(name, 0.0) for name in ranking]) / _discounted(best)


def table(found: Mapping[Precision, Figures], source: str, command: str) -> list[str]:
    """Lay out the figures and their distance to fp32."""
    base = found.get(Precision.FP32)
    rows = [
        (
            precision,
            f"{figures.recall:.4f}",
            f"{figures.recall - base.recall:+.4f}" if base else "-",
            f"{figures.ndcg:.4f}",
            f"{figures.ndcg - base.ndcg:+.4f}" if base else "-",
        )
        for precision, figures in found.items()
    ]
    title = f"retrieval through HTTP, {TEXTS_PER_REQUEST} texts a request; {source}"
    return [*tables.aligned(title, command, HEADER, rows), *_verdicts(found)]


def _verdicts(found: Mapping[Precision, Figures]) -> list[str]:
    lines = []
    base, block = found.get(Precision.FP32), found.get(Precision.INT8_BLOCK)
    if base:
        distance = max(abs(base.recall - REFERENCE_RECALL), abs(base.ndcg - REFERENCE_NDCG))
        target = f"{REFERENCE_RECALL} and {REFERENCE_NDCG} as sentence-transformers, within {TOLERANCE}"
        lines.append(f"target of fp32: {target}: {tables.verdict(distance <= TOLERANCE)}")
    if base and block:
        loss = max(base.recall - block.recall, base.ndcg - block.ndcg)
        lines.append(
            f"target of int8-block: loses at most {MAX_LOSS} to fp32: {tables.verdict(loss <= MAX_LOSS)}"
        )
    return lines


def _embed(service: Service, texts: Sequence[str]) -> Floats:
    bodies = [
        load.encode(texts[start : start + TEXTS_PER_REQUEST])
        for start in range(0, len(texts), TEXTS_PER_REQUEST)
    ]
    answers = load.run(service, [iter(bodies)]).parsed()
    vectors = np.array(
        [item["embedding"] for answer in answers for item in answer["data"]], dtype=np.float32
    )  # (texts, dimensions)
    if len(vectors) != len(texts):
        raise BenchError(f"{len(texts)} texts were sent, {len(vectors)} vectors came back")
    return vectors


def _discounted(gains: Sequence[float]) -> float:
    return float(sum(gain / np.log2(rank + 2) for rank, gain in enumerate(gains[:DEPTH])))
