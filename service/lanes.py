"""What runs on a device now and what may begin beside it. Counts tokens and runs, knows neither.

Narrow runs go beside each other; a wide one, on all threads, has the device to itself. The exception is a
text of more tokens than a whole run may have: narrow runs go beside it, or everybody would wait for its end.
It is narrow itself where others fill the lanes when its turn comes: all together then have no more threads
than there are. Else it takes all of them, as it computes for long; who comes later shares the cores with it.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto

MAX_LANES = 4  # more threads than this are dealt out to so many lanes


class Start(Enum):
    """Whether a run may begin."""

    NOW = auto()
    NOT_YET = auto()  # once what runs has ended; nothing else may begin before it
    NOT_BESIDE = auto()  # not beside the long text that runs; others may


@dataclass(frozen=True)
class Lane:
    """One run that goes on."""

    num_tokens: int
    is_narrow: bool
    is_long: bool


class Lanes:
    """The runs of one device."""

    def __init__(self, max_tokens: int, num_lanes: int) -> None:
        """Allow `num_lanes` runs of `max_tokens` together, beside one text that has more."""
        self._max_tokens, self._num_lanes = max_tokens, num_lanes
        self._active: list[Lane] = []
        self._has_long_waited = False  # for narrow runs, since a run last began

    @property
    def is_open(self) -> bool:
        """Tell whether there is a lane for a narrow run."""
        is_wide = any(not lane.is_narrow and not lane.is_long for lane in self._active)
        return len(self._active) < self._num_lanes and not is_wide

    def budget(self, *, has_narrow: bool) -> int:
        """Return the tokens of one run: of a narrow one a lane's part of them."""
        return self._max_tokens // self._num_lanes if has_narrow else self._max_tokens

    def room(self, *, has_narrow: bool) -> int:
        """Return the tokens that a run may have now."""
        taken = sum(lane.num_tokens for lane in self._active if not lane.is_long)
        return min(self.budget(has_narrow=has_narrow), self._max_tokens - taken)

    def start(self, num_tokens: int, *, has_narrow: bool) -> Start:
        """Tell whether a run may begin that has a text of so many tokens."""
        if not self._active:
            return Start.NOW
        is_beside_long = any(lane.is_long for lane in self._active)
        if (num_tokens > self._max_tokens or not has_narrow) and is_beside_long:
            return Start.NOT_BESIDE
        taken = sum(lane.num_tokens for lane in self._active if not lane.is_long)
        fits = has_narrow and self.is_open and taken + num_tokens <= self._max_tokens
        self._has_long_waited |= num_tokens > self._max_tokens
        return Start.NOW if fits else Start.NOT_YET

    def begin(self, num_tokens: int, *, has_narrow: bool, is_last: bool) -> Lane:
        """Note that a run begins; a wide one where it is alone and nothing else waits (`is_last`) or fits.

        What waits may be more long texts, for which none needs to be narrow: one had to wait for narrow runs.
        """
        is_long = num_tokens > self._max_tokens
        leaves_room = num_tokens <= self.budget(has_narrow=has_narrow)  # for another beside it
        has_others = self._has_long_waited if is_long else leaves_room
        is_narrow = has_narrow and (bool(self._active) or (has_others and not is_last))
        lane = Lane(num_tokens, is_narrow, is_long)
        self._active.append(lane)
        self._has_long_waited = False
        return lane

    def end(self, lane: Lane) -> None:
        """Note that it has ended."""
        self._active.remove(lane)


def count(num_threads: int) -> int:
    """Return how many equal lanes a device's threads are dealt out to, as few left over as can be.

    At least two where there are two threads; of numbers that leave as many over, the highest.
    """
    choices = range(min(num_threads, MAX_LANES), 1, -1)
    return min(choices, key=lambda num_lanes: num_threads % num_lanes, default=1)
