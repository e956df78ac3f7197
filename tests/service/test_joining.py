"""Head and body of an answer in one piece."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import nullcontext

import pytest

from service import connections
from service.joining import JoinedSocket

Pair = tuple[JoinedSocket, socket.socket, socket.socket]


@pytest.fixture
def pair() -> Iterator[Pair]:
    server, client = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)  # which keeps pieces apart
    client.settimeout(10)
    with server, client:
        yield JoinedSocket(server), server, client


def test_the_head_goes_with_the_first_bytes_after_it(pair: Pair) -> None:
    joined, _, client = pair
    for data in (b"head ", b"body", b" and more"):
        joined.sendall(data)
    assert [client.recv(100), client.recv(100)] == [b"head body", b" and more"]


def test_a_head_without_a_body_is_sent_at_the_end_and_once(pair: Pair) -> None:
    joined, server, client = pair
    joined.sendall(b"head")
    joined.flush()
    joined.flush()
    server.sendall(b"next")
    assert [client.recv(100), client.recv(100)] == [b"head", b"next"]


def test_other_ways_to_send_come_after_the_head(pair: Pair) -> None:
    joined, _, client = pair
    joined.sendall(b"head")
    joined.send(b"body")
    assert [client.recv(100), client.recv(100)] == [b"head", b"body"]


def test_all_else_is_the_sockets_own(pair: Pair) -> None:
    joined, server, _ = pair
    assert (joined.fileno(), joined.gettimeout()) == (server.fileno(), None)


def test_a_client_that_has_gone_is_no_error_at_the_end(pair: Pair) -> None:
    joined, _, client = pair
    joined.sendall(b"head")
    client.close()
    joined.flush()


@pytest.mark.parametrize("is_slow", [True, False], ids=["slowly", "in time"])
def test_a_client_that_takes_an_answer_too_slowly_is_left(
    is_slow: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes some whenever it would be left for taking none."""
    monkeypatch.setattr(connections, "FREE_SECONDS", 1.0 if is_slow else 60.0)
    monkeypatch.setattr(connections, "LEAST_RATE", 1e9)
    server, client = socket.socketpair()
    is_over = threading.Event()
    with server, client:
        connections.limit_stalls(server, 0.2)

        def read() -> None:
            while is_slow and not is_over.wait(0.05):
                client.recv(1 << 17)
            while not is_over.is_set() and client.recv(1 << 20):
                pass

        reader = threading.Thread(target=read, daemon=True)
        reader.start()
        joined = JoinedSocket(server)
        joined.sendall(b"head")
        expected = pytest.raises(ConnectionResetError, match="too slowly") if is_slow else nullcontext()
        with expected:
            joined.sendall(b"x" * (64 << 20))
        is_over.set()
        server.shutdown(socket.SHUT_RDWR)
        reader.join(10)
