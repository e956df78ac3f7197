"""Lengths to groups: which texts run together. Pure; knows no tokens, no model and no session.

Padding is wasted work and, in attention, costly memory. But every run costs as much as some tokens anyway,
mostly to read the weights: texts are padded while that costs less than another run would, or is a small share
of what they have themselves. Long texts are never padded at all, nor is anything where a graph does not allow
it.
"""

from __future__ import annotations

import heapq
import itertools
import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence

RUN_COST = 10  # padding tokens that a run may have, as dear as another run of a few short texts
MAX_PADDING = 0.03  # padding tokens that it may have as a share of its texts' own
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

    def lengths_from(self, highest: int) -> Iterator[int]:
        """Return the lengths that are not above `highest`, longest first."""
        for place in range(bisect_right(self._lengths, highest) - 1, -1, -1):
            yield self._lengths[place]

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
    lowest, highest, room = head, head, max(1, max_tokens // head)
    if may_pad and head < UNPADDED_FROM_TOKENS:
        lowest, highest, room = _padded(queues, head, max_tokens)
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


def _padded(queues: Sequence[Waiting], head: int, max_tokens: int) -> tuple[int, int, int]:
    """Return the shortest and the longest text of the head's run and its number of texts.

    The longest is the head itself, or one that pads it little if more texts fit beside that.
    """
    highest = _highest(queues, head)
    found = {most: _shortest(queues, most, max(1, max_tokens // most)) for most in (head, highest)}
    if found[head][1] >= found[highest][1]:
        highest = head
    shortest, num_rows = found[highest]
    return min(head, shortest), highest, num_rows


def _highest(queues: Iterable[Waiting], head: int) -> int:
    """Return the longest text that the head may share a run with: itself, or one that pads it little."""
    # Half of what is allowed: others will be padded for it too.
    limit = head + max(RUN_COST, math.floor(head * MAX_PADDING * 2)) // 2
    limit = min(limit, UNPADDED_FROM_TOKENS - 1)
    return max(next(queue.lengths_from(limit), head) for queue in queues)


def _shortest(queues: Iterable[Waiting], highest: int, room: int) -> tuple[int, int]:
    """Return the shortest text that may still be padded when all above it are, and how many they are."""
    shortest, num_rows, num_own, num_padding = highest, 0, 0, 0
    by_length = heapq.merge(*(queue.lengths_from(highest) for queue in queues), reverse=True)
    for length in itertools.islice(by_length, room):
        num_own += length
        num_padding += highest - length
        if num_padding > max(RUN_COST, num_own * MAX_PADDING):
            break
        shortest, num_rows = length, num_rows + 1
    return shortest, num_rows
