"""Connections that are over on this side: answered, closed for writing, read until the client closes too.

A connection closed over unread bytes is reset, and the answer before them lost. No thread waits for the
client: what still comes is read away by the loop of the worker. Knows sockets, no HTTP.
"""

from __future__ import annotations

import selectors
import socket
import time
from collections.abc import Callable
from functools import partial
from typing import Any

SILENT_SECONDS = 2.0  # in which a client must send or close
MOST_SECONDS = 30.0  # that it may go on sending
BLOCK_BYTES = 1 << 18
LOOK_SECONDS = 0.25  # between two looks for those that are overdue


class Lingering:
    """Those of one worker, used by its main thread alone."""

    def __init__(self, drop: Callable[[Any], None]) -> None:
        """Call `drop` with each connection that has ended."""
        self._drop = drop
        self._begun: dict[Any, float] = {}  # when, by connection
        self._looked = 0.0

    def begin(self, poller: selectors.BaseSelector, conn: Any) -> None:
        """Close a connection for writing and read on."""
        try:
            conn.sock.setblocking(False)
            conn.sock.shutdown(socket.SHUT_WR)
            poller.register(conn.sock, selectors.EVENT_READ, partial(self._read, poller, conn))
        except (OSError, ValueError):  # the client has gone
            self._drop(conn)
            return
        self._begun[conn] = now = time.monotonic()
        conn.timeout = now + SILENT_SECONDS

    def end_overdue(self, poller: selectors.BaseSelector, *, is_ending: bool) -> None:
        """Close what is silent or goes on for too long: where the worker `is_ending`, hardly longer."""
        now = time.monotonic()
        if now - self._looked < LOOK_SECONDS:
            return
        self._looked = now
        most = SILENT_SECONDS if is_ending else MOST_SECONDS
        for conn, begin in [*self._begun.items()]:
            if min(conn.timeout, begin + most) <= now:
                self._end(poller, conn)

    def _read(self, poller: selectors.BaseSelector, conn: Any, client: Any) -> None:
        try:
            received = client.recv(BLOCK_BYTES)
        except OSError:
            received = b""
        if received:
            conn.timeout = time.monotonic() + SILENT_SECONDS
        else:
            self._end(poller, conn)

    def _end(self, poller: selectors.BaseSelector, conn: Any) -> None:
        del self._begun[conn]
        poller.unregister(conn.sock)
        self._drop(conn)
