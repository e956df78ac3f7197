"""What each form of the default model costs in quality and gives in speed: the whole curve. Knows no HTTP."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from convert import quality as figures
from convert import texts as shipped
from convert.catalog import RECIPES
from service.embedding import EmbeddingModel
from service.figures import Quality
from service.manifest import Kind, Precision
from service.options import EmbedOptions
from tests.bench import bare, curve, retrieval, tables
from tests.bench.curve import Point
from tests.bench.server import MODEL
from tests.bench.texts import RetrievalSet

BATCH = 64
BULK_TEXTS = 128
HEADER = ("form", "mean cosine", "worst", "top-10 kept", "floors", "speed")
MIN_SPEED = 1.6  # of int8, to fp32, in bulk
MAX_LOSSES = {Precision.INT8: 0.005, Precision.INT8_BLOCK: 0.002}  # of nDCG@10

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Measured:
    """A form's quality, its nDCG@10 by set, and its bulk speed, fp32 = 1."""

    point: Point
    quality: Quality
    ndcg: Mapping[str, float]
    speed: float


def measure(passages: Sequence[str], sets: Mapping[str, RetrievalSet], runs: int) -> list[Measured]:
    """Measure every form; speeds in turns, the best of `runs`."""
    with tempfile.TemporaryDirectory(prefix="bench-") as work:
        points = curve.points(RECIPES[MODEL], Path(work))
        answers = {}
        for point in points:
            print(f"{point.label}: quality", file=sys.stderr)
            vectors = _embed(point.model, shipped.evaluation(), 1)
            answers[point.label] = vectors, _ndcgs(point.model, sets)
        speeds = _speeds(points, passages[:BULK_TEXTS], runs)
    (exact, _), *_ = answers.values()
    return [
        Measured(
            point,
            figures.of_vectors(answers[point.label][0], exact),
            answers[point.label][1],
            speeds[point.label] / speeds[points[0].label],
        )
        for point in points
    ]


def table(found: Sequence[Measured], command: str) -> list[str]:
    """Lay out the curve and say which targets are met."""
    sets = list(found[0].ndcg)
    header = (*HEADER, *(f"nDCG@10 {name}" for name in sets))
    rows = [
        (
            measured.point.label,
            f"{measured.quality.mean_cosine:.5f}",
            f"{measured.quality.worst_cosine:.4f}",
            f"{measured.quality.top10_overlap or 0:.4f}",
            "met" if figures.is_good(measured.quality, measured.point.precision) else "missed",
            f"{measured.speed:.2f}",
            *(f"{measured.ndcg[name]:.4f}" for name in sets),
        )
        for measured in found
    ]
    title = (
        f"{MODEL}: quality to fp32 over {found[0].quality.num_texts} texts, speed of the bare session on "
        f"{BULK_TEXTS} passages (fp32 = 1)"
    )
    return [*tables.aligned(title, command, header, rows), *_verdicts(found)]


def _verdicts(found: Sequence[Measured]) -> list[str]:
    exact = found[0]
    lines = []
    for measured in found:
        precision = measured.point.precision
        if not measured.point.is_baked:
            continue
        is_good = figures.is_good(measured.quality, precision)
        lines.append(f"target of {precision}: its floors: {tables.verdict(is_good)}")
        if precision == Precision.INT8:
            target = f"target of {precision}: {MIN_SPEED} times fp32"
            lines.append(f"{target}: {tables.verdict(measured.speed >= MIN_SPEED)}")
        if precision in MAX_LOSSES and exact.ndcg:
            losses = {name: exact.ndcg[name] - value for name, value in measured.ndcg.items()}
            told = ", ".join(f"{name} {loss:+.4f}" for name, loss in losses.items())
            is_met = max(losses.values()) <= MAX_LOSSES[precision]
            target = f"target of {precision}: loses at most {MAX_LOSSES[precision]} nDCG@10"
            lines.append(f"{target}: {tables.verdict(is_met)} ({told})")
    return lines


def _embed(model: EmbeddingModel, texts: Sequence[str], batch: int = BATCH) -> Floats:
    options = EmbedOptions(truncate=True)
    parts = [
        model.embed(texts[begin : begin + batch], options).vectors for begin in range(0, len(texts), batch)
    ]
    return np.concatenate(parts)


def _ndcgs(model: EmbeddingModel, sets: Mapping[str, RetrievalSet]) -> dict[str, float]:
    found = {}
    for name, texts in sets.items():
        scores = _embed(model, list(texts.questions.values())) @ _embed(model, [*texts.paragraphs.values()]).T
        found[name] = retrieval.mean_ndcg(scores, texts)
    return found


def _speeds(points: Sequence[Point], passages: Sequence[str], runs: int) -> dict[str, float]:
    """Return runs per second of the same passages, the best of those made in turns."""
    assert all(point.model.manifest.kind == Kind.EMBEDDING for point in points)
    requests = {point.label: bare.record(point.model, passages) for point in points}
    seconds: dict[str, list[float]] = {point.label: [] for point in points}
    for run in range(runs + 1):
        print(f"speed: run {run} of {runs}" if run else "speed: warm-up", file=sys.stderr)
        for point in points:
            session = point.model.graphs.session(None)
            taken = bare.time_runs(session, [requests[point.label]])
            if run:  # the first one warms up
                seconds[point.label].append(taken)
    return {label: 1 / min(taken) for label, taken in seconds.items()}
