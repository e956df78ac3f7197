"""Whose turn it is among the jobs that wait. Counts tokens, knows no run and no session.

Turns are those of fair queueing: every request that waits gets the same number of tokens computed, so that a
short one is done soon, whatever a long one has asked for.
Source: Demers, Keshav, Shenker, "Analysis and simulation of a fair queueing algorithm" (virtual time).

Where more comes in than can be computed, fair turns alone would let short requests without end overtake a
longer one. So whatever is small beside the queue is promised to be done by the time in which a full queue
is computed: before it would be too late, the oldest go first.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from operator import attrgetter

from service.jobs import Job

# Of the tokens that a queue may hold: it counts some 1.2 for each of an English text, and runs that go on
# cannot be overtaken.
PROMISED_SHARE = 0.85
PROMISED_SIZE = 1 / 16  # of the queue: a larger request, which would hold others up, is promised nothing

by_due, by_promise = attrgetter("due"), attrgetter("promise")


class Turns:
    """The jobs that have something waiting."""

    def __init__(self, max_queue_tokens: float = math.inf) -> None:
        """Keep the promise of a queue of so many tokens."""
        self._promised_tokens = max_queue_tokens * PROMISED_SHARE
        self._longest_promised = max_queue_tokens * PROMISED_SIZE
        self._jobs: list[Job] = []
        self._computed = 0  # tokens, of all jobs
        self._virtual = 0.0  # the tokens that a request would have got that has always waited
        self._num_sharing = 1  # jobs that waited when the order was last asked for

    def __len__(self) -> int:
        """Return how many wait."""
        return len(self._jobs)

    def add(self, job: Job, next_tokens: int) -> None:
        """Let a job wait whose next part has so many tokens."""
        ticket = job.ticket
        ticket.virtual = max(ticket.virtual, self._virtual)
        is_short = job.num_waiting <= self._longest_promised
        job.promise = self._computed + (self._promised_tokens if is_short else math.inf)
        job.due = ticket.virtual + next_tokens
        self._jobs.append(job)

    def remove(self, job: Job) -> None:
        """Let a job wait no more, whether it did or not."""
        if job in self._jobs:
            self._jobs.remove(job)

    def take(self, job: Job, num_tokens: int, next_tokens: int) -> None:
        """Note that a part of a job is computed now and that its next one has so many tokens, or 0."""
        job.num_waiting -= num_tokens
        job.ticket.virtual += num_tokens
        self._computed += num_tokens
        self._virtual += num_tokens / self._num_sharing
        job.due = job.ticket.virtual + next_tokens
        if not next_tokens:
            self._jobs.remove(job)

    def in_order(self) -> list[Job]:
        """Return all that wait, whose turn it is first."""
        self._num_sharing = max(1, len(self._jobs))
        self._jobs.sort(key=by_due)
        oldest_first = sorted(self._jobs, key=by_promise)
        return oldest_first if self._is_pressing(oldest_first) else self._jobs[:]

    def _is_pressing(self, oldest_first: Sequence[Job]) -> bool:
        """Tell whether a promise could be broken if the oldest had to wait for others any longer."""
        ahead = itertools.accumulate((job.num_waiting for job in oldest_first), initial=self._computed)
        next(ahead)
        return any(total >= job.promise for total, job in zip(ahead, oldest_first, strict=True))
