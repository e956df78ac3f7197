"""Runs the work of requests on sessions: what runs when, and beside what. Knows lengths, no model, no HTTP.

All requests meet in one queue. Whenever a lane is free it takes the work of the request whose turn it is,
and from other requests what may share the run.

On the CPU several narrow runs on few threads go beside each other: together they compute more than one run on
all threads after the other (short texts up to twice as much). What is alone takes all threads.
"""

from __future__ import annotations

import itertools
import logging
import math
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from service import logs
from service.batching import group
from service.errors import ClientGone, WaitedTooLong
from service.jobs import Floats, Job, Row, Stack, Work
from service.lanes import Lane, Lanes, Start
from service.observing import NOBODY, Observer
from service.session import Array, Session
from service.shares import Share
from service.tickets import FOR_EVER, Ticket
from service.turns import Turns

MAX_SHARERS = 32  # requests that are looked through for texts that may join a run


@dataclass(frozen=True)
class Run:
    """What one run computes: jobs with the indices of their sequences."""

    parts: list[tuple[Job, list[int]]]
    lane: Lane


class Scheduler:
    """The queue of one device and the lanes that work it off."""

    def __init__(
        self,
        max_batch_tokens: int,
        num_lanes: int = 1,
        max_queue_tokens: float = math.inf,
        observer: Observer = NOBODY,
    ) -> None:
        """Compute `max_batch_tokens` rows x tokens at once, padding included, in `num_lanes` runs at most.

        A text that has more runs all the same, one of them at a time. A request of `max_queue_tokens` at most
        is done by the time in which so many are computed, if no more than these wait.
        """
        self._lanes = Lanes(max_batch_tokens, num_lanes)
        self._num_lanes, self._num_working = num_lanes, 0
        self._turns = Turns(max_queue_tokens)
        self._observer = observer
        self._guard = threading.Lock()
        # NOTE: the interpreter waits for these threads at its end: a native call that is cut off aborts.
        self._threads = ThreadPoolExecutor(num_lanes, "lane")

    def submit(
        self, session: Session, sequences: Sequence[Any], outputs: Sequence[str], stack: Stack
    ) -> list[Row]:
        """Compute for nobody in particular; see `Share`."""
        return self.share(Ticket()).submit(session, sequences, outputs, stack)

    def run(self, session: Session, inputs: Mapping[str, Array], output: str, num_tokens: int) -> Floats:
        """Compute for nobody in particular; see `Share`."""
        return self.share(Ticket()).run(session, inputs, output, num_tokens)

    def share(self, ticket: Ticket) -> Share:
        """Return what a request computes with."""
        return Share(self, ticket)

    def compute(self, work: Work, ticket: Ticket) -> list[Row]:
        """Queue work and wait for it.

        Raises ValueError for a sequence without a token, WaitedTooLong, ClientGone, whatever a run raises.
        """
        if not work.lengths:
            return []
        if min(work.lengths) < 1:
            raise ValueError("a sequence without a token cannot be computed")
        job = Job(work, ticket)
        ticket.queue()
        with self._guard:
            self._turns.add(job, self._next_tokens(job))
            self._wake_lane()
        if not job.wait(ticket.seconds_left()):
            self._drop(job)
            job.wait(FOR_EVER)
        if job.error:
            raise job.error
        ticket.end()
        return job.rows

    def _drop(self, job: Job) -> None:
        """End a job that has waited too long, unless it has begun just now."""
        with self._guard:
            if not job.ticket.has_begun:
                self._end(job, WaitedTooLong())

    def _end(self, job: Job, error: Exception) -> None:
        self._turns.remove(job)
        job.finish(error)

    def _wake_lane(self) -> None:
        if len(self._turns) and self._num_working < self._num_lanes and self._lanes.is_open:
            self._num_working += 1
            self._threads.submit(self._work)

    def _work(self) -> None:
        """Run what is there until nothing is left that may begin."""
        ended: Run | None = None
        while found := self._next_after(ended):
            self._run(found.parts, found.lane.is_narrow)
            ended = found

    def _next_after(self, ended: Run | None) -> Run | None:
        """Free the lane of a run that has ended, take the next run; None: there is none, the lane rests."""
        while found := self._locked_next(ended):
            # NOTE: not under the lock: a look at a connection lets other threads run, which then wait for it.
            gone = [job for job, _ in found.parts if job.ticket.has_left()]
            if not gone:
                return found
            with self._guard:
                for job in gone:
                    self._end(job, ClientGone())
            if parts := [(job, indices) for job, indices in found.parts if job not in gone]:
                return Run(parts, found.lane)
            ended = found
        return None

    def _locked_next(self, ended: Run | None) -> Run | None:
        with self._guard:
            if ended:
                self._lanes.end(ended.lane)
            found = self._next()
            if found:
                self._wake_lane()
            else:
                self._num_working -= 1
        return found

    def _next(self) -> Run | None:
        """Take the next run off the queue."""
        order = self._turns.in_order()
        for job in order:
            if job.ticket.is_late():
                self._end(job, WaitedTooLong())
                continue
            try:
                start = self._lanes.start(job.waiting.longest, has_narrow=job.work.session.has_narrow)
                if start == Start.NOT_YET:
                    return None
                if start == Start.NOW and (parts := self._take(job, order)):
                    return Run(parts, self._begin(parts))
            except Exception as error:  # noqa: BLE001  it belongs to the job, and whoever may have lost texts to it
                for other in order:
                    if other is job or job.may_share_with(other):
                        self._end(other, error)
                return self._next()
        return None

    def _begin(self, parts: Sequence[tuple[Job, list[int]]]) -> Lane:
        lengths = [job.work.lengths[index] for job, indices in parts for index in indices]
        has_narrow = parts[0][0].work.session.has_narrow
        return self._lanes.begin(
            len(lengths) * max(lengths), has_narrow=has_narrow, is_last=not len(self._turns)
        )

    def _next_tokens(self, job: Job) -> int:
        """Return the tokens of a job's next part, 0 where there is none."""
        waiting, budget = job.waiting, self._lanes.budget(has_narrow=job.work.session.has_narrow)
        return max(waiting.longest, min(budget, waiting.longest * len(waiting))) if waiting else 0

    def _take(self, head: Job, order: Sequence[Job]) -> list[tuple[Job, list[int]]]:
        """Take a job's longest texts, and from others what may share their run."""
        sharers = [head, *itertools.islice(filter(head.may_share_with, order), MAX_SHARERS)]
        session = head.work.session
        room = self._lanes.room(has_narrow=session.has_narrow)
        found = group([job.waiting for job in sharers], room, may_pad=session.may_pad)
        parts = []
        for number, indices in found:
            job = sharers[number]
            if job.ticket.is_late():
                self._end(job, WaitedTooLong())
                continue
            job.ticket.start()
            num_tokens = sum(job.work.lengths[index] for index in indices)
            self._turns.take(job, num_tokens, self._next_tokens(job))
            parts.append((job, indices))
        return parts

    def _run(self, parts: Sequence[tuple[Job, list[int]]], is_narrow: bool) -> None:
        """Compute the parts and hand out their rows; where that fails, each part alone."""
        work = parts[0][0].work
        sequences = [job.work.sequences[index] for job, indices in parts for index in indices]
        try:
            run = work.session.run_narrow if is_narrow else work.session.run
            inputs = work.stack(sequences)
            begin = time.perf_counter()
            computed = run(inputs, work.outputs)
            seconds = time.perf_counter() - begin
            if not work.is_run and any(len(values) != len(sequences) for values in computed):
                raise ValueError(f"the graph has not one row for each of {len(sequences)} texts")
            rows = iter([tuple(computed)] if work.is_run else zip(*computed, strict=True))
        except Exception as error:  # noqa: BLE001  it belongs to the request, whatever it is
            if len(parts) > 1:
                for part in parts:
                    self._run([part], is_narrow)
                return
            with self._guard:
                self._end(parts[0][0], error)
            return
        with self._guard:
            for job, indices in parts:
                job.put(indices, list(itertools.islice(rows, len(indices))))
        self._observe(parts, seconds)  # whoever waits for the rows need not wait for this

    def _observe(self, parts: Sequence[tuple[Job, list[int]]], seconds: float) -> None:
        lengths = [job.work.lengths[index] for job, indices in parts for index in indices]
        num_rows, num_tokens = len(lengths), sum(lengths)
        num_padding = num_rows * max(lengths) - num_tokens
        try:
            for job, indices in parts:
                job.ticket.on_progress(job.ticket, sum(job.work.lengths[index] for index in indices))
            self._observer.ran(parts[0][0].work.session, num_rows, num_tokens, num_padding, seconds)
        except Exception as error:  # noqa: BLE001  a figure is lost; with the lane every later request would be
            logs.write(logging.ERROR, "a run could not be counted", reason=repr(error))
