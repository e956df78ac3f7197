"""Many kept-alive connections to one server, driven by one thread. Knows HTTP/1.1, no measurement.

The generator shares its cores with the server: requests are bytes made beforehand, bodies of answers are
counted and thrown away, and nothing waits in a thread of its own.
"""

from __future__ import annotations

import select
import socket
import time
from dataclasses import dataclass, field
from types import TracebackType

from tests.bench.errors import BenchError
from tests.processes import LOCALHOST

RECEIVE_BYTES, SEND_BYTES = 1 << 18, 1 << 20
CONNECT_SECONDS = 30
LOST = 0  # in place of a status: the connection ended without an answer
HEAD_END = b"\r\n\r\n"


@dataclass(frozen=True)
class Request:
    """A whole HTTP message, the texts in it, and the tokens they are billed for where that is known."""

    message: bytes
    num_texts: int
    num_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Exchange:
    """What became of a request of a stream; times are of the clock of `time.perf_counter`."""

    request: Request
    stream: int
    due: float
    sent: float
    ended: float
    status: int


@dataclass(slots=True, eq=False)
class _Connection:
    socket: socket.socket
    exchange: tuple[Request, int, float, float] | None = None  # request, stream, due, sent
    head: bytearray = field(default_factory=bytearray)
    status: int = LOST
    num_missing: int | None = None  # bytes of the body; None: the head is not complete
    is_last: bool = False  # the server closes after this answer


def message(route: str, body: bytes) -> bytes:
    """Return the bytes of a POST request with a JSON body."""
    head = f"POST {route} HTTP/1.1\r\nHost: {LOCALHOST}\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


class Wire:
    """Connections to one port; each has one request on its way at most."""

    def __init__(self, port: int) -> None:
        """Open none: each is opened when none is idle."""
        self._port = port
        self._epoll = select.epoll()
        self._open: dict[int, _Connection] = {}
        self._buffer = bytearray(RECEIVE_BYTES)
        self._idle: list[_Connection] = []

    def __enter__(self) -> Wire:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close every connection."""
        for connection in self._open.values():
            connection.socket.close()
        self._epoll.close()

    @property
    def num_waiting(self) -> int:
        """Return how many requests have no answer yet."""
        return sum(connection.exchange is not None for connection in self._open.values())

    def send(self, request: Request, stream: int, due: float) -> Exchange | None:
        """Send a request on an idle connection; return what became of it where that failed."""
        connection = self._idle.pop() if self._idle else self._connect()
        sent = time.perf_counter()
        connection.exchange = request, stream, due, sent
        try:
            connection.socket.sendall(request.message)
        except OSError:
            return self._end(connection, LOST)
        return None

    def receive(self, seconds: float | None) -> list[Exchange]:
        """Wait for what the server sends, at most some seconds; return the requests that are answered."""
        ended = []
        for descriptor, _ in self._epoll.poll(seconds):
            connection = self._open.get(descriptor)
            if connection is not None and (exchange := self._read(connection)) is not None:
                ended.append(exchange)
        return ended

    def _connect(self) -> _Connection:
        opened = socket.create_connection((LOCALHOST, self._port), CONNECT_SECONDS)
        opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BYTES)
        connection = _Connection(opened)
        self._open[opened.fileno()] = connection
        self._epoll.register(opened, select.EPOLLIN)
        return connection

    def _read(self, connection: _Connection) -> Exchange | None:
        try:
            size = connection.socket.recv_into(self._buffer)
        except OSError:
            size = 0
        if size == 0:
            if connection.exchange is not None:
                return self._end(connection, LOST)
            self._idle.remove(connection)
            self._drop(connection)
            return None
        if connection.num_missing is None:
            connection.head += self._buffer[:size]
            _read_head(connection)
        else:
            connection.num_missing -= size
        return self._end(connection, connection.status) if connection.num_missing == 0 else None

    def _end(self, connection: _Connection, status: int) -> Exchange:
        assert connection.exchange is not None
        exchange = Exchange(*connection.exchange, ended=time.perf_counter(), status=status)
        if status == LOST or connection.is_last:
            self._drop(connection)
        else:
            connection.exchange, connection.num_missing = None, None
            connection.head.clear()
            self._idle.append(connection)
        return exchange

    def _drop(self, connection: _Connection) -> None:
        self._epoll.unregister(connection.socket)
        del self._open[connection.socket.fileno()]
        connection.socket.close()


def _read_head(connection: _Connection) -> None:
    end = connection.head.find(HEAD_END)
    if end < 0:
        return
    lines = bytes(connection.head[:end]).lower().split(b"\r\n")
    fields = dict(line.split(b":", 1) for line in lines[1:])
    if b"content-length" not in fields:
        raise BenchError(f"an answer without Content-Length: {lines[0].decode(errors='replace')}")
    connection.status = int(lines[0].split()[1])
    connection.is_last = fields.get(b"connection", b"").strip() == b"close"
    num_received = len(connection.head) - end - len(HEAD_END)
    connection.num_missing = int(fields[b"content-length"]) - num_received
