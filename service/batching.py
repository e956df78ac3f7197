"""Lengths to groups: which texts run together. Pure; knows no tokens, no model and no session.

Padding is wasted work and, in attention, costly memory: a text joins a run only where it would be padded by
no more than a share of its own length. Long texts are never padded at all, nor is anything where a graph does
not allow it.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence

MAX_PADDING = 0.15  # padding tokens of a text as a share of its own tokens
UNPADDED_FROM_TOKENS = 512  # texts from this length on run only beside texts of equal length


class Waiting:
    """The texts of one request that have not run yet, by length."""

    def __init__(self, lengths: Sequence[int]) -> None:
        """Hold every text, named by its index."""
        order = sorted(range(len(lengths)), key=lambda index: (lengths[index], -index))
        self._lengths = [lengths[index] for index in order]
        self._indices = order

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self._indices)

    @property
    def longest(self) -> int:
        """Return the length of the longest one; there must be one."""
        return self._lengths[-1]

    def longest_within(self, lowest: int, highest: int) -> int | None:
        """Return the largest length from `lowest` to `highest`, None where there is none."""
        place = bisect_right(self._lengths, highest) - 1
        return self._lengths[place] if place >= 0 and self._lengths[place] >= lowest else None

    def take(self, lowest: int, highest: int, most: int) -> list[int]:
        """Remove up to `most` texts of these lengths, longest first; return their indices."""
        end = bisect_right(self._lengths, highest)
        begin = max(bisect_left(self._lengths, lowest), end - most)
        taken = self._indices[begin:end][::-1]
        del self._lengths[begin:end], self._indices[begin:end]
        return taken


def group(queues: Sequence[Waiting], max_tokens: int, *, may_pad: bool) -> list[tuple[int, list[int]]]:
    """Take from queues the texts of one run: the first's longest one and what fits beside it.

    The first queue, which must hold a text, is served first, the others in their order. Returns numbers of
    queues with the indices taken. rows x longest stays within `max_tokens`, unless one text alone exceeds it.
    """
    head = queues[0].longest
    highest = _highest(queues, head, may_pad)
    lowest = _lowest(highest, may_pad)
    room = max(1, max_tokens // highest)
    taken: list[tuple[int, list[int]]] = []
    for number, queue in enumerate(queues):
        if found := queue.take(lowest, highest, room):
            taken.append((number, found))
            room -= len(found)
        if room == 0:
            break
    return taken


def plan(lengths: Sequence[int], max_tokens: int, *, may_pad: bool = True) -> list[list[int]]:
    """Group the indices of one request's `lengths`, longest first, every index once; limits as in `group`."""
    waiting, groups = Waiting(lengths), []
    while waiting:
        ((_, indices),) = group([waiting], max_tokens, may_pad=may_pad)
        groups.append(indices)
    return groups


def _highest(queues: Iterable[Waiting], head: int, may_pad: bool) -> int:
    """Return the longest text that the head may share a run with: itself, or one that pads it little."""
    limit = math.floor(head * (1 + MAX_PADDING)) if may_pad else head
    limit = max(head, min(limit, UNPADDED_FROM_TOKENS - 1))
    return max(length for queue in queues if (length := queue.longest_within(head, limit)))


def _lowest(longest: int, may_pad: bool) -> int:
    """Return the shortest text that may be padded to `longest`."""
    if not may_pad or longest >= UNPADDED_FROM_TOKENS:
        return longest
    return math.ceil(longest / (1 + MAX_PADDING))
