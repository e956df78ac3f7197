"""What is read away after an answer, and when that ends."""

from __future__ import annotations

import selectors
import socket
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from service.lingering import MOST_SECONDS, SILENT_SECONDS, Lingering


class Case:
    """A connection that lingers, a clock, and what has been dropped."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(time, "monotonic", lambda: self.now)
        server, self.client = socket.socketpair()
        self.dropped: list[Any] = []
        self.poller, self.conn = selectors.DefaultSelector(), Conn(server)
        self.lingering = Lingering(self.dropped.append)
        self.lingering.begin(self.poller, self.conn)

    def dispatch(self) -> None:
        for key, _ in self.poller.select(0):
            key.data(key.fileobj)

    def end_overdue(self, *, is_ending: bool = False) -> None:
        self.lingering.end_overdue(self.poller, is_ending=is_ending)


class Conn:
    def __init__(self, sock: socket.socket) -> None:
        self.sock, self.timeout = sock, 0.0


@pytest.fixture
def case(monkeypatch: pytest.MonkeyPatch) -> Iterator[Case]:
    made = Case(monkeypatch)
    with made.poller, made.client, made.conn.sock:
        yield made


def test_a_client_sees_the_end_and_one_that_closes_is_dropped(case: Case) -> None:
    assert case.client.recv(1) == b""
    case.client.close()
    case.dispatch()
    assert case.dropped == [case.conn]


def test_one_that_goes_on_sending_is_read_for_a_while(case: Case) -> None:
    for _ in range(3):
        case.client.sendall(b"x" * 1000)
        case.dispatch()
        case.now += SILENT_SECONDS - 0.1
        case.end_overdue()
    assert not case.dropped
    while case.now < 1000 + MOST_SECONDS + 1:
        case.client.sendall(b"x")
        case.dispatch()
        case.now += 1
    case.end_overdue()
    assert case.dropped == [case.conn]


def test_a_silent_one_is_dropped(case: Case) -> None:
    case.now += SILENT_SECONDS + 0.1
    case.end_overdue()
    assert case.dropped == [case.conn]


def test_where_the_worker_ends_nobody_goes_on(case: Case) -> None:
    for _ in range(3):
        case.client.sendall(b"x")
        case.dispatch()
        case.now += SILENT_SECONDS - 0.5
    case.end_overdue(is_ending=True)
    assert case.dropped == [case.conn]


def test_a_client_that_has_gone_is_dropped_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    dropped: list[Any] = []
    server, client = socket.socketpair()
    server.close()
    client.close()
    with selectors.DefaultSelector() as poller:
        conn = SimpleNamespace(sock=server, timeout=0.0)
        Lingering(dropped.append).begin(poller, conn)
    assert dropped == [conn]
