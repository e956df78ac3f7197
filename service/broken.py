"""What a client is told whose bytes are no HTTP: the body of every error, in place of the server's page.

Knows how gunicorn writes its page, and no route. The master loads it: it imports nothing of the service.
"""

from __future__ import annotations

import html
import json
import random
import re
from typing import Any

PAGE = re.compile(rb"HTTP/1\.1 (\d+) ([^\r]*)\r\n.*<h1><p>.*?</p></h1>\s*(.*?)\s*</body>", re.DOTALL)
SERVER_ERROR = 500


class BrokenHttpSocket:
    """A client's socket that the server writes its page of an error to."""

    def __init__(self, connection: Any) -> None:
        """Send over a connection, which stays the caller's."""
        self._connection = connection

    def sendall(self, data: bytes) -> None:
        """Send the error that a page describes."""
        self._connection.sendall(answer(data))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)


def answer(page: bytes) -> bytes:
    """Return the answer for a page; what is none stays as it is."""
    found = PAGE.match(page)
    if not found:
        return page
    status, reason, told = int(found[1]), found[2].decode("latin1"), html.unescape(found[3].decode("latin1"))
    message = f"This is not HTTP as it must be: {told}" if told else reason
    kind = "internal_error" if status >= SERVER_ERROR else "invalid_request_error"
    error = {"message": message, "type": kind, "param": None, "code": "broken_http"}
    body = json.dumps({"error": error, "detail": message}).encode()
    head = (
        f"HTTP/1.1 {status} {reason}\r\nConnection: close\r\nContent-Type: application/json\r\n"
        f"X-Request-ID: {random.getrandbits(128):032x}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode("latin1") + body
