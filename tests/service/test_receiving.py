"""Which requests come in too slowly, and what becomes of them."""

from __future__ import annotations

import socket
import time
from types import SimpleNamespace
from typing import Any

import pytest

from service.connections import FREE_SECONDS, LEAST_RATE
from service.receiving import CHUNKED_SECONDS, Arrival, Arrivals


class Conn:
    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock


def of_length(num_left: int) -> Any:
    return SimpleNamespace(length=num_left)


def in_chunks(*, is_read: bool) -> Any:
    return SimpleNamespace(parser=None if is_read else object())


@pytest.mark.parametrize(
    ("body", "num_bytes", "seconds", "is_late"),
    [
        (None, 0, FREE_SECONDS - 1, False),  # a head
        (None, 0, FREE_SECONDS + 1, True),
        (of_length(100), 100, FREE_SECONDS - 1, False),
        (of_length(100), 100, FREE_SECONDS + 1, True),
        (of_length(1), 10 * LEAST_RATE, FREE_SECONDS + 9, False),  # ten seconds' worth has come
        (of_length(1), 10 * LEAST_RATE, FREE_SECONDS + 11, True),
        (of_length(0), 100, 1e6, False),  # all is there: it computes
        (in_chunks(is_read=False), 0, CHUNKED_SECONDS - 1, False),
        (in_chunks(is_read=False), 0, CHUNKED_SECONDS + 1, True),
        (in_chunks(is_read=True), 0, 1e6, False),
    ],
)
def test_late_is_what_brings_too_little(body: Any, num_bytes: int, seconds: float, is_late: bool) -> None:
    assert Arrival(0.0, body, num_bytes).is_late(seconds) == is_late


def test_whoever_reads_a_late_request_finds_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    server, client = socket.socketpair()
    other, _client = socket.socketpair()
    with server, client, other, _client:
        late, early, arrivals = Conn(server), Conn(other), Arrivals()
        arrivals.begin(late)
        arrivals.take(late, SimpleNamespace(body=SimpleNamespace(reader=of_length(5))))
        now[0] += FREE_SECONDS + 1
        arrivals.begin(early)
        arrivals.cut_off_late()
        assert server.recv(1) == b""
        server.sendall(b"an answer")
        assert client.recv(100) == b"an answer"
        other.setblocking(False)
        with pytest.raises(BlockingIOError):
            other.recv(1)


def test_an_answered_request_is_not_late(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    server, client = socket.socketpair()
    with server, client:
        conn, arrivals = Conn(server), Arrivals()
        arrivals.begin(conn)
        arrivals.end(conn)
        now[0] += FREE_SECONDS + 1
        arrivals.cut_off_late()
        client.sendall(b"x")
        assert server.recv(1) == b"x"
