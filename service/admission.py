"""Who may come in: counts the requests of a worker and the tokens they wait for. Knows no HTTP and no model.

Tokens are estimated from the texts, before any work: who is refused is refused at once. What has been
computed of a request counts no longer, so that the count is what the queue still has before it. A request of
more than the limit counts for half of it until its rest is less: turns are fair, nobody waits for all of it.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass

from service.errors import ClientGone, Overloaded, WaitedTooLong
from service.observing import NOBODY, Observer, Unserved
from service.tickets import Ticket

HALF_LIFE_SECONDS = 10.0  # after which what was computed counts half in the speed of the queue
MAX_RETRY_SECONDS = 3600
# The queue is open while this share of it is taken at most, to whatever fits then: were it open to all that
# fits at any time, small requests would keep it full, and batches, of which fewer come, find no room ever.
OPEN_SHARE = 3 / 4
# One that does not fit then closes it for all until it would, or until this share is taken: a worker that has
# as much before it is busy meanwhile.
CLOSED_SHARE = 1 / 2
LEAST_SHARED_TOKENS = 16_384  # that every large request counts for: a shorter queue is worked off in a moment


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a worker may hold at once, and how long a request may wait to begin."""

    max_tokens: int
    max_requests: int
    max_body_bytes: int  # of all requests together
    wait_seconds: float = math.inf


@dataclass
class Counts:
    """The requests of this worker: held now, and by their ends."""

    requests: int = 0
    tokens: int = 0
    admitted: int = 0
    refused: int = 0
    timed_out: int = 0
    disconnected: int = 0


