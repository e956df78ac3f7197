"""Sends the head of an answer together with its body. Knows sockets, no HTTP.

The server sends them one after the other: two packets, two system calls, each of which lets another thread go
first, and a client that wakes up twice. One that takes its answer too slowly is left: it holds a thread.
"""

from __future__ import annotations

import errno
import socket
import time
from contextlib import suppress
from typing import Any

from service import connections

PART_BYTES = 1 << 18  # at once: of more, one call could take as long as there is now and then a byte


class JoinedSocket:
    """A client's socket for the time of one answer: its first bytes wait for those after them."""

    def __init__(self, connection: socket.socket) -> None:
        """Send over a connection, which stays the caller's."""
        self._connection = connection
        self._waiting = b""
        self._has_begun = False
        self._begin: float | None = None  # when the first bytes were sent
        self._num_sent = 0

    def sendall(self, data: bytes) -> None:
        """Send bytes and those that wait; the first ones wait.

        Raises ConnectionResetError for a client that takes them too slowly, and OSError as sockets do.
        """
        if self._has_begun:
            waiting, self._waiting = self._waiting, b""
            self._send(waiting + data if waiting else data)
        else:
            self._has_begun, self._waiting = True, data

    def flush(self) -> None:
        """Send what waits, if the client is still there."""
        if self._waiting:
            waiting, self._waiting = self._waiting, b""
            with suppress(OSError):
                self._send(waiting)

    def _send(self, data: bytes) -> None:
        """Send all; each call returns after the connection's own limit on stalls at the latest."""
        if self._begin is None:
            self._begin = time.monotonic()
        rest = memoryview(data)
        while rest:
            num_sent = self._connection.send(rest[:PART_BYTES])
            self._num_sent += num_sent
            rest = rest[num_sent:]
            if rest and connections.is_too_slow(time.monotonic() - self._begin, self._num_sent):
                raise ConnectionResetError(errno.ECONNRESET, "the client takes the answer too slowly")

    def __getattr__(self, name: str) -> Any:  # all else, with nothing left to be sent before it
        self.flush()
        return getattr(self._connection, name)
