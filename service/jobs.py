"""What a request wants computed by one graph, and what has been computed of it so far. Knows no queue.

The lock of the queue guards all but `wait`.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from service.batching import Waiting
from service.session import Array, Session
from service.tickets import Ticket

Floats = npt.NDArray[np.float32]
Row = tuple[Floats, ...]
Stack = Callable[[Sequence[Any]], Mapping[str, Array]]


@dataclass(frozen=True)
class Work:
    """A graph's inputs to be: sequences that `stack` makes a run's inputs of, and the outputs wanted."""

    session: Session
    sequences: Sequence[Any]
    outputs: tuple[str, ...]
    stack: Stack
    lengths: Sequence[int]
    is_run: bool = False  # one sequence that is the inputs of a whole run already: nothing may join it


@dataclass(eq=False)
class Job:
    """The work of one request; its thread waits for it."""

    work: Work
    ticket: Ticket
    waiting: Waiting = field(init=False)
    rows: list[Row] = field(init=False)
    num_waiting: int = field(init=False)  # tokens
    promise: float = math.inf  # the tokens that may be computed, of all requests, before it is done
    due: float = 0.0  # the virtual time at which its next part would have been computed
    error: Exception | None = None
    _num_missing: int = field(init=False)
    _is_over: bool = False
    _wait: threading.Lock = field(default_factory=threading.Lock)  # held until it is over

    def __post_init__(self) -> None:
        """Begin with nothing computed."""
        self.waiting = Waiting(self.work.lengths)
        self.num_waiting = sum(self.work.lengths)
        self.rows = [()] * len(self.work.lengths)
        self._num_missing = len(self.work.lengths)
        self._wait.acquire()

    def may_share_with(self, other: Job) -> bool:
        """Tell whether texts of another job may be in a run of this one's."""
        mine, others = self.work, other.work
        if self is other:
            return False
        is_same = mine.session is others.session and mine.outputs == others.outputs
        return is_same and not mine.is_run and not others.is_run

    def put(self, indices: Sequence[int], rows: Sequence[Row]) -> None:
        """Take computed rows; with the last of them the wait is over."""
        for index, row in zip(indices, rows, strict=True):
            self.rows[index] = row
        self._num_missing -= len(indices)
        if self._num_missing == 0:
            self.finish()

    def finish(self, error: Exception | None = None) -> None:
        """End the wait, with an error where nothing more will come; a second end does nothing."""
        if not self._is_over:
            self._is_over = True
            self.error = error
            self._wait.release()

    def wait(self, seconds: float) -> bool:
        """Wait for the end, `seconds` at most or FOR_EVER; tell whether it has come."""
        return self._wait.acquire(timeout=seconds)
