"""Requests that are being received: cut off where they come too slowly, as each holds a thread.

A byte now and then would do for a limit on each read. Knows the server's connections, no route.
Source of the rule: Apache's mod_reqtimeout, which gives a request some seconds, and more for what arrives.
"""

from __future__ import annotations

import socket
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from service import connections

CHUNKED_SECONDS = 120.0  # of a body that does not say its length
LOOK_SECONDS = 1.0


@dataclass(eq=False)
class Arrival:
    """One request on its way in."""

    begin: float
    body: Any = None  # its reader, once the head is there
    num_bytes: int = 0  # of the body

    def is_late(self, now: float) -> bool:
        """Tell whether it should have been here, or have brought more of its body by now."""
        seconds = now - self.begin
        if self.body is None:
            return connections.is_too_slow(seconds, 0)
        num_left = left(self.body)
        if num_left is None:
            return seconds > CHUNKED_SECONDS
        return num_left > 0 and connections.is_too_slow(seconds, self.num_bytes - num_left)


class Arrivals:
    """Those of one worker; each thread notes its own, the main thread looks at all."""

    def __init__(self) -> None:
        """Begin with none."""
        self._arrivals: dict[Any, Arrival] = {}  # by connection
        self._looked = 0.0

    def begin(self, conn: Any) -> None:
        """Note that the head of a request has begun to arrive."""
        self._arrivals[conn] = Arrival(time.monotonic())

    def take(self, conn: Any, req: Any) -> None:
        """Note that its head is there."""
        if arrival := self._arrivals.get(conn):
            reader = getattr(req.body, "reader", None)
            arrival.body, arrival.num_bytes = reader, left(reader) or 0

    def end(self, conn: Any) -> None:
        """Note that it has been answered."""
        self._arrivals.pop(conn, None)

    def cut_off_late(self) -> None:
        """Read no more from connections whose requests are late: whoever reads there finds their end."""
        now = time.monotonic()
        if now - self._looked < LOOK_SECONDS:
            return
        self._looked = now
        for conn, arrival in self._arrivals.copy().items():  # at once: other threads change it
            if arrival.is_late(now):
                with suppress(OSError):
                    conn.sock.shutdown(socket.SHUT_RD)


def left(reader: Any) -> int | None:
    """Return the bytes of a body that nobody has read: 0 after the last chunk, None before it."""
    num_bytes: int | None = getattr(reader, "length", None)
    if num_bytes is not None:
        return num_bytes
    return 0 if getattr(reader, "parser", None) is None else None
