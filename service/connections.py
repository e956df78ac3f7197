"""Tells whether the client of a request has gone. Knows the server's sockets, nothing of HTTP or models."""

from __future__ import annotations

import select
import socket
import struct
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

SERVER_SOCKET = "gunicorn.socket"  # where the server keeps a request's connection in its environment
# The other side sends no more, seen even behind bytes that nobody has read yet. macOS has no such event.
END_OF_STREAM: int = getattr(select, "POLLRDHUP", 0)
END_OF_HEAD = b"\r\n\r\n"
USUAL_HEAD, LONGEST_HEAD = 1 << 12, 1 << 16  # bytes
BROKEN = select.POLLHUP | select.POLLERR | select.POLLNVAL

FREE_SECONDS = 30.0  # that a client may take to send or to take something, however slowly
LEAST_RATE = 5000  # bytes/s after that

IsGone = Callable[[], bool]


def watch(environ: Mapping[str, Any], end_of_stream: int = END_OF_STREAM) -> IsGone:
    """Return what tells, from any thread and without ever raising or waiting, whether the client has gone.

    Gone is who closed or reset the connection or ended its own half, as proxies take it too: hardly a client
    still reads after that. A connection closed on this side is gone; where the server gives no socket, nobody
    ever is. Bytes of a next request stay unread. `end_of_stream` is the event of poll(2) for the end of the
    client's half, 0 where the system has none: there the end is seen once all bytes before it are read.
    """
    connection: socket.socket | None = environ.get(SERVER_SOCKET)
    if connection is None:
        return lambda: False

    def is_gone() -> bool:
        try:
            return connection.fileno() < 0 or _is_over(connection, end_of_stream)
        except OSError:
            return True
        except ValueError:  # closed this very moment, or TLS, which cannot be looked into without POLLRDHUP
            return False

    return is_gone


def is_readable(connection: socket.socket, milliseconds: int) -> bool:
    """Wait a moment for bytes, or for the end of the connection."""
    poll = select.poll()
    poll.register(connection.fileno(), select.POLLIN)
    return bool(poll.poll(milliseconds))


def has_head(connection: socket.socket) -> bool:
    """Look whether a request's head has come; where it has not, wake whoever waits by more bytes of it alone.

    What cannot be looked into, or is longer than a head should be, counts as one.
    """
    for num_bytes in (USUAL_HEAD, LONGEST_HEAD):
        try:
            found = connection.recv(num_bytes, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except (OSError, ValueError):  # broken, or TLS
            return True
        if not found or END_OF_HEAD in found:
            return True
        if len(found) < num_bytes:
            wake_by(connection, len(found) + 1)
            return False
    return True


def wake_by(connection: socket.socket, num_bytes: int) -> None:
    """Let a connection count as readable from so many bytes on, or at its end."""
    with suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, num_bytes)


def is_too_slow(seconds: float, num_bytes: int) -> bool:
    """Tell whether so many bytes should have come or gone sooner: a thread waits for the rest."""
    return seconds > FREE_SECONDS + num_bytes / LEAST_RATE


def limit_stalls(connection: socket.socket, seconds: float) -> None:
    """Let blocking reads and writes fail after so long without a byte, for as long as the connection lasts.

    Options of the socket: a time-out of Python's would cost two system calls for each.
    """
    whole, microseconds = divmod(round(seconds * 1e6), 1_000_000)
    for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
        connection.setsockopt(socket.SOL_SOCKET, option, struct.pack("ll", whole, microseconds))


def _is_over(connection: socket.socket, end_of_stream: int) -> bool:
    """Ask for events of the end. Raises OSError for a broken connection, ValueError where nobody can ask."""
    poll = select.poll()  # of this call alone: no two threads may use one at a time
    poll.register(connection.fileno(), end_of_stream or select.POLLIN)
    for _, events in poll.poll(0):
        if events & (BROKEN | end_of_stream):
            return True
        return _is_at_end(connection)
    return False


def _is_at_end(connection: socket.socket) -> bool:
    """Look at the next byte of a readable connection, which stays there."""
    try:
        return not connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except BlockingIOError:  # another thread has read it meanwhile
        return False
