"""When a thread goes on with its connection, and when it gives it back."""

from __future__ import annotations

import errno
import io
import selectors
import socket
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
from gunicorn.workers import gthread
from gunicorn.workers.gthread import ThreadWorker

from service import connections
from service.receiving import Arrivals
from service.worker import Worker

REQUEST = b"GET /livez HTTP/1.1\r\n\r\n"


class Connection:
    """What the worker knows of a connection, and the client's end of it."""

    def __init__(self) -> None:
        self.sock, self.client = socket.socketpair()
        self.parser = SimpleNamespace(unreader=SimpleNamespace(buf=io.BytesIO()))
        self.served = 0
        self.initialized, self.data_ready = True, False


@pytest.fixture
def conn() -> Iterator[Connection]:
    connection = Connection()
    with connection.sock, connection.client:
        yield connection


@pytest.fixture
def worker(monkeypatch: pytest.MonkeyPatch) -> Worker:
    """A worker of one thread and one connection; gunicorn's part only reads a request."""

    def serve_one(self: Worker, conn: Any) -> bool:
        received = conn.sock.recv(len(REQUEST))
        conn.served += bool(received)
        return bool(received)

    monkeypatch.setattr(ThreadWorker, "handle", serve_one)
    worker = object.__new__(Worker)
    worker.alive, worker.nr_conns, worker.cfg = True, 1, SimpleNamespace(threads=1)
    worker.keepalived_conns, worker.pending_conns = deque(), deque()
    worker.worker_connections, worker._arrivals = 10, Arrivals()
    return worker


def test_requests_that_follow_at_once_are_served_in_one_go(worker: Worker, conn: Connection) -> None:
    conn.client.sendall(REQUEST * 3)
    assert worker.handle(conn) is True
    assert conn.served == 3


def test_a_client_that_ends_ends_the_connection(worker: Worker, conn: Connection) -> None:
    conn.client.sendall(REQUEST)
    conn.client.close()
    assert worker.handle(conn) is False
    assert conn.served == 1


def test_a_connection_is_given_back_while_others_wait(worker: Worker, conn: Connection) -> None:
    worker.nr_conns = 2
    conn.client.sendall(REQUEST * 3)
    assert worker.handle(conn) is True
    assert conn.served == 1


def test_a_new_connection_without_a_byte_holds_no_thread(worker: Worker, conn: Connection) -> None:
    conn.initialized = False
    assert worker.handle(conn) is gthread._DEFER
    conn.client.sendall(REQUEST)
    assert worker.handle(conn) is True
    assert (conn.served, conn.data_ready) == (1, True)


@pytest.mark.parametrize("idle", ["keepalived_conns", "pending_conns"])
def test_idle_connections_wait_for_no_thread(worker: Worker, conn: Connection, idle: str) -> None:
    worker.nr_conns = 2
    setattr(worker, idle, deque([object()]))
    conn.client.sendall(REQUEST * 3)
    assert worker.handle(conn) is True
    assert conn.served == 3


def test_a_stopping_worker_gives_connections_back(worker: Worker, conn: Connection) -> None:
    worker.alive = False
    conn.client.sendall(REQUEST * 3)
    assert worker.handle(conn) is True
    assert conn.served == 1


def test_bytes_read_ahead_are_left_to_gunicorn(worker: Worker, conn: Connection) -> None:
    conn.parser.unreader.buf = io.BytesIO(REQUEST)
    conn.client.sendall(REQUEST * 3)
    assert worker.handle(conn) is True
    assert conn.served == 1


def test_a_silent_connection_waits_while_the_worker_ends(worker: Worker, conn: Connection) -> None:
    worker.alive, worker.poller = False, selectors.DefaultSelector()
    ended: Future[Any] = Future()
    ended.set_result(gthread._DEFER)
    with worker.poller:
        worker.finish_request(conn, ended)
        assert [*worker.pending_conns] == [conn]
        conn.client.sendall(REQUEST)
        assert worker.poller.select(0)


@pytest.mark.parametrize(("number", "is_waited_for"), [(errno.EMFILE, True), (errno.EBADF, False)])
def test_without_a_descriptor_connections_wait(
    worker: Worker, monkeypatch: pytest.MonkeyPatch, number: int, is_waited_for: bool
) -> None:
    def accept(self: Worker, listener: Any) -> None:
        raise OSError(number, "no descriptor")

    monkeypatch.setattr(ThreadWorker, "accept", accept)
    warned: list[str] = []
    worker.log = SimpleNamespace(warning=warned.append)
    with nullcontext() if is_waited_for else pytest.raises(OSError, match="no descriptor"):
        worker.accept(None)
    assert bool(warned) == is_waited_for


class Idle:
    """A connection that waits for its next request."""

    def __init__(self, poller: selectors.BaseSelector) -> None:
        self.sock, self.client = socket.socketpair()
        self.is_closed = False
        poller.register(self.sock, selectors.EVENT_READ)

    def close(self) -> None:
        self.is_closed = True
        self.sock.close()
        self.client.close()


def test_a_newcomer_takes_the_place_of_the_one_that_has_been_idle_longest(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    accepted: list[Any] = []
    monkeypatch.setattr(ThreadWorker, "accept", lambda self, listener: accepted.append(listener))
    with selectors.DefaultSelector() as worker.poller:
        asking, oldest, newer = (Idle(worker.poller) for _ in range(3))
        asking.client.sendall(REQUEST)  # the loop is about to take it
        worker.keepalived_conns.extend([asking, oldest, newer])
        worker.nr_conns = worker.worker_connections - 2
        worker.accept("first")
        assert not oldest.is_closed
        worker.nr_conns += 1
        worker.accept("second")
        assert (asking.is_closed, oldest.is_closed, newer.is_closed) == (False, True, False)
        assert worker.nr_conns == worker.worker_connections - 2
        asking.close()
        newer.close()
    assert accepted == ["first", "second"]


def test_connections_that_never_sent_a_byte_go_first(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ThreadWorker, "accept", lambda self, listener: None)
    with selectors.DefaultSelector() as worker.poller:
        kept, silent = Idle(worker.poller), Idle(worker.poller)
        worker.keepalived_conns.append(kept)
        worker.pending_conns.append(silent)
        worker.nr_conns = worker.worker_connections
        worker.accept(None)
        assert (kept.is_closed, silent.is_closed) == (False, True)
        kept.close()


def test_reads_and_writes_of_a_client_that_stalls_end() -> None:
    server, client = socket.socketpair()
    with server, client:
        connections.limit_stalls(server, 0.05)
        with pytest.raises(BlockingIOError):
            server.recv(1)
        with pytest.raises(BlockingIOError):
            server.sendall(b"x" * (1 << 24))
