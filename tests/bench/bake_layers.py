"""The bake of a large model with few of its text layers, and what all would take. Serves nothing.

Disk and time grow with each layer by the same; memory must not grow: a tensor at a time is read. The vision
tower of jina-embeddings-v4 has all of its blocks, and its three tasks a graph each.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from service.manifest import Precision
from tests.bench import full_size_qwen, full_size_v4, memory, models, tables
from tests.bench.full_size_qwen import QWEN3_8B
from tests.bench.full_size_v4 import ADAPTERS, JINA_V4
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


@dataclass(frozen=True)
class Deep:
    """A model that is too deep to be baked whole here."""

    name: str
    num_layers: int  # all
    with_layers: Callable[[int], Model]
    tasks: tuple[str, ...] = ()
    max_peak_bytes: float | None = None  # that the bake may take


def _qwen3_8b(num_layers: int) -> Model:
    shapes = full_size_qwen.decoder_shapes(QWEN3_8B, num_layers)
    write = partial(full_size_qwen.write_qwen3_embedding_8b, num_layers=num_layers)
    return Model(models.QWEN3_8B, sum(map(math.prod, shapes.values())), write)


def _jina_v4(num_layers: int) -> Model:
    sizes = JINA_V4.few(num_layers, JINA_V4.blocks)
    write = partial(full_size_v4.write, sizes=sizes)
    return Model(full_size_v4.NAME, sizes.num_parameters(ADAPTERS), write, has_adapters=True)


QWEN3_8B_BAKE = Deep(models.QWEN3_8B, QWEN3_8B.layers, _qwen3_8b)
JINA_V4_BAKE = Deep(full_size_v4.NAME, JINA_V4.text.layers, _jina_v4, ADAPTERS, max_peak_bytes=6e9)


def measure(
    deep: Deep, num_layers: int, precisions: tuple[Precision, ...], tokenizer: Path, work: Path
) -> Figures:
    """Write a checkpoint where it is missing and bake it."""
    model = deep.with_layers(num_layers)
    source = models.checkpoint(model, work / f"{model.name}-{num_layers}-layers", tokenizer)
    baked: memory.Measured = models.bake(model, source, precisions, deep.tasks, work / models.BUNDLES)
    graphs = (work / models.BUNDLES / model.name).glob("*/*")  # the tower's among them, if it has one
    disk = sum(path.stat().st_size for path in graphs)
    figures = Figures(num_layers, 2 * model.num_parameters, baked.seconds, baked.peak_anonymous_bytes, disk)
    print(f"{model.name}: layers {num_layers}: {figures.seconds:.1f} s", file=sys.stderr)
    return figures


def table(deep: Deep, found: Sequence[Figures], precisions: Sequence[Precision], command: str) -> list[str]:
    """Lay out what was measured and, from the fewest and the most layers, what all of them need."""
    rows = [_row(figures) for figures in found]
    verdicts = []
    fewest, most = (pick(found, key=lambda figures: figures.num_layers) for pick in (min, max))
    if fewest.num_layers < most.num_layers:
        whole = _extrapolated(fewest, most, deep.num_layers)
        rows.append((f"{deep.num_layers} (computed)", *_row(whole)[1:]))
        growth = most.peak_bytes / fewest.peak_bytes
        verdicts.append(
            f"target: peak memory does not grow with the layers: {growth:.2f} times from {fewest.num_layers} "
            f"to {most.num_layers}, {tables.verdict(growth <= MAX_GROWTH)}"
        )
    if deep.max_peak_bytes:
        peak = max(figures.peak_bytes for figures in found)
        target = f"target: peak memory of {deep.max_peak_bytes / 1e9:.0f} GB at most"
        verdicts.append(f"{target}: {peak / 1e9:.2f}, {tables.verdict(peak <= deep.max_peak_bytes)}")
    tasks = f" ({', '.join(deep.tasks)})" if deep.tasks else ""
    title = f"bake of {deep.name}{tasks}, random weights in bfloat16, to {', '.join(precisions)}"
    return [*tables.aligned(title, command, HEADER, rows), *verdicts]


def _extrapolated(fewest: Figures, most: Figures, num_layers: int) -> Figures:
    """Continue disk and time by the difference of two bakes; keep the higher peak."""
    steps = (num_layers - most.num_layers) / (most.num_layers - fewest.num_layers)

    def further(name: str) -> float:
        reached, before = float(getattr(most, name)), float(getattr(fewest, name))
        return reached + steps * (reached - before)

    return replace(
        most,
        num_layers=num_layers,
        peak_bytes=max(fewest.peak_bytes, most.peak_bytes),
        **{name: further(name) for name in ("checkpoint_bytes", "seconds", "disk_bytes")},
    )


def _row(figures: Figures) -> tables.Row:
    gigabytes = [f"{number / 1e9:.2f}" for number in (figures.peak_bytes, figures.disk_bytes)]
    checkpoint = f"{figures.checkpoint_bytes / 1e9:.2f}"
    return str(figures.num_layers), checkpoint, f"{figures.seconds:.1f}", *gigabytes
