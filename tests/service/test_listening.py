"""A port that turns clients away takes those that have connected."""

from __future__ import annotations

import socket
import sys

import pytest

from service.listening import turn_away


@pytest.mark.skipif(sys.platform != "linux", reason="an option of Linux")
@pytest.mark.parametrize(
    ("family", "host"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")], ids=["v4", "v6"]
)
def test_no_new_connection_is_made_and_none_is_lost(family: socket.AddressFamily, host: str) -> None:
    with socket.socket(family) as listener, socket.socket(family) as early, socket.socket(family) as late:
        try:
            listener.bind((host, 0))
        except OSError:
            pytest.skip(f"no {host} here")
        listener.listen()
        early.connect(listener.getsockname())
        early.sendall(b"sent before it was taken")
        assert turn_away([listener])
        late.settimeout(0.3)  # its system asks again after a second
        with pytest.raises(TimeoutError):
            late.connect(listener.getsockname())
        accepted, _ = listener.accept()
        with accepted:
            assert accepted.recv(100) == b"sent before it was taken"
            accepted.sendall(b"answer")
            assert early.recv(100) == b"answer"


def test_a_socket_that_is_gone_cannot_turn_away() -> None:
    class Gone(socket.socket):
        family = socket.AF_INET

    listener = Gone()
    listener.close()
    assert not turn_away([listener])
