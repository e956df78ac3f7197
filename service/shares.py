"""What a request computes with: its share of the queue. Knows no turns, no model, no HTTP."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any, Protocol

from service.jobs import Floats, Row, Stack, Work
from service.session import Array, Session
from service.tickets import Ticket


class Runs(Protocol):
    """Computes: the scheduler itself, or one request's share of it."""

    def submit(
        self, session: Session, sequences: Sequence[Any], outputs: Sequence[str], stack: Stack
    ) -> list[Row]:
        """Compute outputs for every sequence; return its rows of them in the order given."""

    def run(self, session: Session, inputs: Mapping[str, Array], output: str, num_tokens: int) -> Floats:
        """Compute one output of inputs that are already a run, as dear as so many tokens."""

    def share(self, ticket: Ticket) -> Runs:
        """Return what a request computes with."""


class Queue(Protocol):
    """Where work waits for its turn."""

    def compute(self, work: Work, ticket: Ticket) -> list[Row]:
        """Queue work and wait for it."""


@dataclass(frozen=True)
class Share:
    """One request's share of the queue."""

    queue: Queue
    ticket: Ticket

    def share(self, ticket: Ticket) -> Share:
        """Return what another request computes with."""
        return Share(self.queue, ticket)

    def submit(
        self, session: Session, sequences: Sequence[Any], outputs: Sequence[str], stack: Stack
    ) -> list[Row]:
        """Compute outputs for every sequence; return its rows of them in the order given.

        `stack` makes one run's inputs of some of the sequences. The row of an output that has a token axis is
        as long as the longest sequence of its run. Raises WaitedTooLong, ClientGone, what a run raises.
        """
        lengths = [len(sequence) for sequence in sequences]
        return self.queue.compute(Work(session, sequences, tuple(outputs), stack, lengths), self.ticket)

    def run(self, session: Session, inputs: Mapping[str, Array], output: str, num_tokens: int) -> Floats:
        """Compute one output of inputs that are a run, as dear as so many tokens. Raises as `submit`."""
        work = Work(session, [inputs], (output,), itemgetter(0), [num_tokens], is_run=True)
        (((computed,)),) = self.queue.compute(work, self.ticket)
        return computed
