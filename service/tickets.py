"""One request on its way: how long it may wait, whether anybody still wants it, what it has been given.

Knows no HTTP and no queue.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

LOOK_SECONDS = 0.02  # between two looks after a client: each costs as much as computing some tokens
FOR_EVER = -1.0  # seconds that a wait for a lock may take


class Progress(Protocol):
    """Told of every token that has been computed for a request."""

    def __call__(self, ticket: Ticket, num_tokens: int) -> None:
        """Take note."""


def _nobody_listens(ticket: Ticket, num_tokens: int) -> None:
    return None


def _stays() -> bool:
    return False


@dataclass(eq=False)
class Ticket:
    """What a request and those who work for it know of each other. Without arguments: it waits for ever."""

    deadline: float = math.inf  # by time.monotonic: past it, what has not begun is not computed
    is_gone: Callable[[], bool] = _stays  # whether the client has left
    on_progress: Progress = _nobody_listens
    num_tokens: int = 0  # admitted and not computed yet
    most_counted: int = 0  # of them that count in the queue
    num_body_bytes: int = 0  # that its body takes
    is_held: bool = False  # its tokens count until it is answered: its answer takes memory for each
    has_begun: bool = False
    virtual: float = 0.0  # the scheduler's time at which its next share is due
    begin: float = field(default_factory=time.monotonic)
    looked: float = field(default_factory=time.monotonic)  # after the client, the last time
    waited_seconds: float = 0.0  # until its first run
    queued_seconds: float = 0.0  # from its begin until it stood in the queue
    computed_seconds: float = 0.0  # from its begin until all was computed

    @property
    def num_counted(self) -> int:
        """Return the tokens that count in the queue."""
        return min(self.num_tokens, self.most_counted)

    def start(self) -> None:
        """Note that a first part of it runs: from here on it is computed to its end."""
        if not self.has_begun:
            self.has_begun = True
            self.waited_seconds = time.monotonic() - self.begin

    def queue(self) -> None:
        """Note that a part of it stands in the queue."""
        self.queued_seconds = self.queued_seconds or time.monotonic() - self.begin

    def end(self) -> None:
        """Note that a part of it has been computed; the last one counts."""
        self.computed_seconds = time.monotonic() - self.begin

    def is_late(self) -> bool:
        """Tell whether it has waited too long to begin."""
        return not self.has_begun and time.monotonic() > self.deadline

    def has_left(self) -> bool:
        """Tell whether the client has left; looks after it now and then."""
        now = time.monotonic()
        if now - self.looked < LOOK_SECONDS:
            return False
        self.looked = now
        return self.is_gone()

    def seconds_left(self) -> float:
        """Return how long it may still wait for its begin; FOR_EVER without a limit, or once it has begun."""
        if self.has_begun or self.deadline == math.inf:
            return FOR_EVER
        return max(0.0, self.deadline - time.monotonic())
