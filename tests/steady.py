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
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, BinaryIO

ROUTE = "/v1/embeddings"
ANSWER_SECONDS = 90  # longer than a stop may take: what comes later counts as hung
PAUSE_SECONDS = 0.02  # after a refused connection


class End(StrEnum):
    """How a request ended. What is not ANSWERED or REFUSED is lost, but for the race of KEPT_CLOSED."""

    ANSWERED = "answered"
    REFUSED = "refused"  # no connection: nothing was sent
    FRESH_CLOSED = "fresh_closed"  # a new connection ended before any byte of the answer
    KEPT_CLOSED = "kept_closed"  # the same on a connection that an earlier answer had promised to keep
    CUT = "cut"  # some of the answer came, not all of it
    HUNG = "hung"


LOST = (End.FRESH_CLOSED, End.CUT, End.HUNG)  # never right; KEPT_CLOSED is counted apart


@dataclass(frozen=True)
class Record:
    """One request: which texts it sent, how it ended, and what the answer was."""

    texts: Sequence[str]
    end: End
    begin: float
    status: int = 0
    body: bytes = b""
    is_last: bool = False  # the answer said that the connection closes

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

    def lost(self) -> list[Record]:
        """Return the requests that the service took and did not answer."""
        return [record for record in self.records if record.end in LOST]

    def answered(self) -> int:
        """Return the number of requests answered with vectors."""
        return sum(record.status == http.client.OK for record in self.records)


class Client:
    """One client: a connection that is kept as long as the service keeps it."""

    def __init__(self, port: int, model: str, log: Log) -> None:
        self._port, self._model, self._log = port, model, log
        self._socket: socket.socket | None = None
        self._stream: BinaryIO | None = None

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
        begin, is_kept = time.monotonic(), self._socket is not None
        try:
            connection, stream = self._connected()
        except OSError:
            return Record(texts, End.REFUSED, begin)
        first = b""
        try:
            connection.sendall(self._encode(texts))
            first = stream.readline()
            if not first:
                return Record(texts, End.KEPT_CLOSED if is_kept else End.FRESH_CLOSED, begin)
            headers = http.client.parse_headers(stream)
            body = stream.read(int(headers["content-length"]))
        except TimeoutError:
            return Record(texts, End.HUNG, begin)
        except OSError:
            before = End.KEPT_CLOSED if is_kept else End.FRESH_CLOSED
            return Record(texts, End.CUT if first else before, begin)
        if len(body) < int(headers["content-length"]):
            return Record(texts, End.CUT, begin)
        return Record(
            texts,
            End.ANSWERED,
            begin,
            status=int(first.split()[1]),
            body=body,
            is_last=headers["connection"].lower() == "close",
        )

    def _connected(self) -> tuple[socket.socket, BinaryIO]:
        if self._socket is None or self._stream is None:
            self._socket = socket.create_connection(("127.0.0.1", self._port), timeout=ANSWER_SECONDS)
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
def load(port: int, model: str, streams: Sequence[Iterator[Sequence[str]]]) -> Iterator[Log]:
    """Keep a client busy with each stream of texts until the block ends; then let all finish."""
    log = Log()

    def work(stream: Iterator[Sequence[str]]) -> None:
        client = Client(port, model, log)
        while not log.is_over.is_set():
            if client.send(next(stream)).end == End.REFUSED:
                time.sleep(PAUSE_SECONDS)
        client.close()

    threads = [threading.Thread(target=work, args=(stream,)) for stream in streams]
    for thread in threads:
        thread.start()
    try:
        wait_until(lambda: log.answered() >= 2 * len(streams))
        yield log
    finally:
        log.is_over.set()
        for thread in threads:
            thread.join()
