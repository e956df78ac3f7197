"""What sessions keep of the memory of their runs, and what giving it back costs. Knows ways, no session.

Every way has a process of its own, since an allocator is a process's, and each computes the same runs. For
speed the processes take turns, one at a time. Three encoders: the default model, a tiny one that reads 8,000
tokens, and layers of the XLM-R-large shape, all but their speed of short texts with random weights.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from service.graphs import ROUNDS_ACTIVATIONS
from service.manifest import Precision
from tests.bench import child, full_size_xlmr, models, precision, soak, tables
from tests.bench.arena_process import Way
from tests.bench.cases import Size
from tests.bench.child import Child
from tests.bench.server import MODEL

MAX_TOKENS = 8000  # of the models of random weights
WIDE_LAYERS = 2
TURN_SECONDS = 0.5
SHORT_SIZES = (Size(1, 16), Size(8, 128))
LONG_SIZES = (*SHORT_SIZES, Size(1, 2048))
HEADER = ("", "MB kept", "MB at most")


@dataclass(frozen=True)
class Subject:
    """A graph, the texts of its load, and the sizes that are timed."""

    name: str
    graph: Path
    precision: Precision
    limit: int
    num_runs: int
    sizes: tuple[Size, ...]

    @property
    def ways(self) -> list[Way]:
        """Return the ways it is run in: lengths are rounded up only where padding changes no answer."""
        return [way for way in Way if way != Way.BUCKETS or self.may_pad]

    @property
    def may_pad(self) -> bool:
        """Tell whether texts of unequal length may share a run."""
        return self.precision not in ROUNDS_ACTIVATIONS


@dataclass(frozen=True)
class Figures:
    """Bytes over those before the load, and the median speed by size, as a multiple of the first way's."""

    kept: float
    most: float
    speeds: tuple[float, ...]


def measure(models_dir: Path, precisions: Sequence[Precision], num_turns: int, command: str) -> None:
    """Measure every way on every model; print the tables."""
    with models.work_folder(None) as folder:
        for subject in _subjects(models_dir, Path(folder), precisions):
            figures = _measure(subject, num_turns)
            header = (*HEADER, *(f"speed {size}" for size in subject.sizes))
            rows = [
                (
                    way,
                    f"{each.kept / 1e6:.0f}",
                    f"{each.most / 1e6:.0f}",
                    *(f"{speed:.2f}" for speed in each.speeds),
                )
                for way, each in figures.items()
            ]
            title = (
                f"{subject.name}, {subject.precision}: {subject.num_runs} runs of texts of 1 to "
                f"{subject.limit:,} tokens on two sessions of one thread; speed as a multiple of the first"
            )
            print("\n".join(tables.aligned(title, command, header, rows)), flush=True)


def _subjects(models_dir: Path, work: Path, precisions: Sequence[Precision]) -> list[Subject]:
    long = soak.bake_long(work, precisions)
    wide = work / "wide"
    full_size_xlmr.write_layers(wide / "checkpoint", WIDE_LAYERS, precision.VOCABULARY)
    precision.write(wide / "checkpoint", wide, precisions)
    shape = f"{WIDE_LAYERS} layers of the XLM-R-large shape"
    return [
        Subject(name, folder / each / "model.onnx", each, limit, num_runs, sizes)
        for name, folder, limit, num_runs, sizes in (
            (MODEL, models_dir / MODEL, 256, 1000, SHORT_SIZES),
            (f"tiny {long}", work / long, MAX_TOKENS, 400, SHORT_SIZES),
            (shape, wide, MAX_TOKENS, 100, LONG_SIZES),
        )
        for each in precisions
    ]


def _measure(subject: Subject, num_turns: int) -> dict[Way, Figures]:
    with ExitStack() as opened:
        contenders, loads = dict[Way, Child](), dict[Way, dict[str, float]]()
        for way in subject.ways:
            print(f"{subject.name}, {subject.precision}: {way}", file=sys.stderr)
            command = [sys.executable, "-m", "tests.bench.arena_process", str(subject.graph.resolve()), way]
            contenders[way] = opened.enter_context(child.opened(way, command))
            load = {"limit": subject.limit, "num_runs": subject.num_runs, "may_pad": subject.may_pad}
            loads[way] = contenders[way].ask({"load": load})
        speeds = {way: list[float]() for way in contenders}
        for size in subject.sizes:
            rates = {way: list[float]() for way in contenders}
            for _ in range(num_turns):
                for way, contender in contenders.items():
                    rates[way].append(_rate(contender, size))
            for way, found in rates.items():
                ratios = [rate / kept for rate, kept in zip(found, rates[Way.KEPT], strict=True)]
                speeds[way].append(statistics.median(ratios))
        return {way: Figures(load["kept"], load["most"], tuple(speeds[way])) for way, load in loads.items()}


def _rate(contender: Child, size: Size) -> float:
    question = {"num_texts": size.num_texts, "num_tokens": size.num_tokens, "seconds": TURN_SECONDS}
    return float(contender.ask(question)["rate"])
