"""Runs the work of requests on sessions. Knows lengths and sessions, nothing of models or HTTP.

One request at a time runs on a session; the others wait for its lock. Requests on different sessions are not
kept apart.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Mapping, Sequence, Sized
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from service.batching import plan
from service.session import Array, Session

Floats = npt.NDArray[np.float32]
Item = TypeVar("Item", bound=Sized)
Stack = Callable[[Sequence[Item]], Mapping[str, Array]]


class Scheduler:
    """Decides what runs when."""

    def __init__(self, max_batch_tokens: int) -> None:
        """Limit a run to `max_batch_tokens` rows x tokens, padding included."""
        self._max_batch_tokens = max_batch_tokens
        self._locks: weakref.WeakKeyDictionary[Session, threading.Lock] = weakref.WeakKeyDictionary()
        self._locks_guard = threading.Lock()

    def submit(
        self, session: Session, sequences: Sequence[Item], outputs: Sequence[str], stack: Stack[Item]
    ) -> list[tuple[Floats, ...]]:
        """Compute outputs for every sequence; return its rows of them in the order given.

        `stack` makes one run's inputs of some of the sequences. The row of an output that has a token axis is
        as long as the longest sequence of its run.
        """
        rows: list[tuple[Floats, ...]] = [()] * len(sequences)
        lengths = [len(ids) for ids in sequences]
        groups = plan(lengths, self._max_batch_tokens, may_pad=session.may_pad)
        with self._lock_of(session):
            for group in groups:
                computed = session.run(stack([sequences[index] for index in group]), outputs)
                for index, *row in zip(group, *computed, strict=True):
                    rows[index] = tuple(row)
        return rows

    def run(self, session: Session, inputs: Mapping[str, Array], output: str) -> Floats:
        """Compute one output of inputs that are already a run."""
        with self._lock_of(session):
            (computed,) = session.run(inputs, [output])
        return computed

    def _lock_of(self, session: Session) -> threading.Lock:
        with self._locks_guard:
            return self._locks.setdefault(session, threading.Lock())