class Admission:
    """The door of a worker."""

    def __init__(self, limits: Limits, observer: Observer = NOBODY) -> None:
        """Let in what the limits allow."""
        self._limits, self._observer = limits, observer
        self._counts = Counts()
        self._body_bytes = 0
        self._open_below = limits.max_tokens * OPEN_SHARE  # tokens that may wait where one more comes in
        self._guard = threading.Lock()
        # The speed is tokens by seconds in which there was work, both fading.
        self._work = self._busy_seconds = 0.0
        self._last = time.monotonic()

    @contextmanager
    def request(self, is_gone: Callable[[], bool], num_body_bytes: int) -> Iterator[Ticket]:
        """Hold a request until the block ends; its tokens are admitted in it. Raises Overloaded."""
        begin = time.monotonic()
        ticket = Ticket(begin + self._limits.wait_seconds, is_gone, self._progress, begin=begin)
        self._enter(ticket, num_body_bytes)
        try:
            yield ticket
        except (WaitedTooLong, ClientGone) as error:
            is_late = isinstance(error, WaitedTooLong)
            with self._guard:
                self._counts.timed_out += is_late
                self._counts.disconnected += not is_late
            self._observer.unserved(Unserved.TIMED_OUT if is_late else Unserved.DISCONNECTED)
            raise
        finally:
            self._leave(ticket)

    def admit(self, ticket: Ticket, num_tokens: int, *, is_held: bool = False) -> None:
        """Let a request wait for so many tokens; where they are `is_held`, until it is answered.

        One of more than the limit comes in where half of it is free, and no second one beside it; where that
        half is less than `LEAST_SHARED_TOKENS`, alone. What is held counts whole, as its answer takes memory
        for each token. Raises Overloaded.
        """
        with self._guard:
            limit = self._limits.max_tokens
            is_whole = is_held or num_tokens <= max(limit, LEAST_SHARED_TOKENS)
            num_counted = num_tokens if is_whole else max(limit // 2 + 1, LEAST_SHARED_TOKENS)
            excess = self._counts.tokens + num_counted - limit
            if self._is_closed() or (self._counts.tokens > 0 and excess > 0):
                self._open_below = min(self._open_below, max(limit - num_counted, limit * CLOSED_SHARE))
                too_many = max(1, excess, self._counts.tokens - self._open_below)
                reason = (
                    f"{self._counts.tokens} tokens wait and this request has some {num_tokens}, more than "
                    f"there is room for ({limit}, MAX_QUEUE_TOKENS)"
                )
                raise self._refusal(reason, min(too_many, self._counts.tokens))
            self._fade()
            ticket.num_tokens, ticket.most_counted, ticket.is_held = num_tokens, num_counted, is_held
            self._counts.tokens += num_counted
            self._counts.admitted += 1
        self._observer.queue_changed(0, num_counted)

    def hold(self, ticket: Ticket, num_bytes: int) -> None:
        """Make room for more of a request's body. Raises Overloaded."""
        with self._guard:
            self._hold(ticket, num_bytes)

    def status(self) -> dict[str, float]:
        """Return the counts and the speed in tokens/s, 0 where nothing was computed yet."""
        with self._guard:
            return {**asdict(self._counts), "tokens_per_second": round(self._speed(), 1)}

    def _enter(self, ticket: Ticket, num_body_bytes: int) -> None:
        limits, counts = self._limits, self._counts
        with self._guard:
            if self._is_closed():
                reason = f"{counts.tokens} tokens wait already (MAX_QUEUE_TOKENS {limits.max_tokens})"
                raise self._refusal(reason, max(1, counts.tokens - self._open_below))
            if counts.requests >= limits.max_requests:
                raise self._refusal(f"{counts.requests} requests wait already (THREADS)", self._of_one())
            self._hold(ticket, num_body_bytes)
            counts.requests += 1
        self._observer.queue_changed(1, 0)

    def _hold(self, ticket: Ticket, num_bytes: int) -> None:
        of_others = self._body_bytes - ticket.num_body_bytes
        if self._body_bytes + num_bytes > self._limits.max_body_bytes and of_others:
            raise self._refusal(f"the bodies of other requests take {of_others} bytes", self._of_one())
        self._body_bytes += num_bytes
        ticket.num_body_bytes += num_bytes

    def _of_one(self) -> float:
        """Return the tokens of a usual request: when those are computed, there may be room for another."""
        return self._counts.tokens / max(1, self._counts.requests)

    def _is_closed(self) -> bool:
        """Tell whether too much waits for anybody to come in."""
        is_closed = self._counts.tokens > self._open_below
        if not is_closed:
            self._open_below = self._limits.max_tokens * OPEN_SHARE
        return is_closed

    def _leave(self, ticket: Ticket) -> None:
        with self._guard:
            self._fade()
            # The last run may be told of only now: what is no longer there is not taken off again.
            num_tokens, ticket.num_tokens = ticket.num_counted, 0
            self._counts.requests -= 1
            self._counts.tokens -= num_tokens
            self._body_bytes -= ticket.num_body_bytes
        self._observer.queue_changed(-1, -num_tokens)
        if ticket.has_begun:
            self._observer.waited(ticket.waited_seconds)

    def _refusal(self, reason: str, num_tokens: float) -> Overloaded:
        """Count a refusal; the caller should come again when so many tokens more have been computed."""
        self._counts.refused += 1
        self._observer.unserved(Unserved.REFUSED)
        speed = self._speed()
        seconds = math.ceil(num_tokens / speed) if speed else 1
        return Overloaded(reason, min(max(1, seconds), MAX_RETRY_SECONDS))

    def _progress(self, ticket: Ticket, num_tokens: int) -> None:
        with self._guard:
            self._fade()
            self._work += num_tokens
            num_counted = ticket.num_counted
            if not ticket.is_held:
                ticket.num_tokens = max(0, ticket.num_tokens - num_tokens)
            num_done = num_counted - ticket.num_counted
            self._counts.tokens -= num_done
        self._observer.queue_changed(0, -num_done)

    def _speed(self) -> float:
        self._fade()
        return self._work / self._busy_seconds if self._work else 0.0

    def _fade(self) -> None:
        """Bring work and time up to now; idle time does not count."""
        now = time.monotonic()
        if self._counts.tokens:
            fading = 0.5 ** ((now - self._last) / HALF_LIFE_SECONDS)
            self._work *= fading
            self._busy_seconds = self._busy_seconds * fading + now - self._last
        self._last = now
