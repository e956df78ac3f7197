"""Which linear layers an 8-bit graph leaves to a more accurate scheme: chosen by their effect on the answers.

Reads only the search texts. A graph that holds every layer both ways is run with one layer rounded at a time;
those that move the answers most, for their size, are left exact until the answers are near enough or too much
would be left. Knows neither graphs nor models: it is handed a function from switches to answers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from convert import quality
from service.manifest import Kind, Precision

SHARES = (
    0.05,
    0.1,
    0.2,
    0.35,
    0.5,
)  # of all weights, left to the accurate scheme; tried in turn
ACCURATE = Precision.INT8_BLOCK

Floats = npt.NDArray[np.float32]
Switches = npt.NDArray[np.bool_]
Task = str | None


@dataclass(frozen=True)
class Subject:
    """A variant to search for: its layers, and its answers to all search texts or, quicker, to a few."""

    kind: Kind
    sizes: Mapping[str, int]  # layer -> its weights
    exact: Floats
    answers: Callable[[Switches], Floats]
    exact_few: Floats
    few_answers: Callable[[Switches], Floats]

    def is_good(self, switches: Switches) -> bool:
        """Tell whether the answers reach what a search asks for."""
        found = quality.compared(self.kind, self.answers(switches), self.exact)
        return quality.is_good(found, Precision.INT8, quality.SEARCH_FLOORS)


def searched(
    tasks: Sequence[Task], opened: Callable[[Task], Subject], on_step: Callable[[], object]
) -> dict[str, Precision]:
    """Return the layers to leave to the accurate scheme; none where rounding all of them is good enough.

    Returns none either where even the largest share is not enough: the graph stays fast, and is not verified.
    `opened` gives the subject of a task; only the one given last is used.
    """
    names = list(opened(tasks[0]).sizes)
    everything = np.ones(len(names), dtype=np.bool_)
    bad = [task for task in tasks if not opened(task).is_good(everything)]
    on_step()
    if not bad:
        return {}
    order, sizes = by_effect(opened(bad[0]), on_step), opened(bad[0]).sizes
    for share in SHARES:
        left = first(order, sizes, share)
        switches = np.array([name not in left for name in names])
        is_enough = all(opened(task).is_good(switches) for task in bad)
        on_step()
        if is_enough:
            return dict.fromkeys(sorted(left), ACCURATE)
    return {}


def num_steps(num_layers: int) -> int:
    """Return the most steps that a search reports."""
    return 1 + num_layers + len(SHARES)


def by_effect(subject: Subject, on_step: Callable[[], object]) -> list[str]:
    """Order the layers by how far each, rounded alone, moves the answers, for every weight of it."""
    names = list(subject.sizes)
    effects: dict[str, float] = {}
    for place, name in enumerate(names):
        alone = np.zeros(len(names), dtype=np.bool_)
        alone[place] = True
        moved = quality.distance(subject.kind, subject.few_answers(alone), subject.exact_few)
        effects[name] = moved / subject.sizes[name]
        on_step()
    return sorted(names, key=lambda name: -effects[name])


def first(order: Sequence[str], sizes: Mapping[str, int], share: float) -> set[str]:
    """Take the first layers whose weights together stay within a share of all."""
    room, taken = share * sum(sizes.values()), set()
    for name in order:
        if sizes[name] <= room:
            room -= sizes[name]
            taken.add(name)
    return taken
