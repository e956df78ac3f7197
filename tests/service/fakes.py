"""A session without a graph: a function of token ids takes its place. The tokenizers around it are real."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np

from service.graphs import Graphs
from service.manifest import Manifest
from service.scheduler import Scheduler
from service.session import Array, Floats

Compute = Callable[[list[int]], object]


class FakeSession:
    """Computes the row of each sequence with a function and notes the sequences and the sizes of runs."""

    may_pad = True
    has_narrow = False

    def __init__(self, compute: Compute) -> None:
        self._compute = compute
        self.sequences: list[list[int]] = []
        self.runs: list[int] = []

    def run(self, inputs: Mapping[str, Array], outputs: Sequence[str]) -> list[Floats]:
        lengths = np.asarray(inputs["attention_mask"], dtype=np.int64).sum(axis=1)
        rows = [ids[:length].tolist() for ids, length in zip(inputs["input_ids"], lengths, strict=True)]
        self.sequences += rows
        self.runs.append(len(rows))
        return [np.array([self._compute(row) for row in rows], dtype=np.float32)] * len(outputs)


@dataclass(frozen=True)
class FakeGraphs:
    """Graphs of which every one is the same session."""

    manifest: Manifest
    opened: FakeSession

    def session(self, task: str | None) -> FakeSession:
        return self.opened


def graphs(manifest: Manifest, session: FakeSession) -> Graphs:
    """Make a bundle's graphs of a session."""
    return cast(Graphs, FakeGraphs(manifest, session))


def scheduler() -> Scheduler:
    """Make a scheduler that has room for any run of a test."""
    return Scheduler(1 << 16)
