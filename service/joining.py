"""Sends the head of an answer together with its body. Knows sockets, no HTTP.

The server sends them one after the other: two packets, two system calls, each of which lets another thread go
first, and a client that wakes up twice.
"""

from __future__ import annotations

import socket
from contextlib import suppress
from typing import Any


class JoinedSocket:
    """A client's socket for the time of one answer: its first bytes wait for those after them."""

    def __init__(self, connection: socket.socket) -> None:
        """Send over a connection, which stays the caller's."""
        self._connection = connection
        self._waiting = b""
        self._has_begun = False

    def sendall(self, data: bytes) -> None:
        """Send bytes and those that wait; the first ones wait."""
        if self._has_begun:
            waiting, self._waiting = self._waiting, b""
            self._connection.sendall(waiting + data if waiting else data)
        else:
            self._has_begun, self._waiting = True, data

    def flush(self) -> None:
        """Send what waits, if the client is still there."""
        if self._waiting:
            waiting, self._waiting = self._waiting, b""
            with suppress(OSError):
                self._connection.sendall(waiting)

    def __getattr__(self, name: str) -> Any:  # all else, with nothing left to be sent before it
        self.flush()
        return getattr(self._connection, name)
