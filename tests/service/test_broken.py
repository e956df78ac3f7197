"""The server's page of an error becomes the body of every error."""

from __future__ import annotations

import json
import socket

import pytest
from gunicorn import util

from service import broken, schema
from service.broken import BrokenHttpSocket

BROKEN = "This is not HTTP as it must be"
WRONG = "invalid_request_error"


@pytest.mark.parametrize(
    ("status", "reason", "told", "kind", "message"),
    [
        (400, "Bad Request", "Invalid Method '<>'", WRONG, f"{BROKEN}: Invalid Method '<>'"),
        (431, "Header Fields Too Large", "too\nlarge", WRONG, f"{BROKEN}: too\nlarge"),
        (500, "Internal Server Error", "", "internal_error", "Internal Server Error"),
    ],
)  # fmt: skip
def test_a_page_becomes_an_error(status: int, reason: str, told: str, kind: str, message: str) -> None:
    server, client = socket.socketpair()
    with server, client:
        util.write_error(BrokenHttpSocket(server), status, reason, told)
        server.close()
        head, _, body = client.recv(1 << 16).partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    assert lines[0] == f"HTTP/1.1 {status} {reason}"
    headers = dict(line.split(": ") for line in lines[1:])
    assert headers["Content-Type"] == "application/json" and headers["Connection"] == "close"
    assert int(headers["Content-Length"]) == len(body) and headers["X-Request-ID"]
    assert json.loads(body) == schema.error_response(message, kind, None, "broken_http")


def test_what_is_no_page_stays_as_it_is() -> None:
    assert broken.answer(b"HTTP/1.1 200 OK\r\n\r\n") == b"HTTP/1.1 200 OK\r\n\r\n"
