"""Runs a float32 graph on texts and sees what enters its linear layers. Knows no scheme and no model.

The graph is given outputs that are small: the largest magnitude and the mean square of each channel, and a
few rows. Texts go the way that requests go, so that prompts and pairs are those of the service.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import cast

import numpy as np
import numpy.typing as npt

from convert.calibrated import LinearInput
from convert.graph import INPUT_IDS, Graph
from convert.rewriting import linear_layers
from service.session import Array, Session

PICKED = "calibration.picked"  # graph input: which rows of a run are sampled, counted round and round
HIGHEST, SQUARES, ROWS = "calibration.highest", "calibration.squares", "calibration.rows"
MAX_ROWS = 256  # kept of each value
ROWS_OF_A_RUN = 16
SEED = 0

Floats = npt.NDArray[np.float32]


def observing(graph: Graph) -> Graph:
    """Return the graph with outputs that tell of every value that enters a linear layer."""
    target = replace(
        graph,
        nodes=list(graph.nodes),
        constants=dict(graph.constants),
        inputs=list(graph.inputs),
        outputs=list(graph.outputs),
    )
    target.input(PICKED, np.int64, ("picked",))
    first_axis = target.value("calibration.first_axis", [0])
    for value, size in observed_values(graph).items():
        flat = target.op("Reshape", f"{value}.rows", [value, target.value(f"calibration.{size}", [-1, size])])
        magnitude = target.op("Abs", f"{value}.magnitude", [flat])
        target.op("ReduceMax", f"{HIGHEST}:{value}", [magnitude, first_axis], {"keepdims": 0})
        square = target.op("Mul", f"{value}.square", [flat, flat])
        target.op("ReduceMean", f"{SQUARES}:{value}", [square, first_axis], {"keepdims": 0})
        count = target.op("Shape", f"{value}.count", [flat], {"start": 0, "end": 1})
        places = target.op("Mod", f"{value}.places", [PICKED, count])
        target.op("Gather", f"{ROWS}:{value}", [flat, places], {"axis": 0})
        target.output(f"{HIGHEST}:{value}", (size,))
        target.output(f"{SQUARES}:{value}", (size,))
        target.output(f"{ROWS}:{value}", ("picked", size))
    return target


def observed_values(graph: Graph) -> dict[str, int]:
    """Return the values that enter linear layers, each once, and their sizes."""
    return {layer.input[0]: weight.shape[0] for layer, weight in linear_layers(graph)}


@dataclass
class _Seen:
    """One value as far as it was seen."""

    highest: Floats
    squares: Floats  # summed over runs, each weighted by its tokens
    rows: list[Floats]


@dataclass(eq=False)
class Recording:
    """Stands in for the session of an observing graph: answers as it does and keeps what it sees."""

    session: Session
    values: Sequence[str]
    may_pad: bool = False  # a padded row would be seen too
    has_narrow: bool = False
    _seen: dict[str, _Seen] = field(default_factory=dict)
    _num_tokens: int = 0
    _num_rows: int = 0
    _draw: np.random.Generator = field(default_factory=lambda: np.random.default_rng(SEED))

    def run(self, inputs: Mapping[str, Array], outputs: Sequence[str]) -> list[Floats]:
        """Compute the named outputs."""
        num_tokens = inputs[INPUT_IDS].size
        picked = self._draw.choice(num_tokens, min(ROWS_OF_A_RUN, num_tokens), replace=False)
        named = [f"{kind}:{value}" for value in self.values for kind in (HIGHEST, SQUARES, ROWS)]
        computed = self.session.run({**inputs, PICKED: picked.astype(np.int64)}, [*outputs, *named])
        places = [self._place(self._num_rows + index) for index in range(len(picked))]
        found = iter(computed[len(outputs) :])
        for value in self.values:
            self._add(value, (next(found), next(found) * num_tokens, next(found)), places)
        self._num_tokens += num_tokens
        self._num_rows += len(picked)
        return computed[: len(outputs)]

    def as_session(self) -> Session:
        """Return itself under the type that graphs hold; it has what they use."""
        return cast(Session, self)

    def seen(self) -> Iterator[tuple[str, LinearInput]]:
        """List what was seen of each value. Mean squares weigh runs by their tokens."""
        for value, found in self._seen.items():
            squares = (found.squares / self._num_tokens).astype(np.float32)
            yield value, LinearInput(found.highest, squares, np.stack(found.rows))

    def _place(self, count: int) -> int | None:
        """Choose the place of one more row among those kept: each row seen is as likely to be there."""
        if count < MAX_ROWS:
            return count
        place = int(self._draw.integers(count + 1))
        return place if place < MAX_ROWS else None

    def _add(self, value: str, found: tuple[Floats, Floats, Floats], places: Sequence[int | None]) -> None:
        highest, squares, rows = found
        if value not in self._seen:
            self._seen[value] = _Seen(highest, squares.astype(np.float64), [])
        else:
            known = self._seen[value]
            known.highest = np.maximum(known.highest, highest)
            known.squares += squares
        kept = self._seen[value].rows
        for place, row in zip(places, rows, strict=True):
            if place is not None and place == len(kept):
                kept.append(row.copy())
            elif place is not None:
                kept[place] = row.copy()
