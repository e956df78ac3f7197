"""Who has gone and who still waits, over real sockets, in both ways of asking the system."""

from __future__ import annotations

import select
import socket
import struct
import threading
from collections.abc import Iterator

import pytest

from service import connections

LINGER_NOTHING = struct.pack("ii", 1, 0)  # close by a reset
NEXT_REQUEST = b"GET /livez HTTP/1.1\r\n\r\n"

ways = pytest.mark.parametrize(
    "end_of_stream",
    [
        pytest.param(0, id="peek"),
        pytest.param(
            connections.END_OF_STREAM,
            id="event",
            marks=pytest.mark.skipif(not connections.END_OF_STREAM, reason="this system has no POLLRDHUP"),
        ),
    ],
)


@pytest.fixture(params=["local", "tcp"])
def pair(request: pytest.FixtureRequest) -> Iterator[tuple[socket.socket, socket.socket]]:
    """The two ends of a connection: the server's and the client's."""
    if request.param == "local":
        server, client = socket.socketpair()
    else:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            client = socket.create_connection(listener.getsockname())
            server, _ = listener.accept()
    with server, client:
        yield server, client


def watch(connection: socket.socket, end_of_stream: int) -> connections.IsGone:
    return connections.watch({connections.SERVER_SOCKET: connection}, end_of_stream)


def wait_for_event(connection: socket.socket) -> None:
    """Wait until the other side's doing has arrived."""
    assert select.select([connection], [], [], 10)[0]


@ways
def test_a_client_that_waits_is_there(pair: tuple[socket.socket, socket.socket], end_of_stream: int) -> None:
    assert not watch(pair[0], end_of_stream)()


@ways
@pytest.mark.parametrize("timeout", [None, 30.0, 0.0], ids=["blocking", "limited", "non-blocking"])
def test_nothing_is_waited_for(
    pair: tuple[socket.socket, socket.socket], end_of_stream: int, timeout: float | None
) -> None:
    server, client = pair
    server.settimeout(timeout)
    assert not watch(server, end_of_stream)()
    client.close()
    wait_for_event(server)
    assert watch(server, end_of_stream)()
    assert server.gettimeout() == timeout


@ways
def test_a_next_request_stays_unread(pair: tuple[socket.socket, socket.socket], end_of_stream: int) -> None:
    server, client = pair
    is_gone = watch(server, end_of_stream)
    client.sendall(NEXT_REQUEST)
    wait_for_event(server)
    assert [is_gone(), is_gone()] == [False, False]
    assert server.recv(1000) == NEXT_REQUEST


@ways
def test_who_closed_is_gone(pair: tuple[socket.socket, socket.socket], end_of_stream: int) -> None:
    server, client = pair
    is_gone = watch(server, end_of_stream)
    client.close()
    wait_for_event(server)
    assert [is_gone(), is_gone()] == [True, True]


@ways
def test_who_ended_its_half_is_gone(pair: tuple[socket.socket, socket.socket], end_of_stream: int) -> None:
    server, client = pair
    client.shutdown(socket.SHUT_WR)
    wait_for_event(server)
    assert watch(server, end_of_stream)()


def test_who_reset_is_gone_in_both_ways() -> None:
    for end_of_stream in {0, connections.END_OF_STREAM}:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            client = socket.create_connection(listener.getsockname())
            server, _ = listener.accept()
        with server:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_NOTHING)
            client.close()
            wait_for_event(server)
            assert watch(server, end_of_stream)()


@pytest.mark.skipif(not connections.END_OF_STREAM, reason="this system has no POLLRDHUP")
def test_an_end_behind_unread_bytes_is_seen_where_the_system_tells(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    server, client = pair
    client.sendall(NEXT_REQUEST)
    client.close()
    wait_for_event(server)
    assert watch(server, connections.END_OF_STREAM)()
    assert server.recv(1000) == NEXT_REQUEST


@ways
def test_a_connection_closed_on_this_side_is_gone(
    pair: tuple[socket.socket, socket.socket], end_of_stream: int
) -> None:
    server, _ = pair
    is_gone = watch(server, end_of_stream)
    server.close()
    assert [is_gone(), is_gone()] == [True, True]


def test_nobody_is_ever_gone_where_the_server_gives_no_socket() -> None:
    assert not connections.watch({})()


@ways
def test_several_threads_may_ask_at_once(
    pair: tuple[socket.socket, socket.socket], end_of_stream: int
) -> None:
    server, client = pair
    is_gone = watch(server, end_of_stream)
    client.close()
    wait_for_event(server)
    answers: list[bool] = []
    threads = [
        threading.Thread(target=lambda: answers.extend(is_gone() for _ in range(500))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [True] * 2000
