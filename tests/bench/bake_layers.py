"""The bake of qwen3-embedding-8b with few of its layers, and what all of them would take. Serves nothing.

Disk and time grow with each layer by the same; memory must not grow: a tensor at a time is read.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from service.manifest import Precision
from tests.bench import full_size_qwen, memory, models, tables
from tests.bench.full_size_qwen import QWEN3_8B
from tests.bench.models import Model

HEADER = ("layers", "GB checkpoint", "seconds", "GB peak anonymous", "GB disk")
MAX_GROWTH = 1.1  # of the peak, from the fewest layers to the most: noise of sampling and of the allocator


@dataclass(frozen=True)
class Figures:
    """What a bake took and left."""

    num_layers: int
    checkpoint_bytes: float
    seconds: float
    peak_bytes: float
    disk_bytes: float


def measure(num_layers: int, precisions: tuple[Precision, ...], tokenizer: Path, work: Path) -> Figures:
    """Write a checkpoint where it is missing and bake it."""
    shapes = full_size_qwen.decoder_shapes(QWEN3_8B, num_layers)
    write = partial(full_size_qwen.write_qwen3_embedding_8b, num_layers=num_layers)
    model = Model(models.QWEN3_8B, sum(map(math.prod, shapes.values())), write)
    source = models.checkpoint(model, work / f"{model.name}-{num_layers}-layers", tokenizer)
    baked: memory.Measured = models.bake(model, source, precisions, (), work / models.BUNDLES)
    bundle = work / models.BUNDLES / model.name
    disk = sum(models.bytes_on_disk(bundle, precision) for precision in precisions)
    figures = Figures(num_layers, 2 * model.num_parameters, baked.seconds, baked.peak_anonymous_bytes, disk)
    print(f"{model.name}: layers {num_layers}: {figures.seconds:.1f} s", file=sys.stderr)
    return figures


def table(found: Sequence[Figures], precisions: Sequence[Precision], command: str) -> list[str]:
    """Lay out what was measured and, from the fewest and the most layers, what all of them need."""
    rows = [_row(figures) for figures in found]
    verdicts = []
    fewest, most = (pick(found, key=lambda figures: figures.num_layers) for pick in (min, max))
    if fewest.num_layers < most.num_layers:
        rows.append((f"{QWEN3_8B.layers} (computed)", *_row(_extrapolated(fewest, most))[1:]))
        growth = most.peak_bytes / fewest.peak_bytes
        verdicts.append(
            f"target: peak memory does not grow with the layers: {growth:.2f} times from {fewest.num_layers} "
            f"to {most.num_layers}, {tables.verdict(growth <= MAX_GROWTH)}"
        )
    title = f"bake of {models.QWEN3_8B}, random weights in bfloat16, to {', '.join(precisions)}"
    return [*tables.aligned(title, command, HEADER, rows), *verdicts]


def _extrapolated(fewest: Figures, most: Figures) -> Figures:
    """Continue disk and time by the difference of two bakes; keep the higher peak."""
    steps = (QWEN3_8B.layers - most.num_layers) / (most.num_layers - fewest.num_layers)

    def further(name: str) -> float:
        reached, before = float(getattr(most, name)), float(getattr(fewest, name))
        return reached + steps * (reached - before)

    return replace(
        most,
        num_layers=QWEN3_8B.layers,
        peak_bytes=max(fewest.peak_bytes, most.peak_bytes),
        **{name: further(name) for name in ("checkpoint_bytes", "seconds", "disk_bytes")},
    )


def _row(figures: Figures) -> tables.Row:
    gigabytes = [f"{number / 1e9:.2f}" for number in (figures.peak_bytes, figures.disk_bytes)]
    checkpoint = f"{figures.checkpoint_bytes / 1e9:.2f}"
    return str(figures.num_layers), checkpoint, f"{figures.seconds:.1f}", *gigabytes
