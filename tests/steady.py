"""Keep-alive clients that send without pause and write down how each request ended. Retries nothing.

Raw sockets: a client library may send a request again without a word, and that is what must be seen here.
"""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, BinaryIO

from tests.processes import LOCALHOST

ROUTE = "/v1/embeddings"
ANSWER_SECONDS = 90  # longer than a stop may take: what comes later counts as hung
PAUSE_SECONDS = 0.02  # after a refused connection


class End(StrEnum):
    """How a request ended; all but ANSWERED and REFUSED are losses, KEPT_CLOSED maybe HTTP's own race."""

    ANSWERED = "answered"
    REFUSED = "refused"  # no connection: nothing was sent
    FRESH_CLOSED = "fresh_closed"  # a new connection ended before any byte of the answer
    KEPT_CLOSED = "kept_closed"  # the same on a connection that an earlier answer had promised to keep
    CUT = "cut"  # some of the answer came, not all of it
    HUNG = "hung"


@dataclass(frozen=True)
class Record:
    """One request: which texts it sent, how it ended, and what the answer was."""

    texts: Sequence[str]
    end: End
    begin: float
    status: int = 0
    body: bytes = b""
    is_last: bool = False  # the answer said that the connection closes
    port: int = 0  # the client's own

    def json(self) -> Any:
        """Return the answer's JSON."""
        return json.loads(self.body)


@dataclass
class Log:
    """What all clients wrote down."""

    records: list[Record] = field(default_factory=list)
    is_over: threading.Event = field(default_factory=threading.Event)

    def count(self) -> Counter[str]:
        """Count the ends; answers by their status."""
        return Counter(
            str(record.status) if record.end == End.ANSWERED else str(record.end) for record in self.records
        )

    def answered(self) -> int:
        """Return the number of requests answered with vectors."""
        return sum(record.status == http.client.OK for record in self.records)


class Client:
    """One client: a connection that is kept as long as the service keeps it."""

    def __init__(self, port: int, model: str, log: Log, seconds: float = ANSWER_SECONDS) -> None:
        self._port, self._model, self._log, self._seconds = port, model, log, seconds
        self._socket: socket.socket | None = None
        self._stream: BinaryIO | None = None

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        if self._stream and self._socket:
            self._stream.close()
            self._socket.close()
        self._socket = self._stream = None

    def send(self, texts: Sequence[str]) -> Record:
        """Send one request, once, and write down its end."""
        record = self._send(texts)
        self._log.records.append(record)
        if record.is_last or record.end != End.ANSWERED:
            self.close()
        return record

    def _send(self, texts: Sequence[str]) -> Record:
        begin, closed = time.monotonic(), End.KEPT_CLOSED if self._socket else End.FRESH_CLOSED
        try:
            connection, stream = self._connected()
        except OSError:
            return Record(texts, End.REFUSED, begin)
        sent = Record(texts, closed, begin, port=connection.getsockname()[1])
        first, headers, body = b"", http.client.HTTPMessage(), b""
        try:
            connection.sendall(self._encode(texts))
            first = stream.readline()
            headers = http.client.parse_headers(stream) if first else headers
            body = stream.read(int(headers.get("content-length", "0")))
        except TimeoutError:
            return replace(sent, end=End.HUNG)
        except OSError:
            pass
        if not first:
            return sent
        if not headers or len(body) < int(headers["content-length"]):
            return replace(sent, end=End.CUT)
        status, is_last = int(first.split()[1]), headers["connection"].lower() == "close"
        return replace(sent, end=End.ANSWERED, status=status, body=body, is_last=is_last)

    def _connected(self) -> tuple[socket.socket, BinaryIO]:
        if self._socket is None or self._stream is None:
            self._socket = socket.create_connection((LOCALHOST, self._port), timeout=self._seconds)
            self._stream = self._socket.makefile("rb")
        return self._socket, self._stream

    def _encode(self, texts: Sequence[str]) -> bytes:
        body = json.dumps({"model": self._model, "input": texts}).encode()
        head = f"POST {ROUTE} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


def wait_until(is_reached: Callable[[], object], seconds: float = 60) -> None:
    """Wait for something to come about; fail when it does not."""
    deadline = time.monotonic() + seconds
    while not is_reached():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.02)


@contextmanager
def load(port: int, model: str, streams: Sequence[Sequence[str]], num_churning: int = 0) -> Iterator[Log]:
    """Keep a client busy with each of the inputs, over and over, until the block ends; then let all finish.

    The last `num_churning` of them open a connection for every request.
    """
    log = Log()

    def work(texts: Sequence[str], keeps: bool) -> None:
        with Client(port, model, log) as client:
            while not log.is_over.is_set():
                if client.send(texts).end == End.REFUSED:
                    time.sleep(PAUSE_SECONDS)
                if not keeps:
                    client.close()

    threads = [
        threading.Thread(target=work, args=(texts, index < len(streams) - num_churning))
        for index, texts in enumerate(streams)
    ]
    for thread in threads:
        thread.start()
    try:
        wait_until(lambda: log.answered() >= 2 * len(streams))
        yield log
    finally:
        log.is_over.set()
        for thread in threads:
            thread.join()
