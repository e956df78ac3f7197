"""Reads request bodies, wanted and unwanted, never for long. Knows HTTP, no route and no JSON."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from falcon import HTTPBadRequest, Request

from service.connections import SERVER_SOCKET
from service.errors import BodyTooLarge, RequestError, UnsupportedMedia

PLAIN = "identity"
JSON_TYPES = ("application/json", "text/json")
STALL_SECONDS = 30.0  # how long a client may send nothing in the middle of a body
# How long a body that nobody wants is read away, and how long it may stall. What comes later is read when the
# answer has been sent, without a thread: refusals must not wait for uploads that were refused before.
DISCARD_SECONDS, DISCARD_STALL_SECONDS = 1.0, 0.1
DISCARD_BLOCK = 1 << 16
PART_BYTES = 1 << 20
INVITATION = b"HTTP/1.1 100 Continue\r\n\r\n"


def read(req: Request, max_bytes: int, hold: Callable[[int], None]) -> bytes:
    """Read a JSON body; `hold` is told of each further part of one that does not say its length.

    Raises UnsupportedMedia, BodyTooLarge, HTTPBadRequest for one that breaks off, and whatever `hold` does.
    """
    _check_media(req)
    if (req.content_length or 0) > max_bytes:
        raise BodyTooLarge(max_bytes)
    try:
        if _waits_for_invitation(req):
            _invite(req)
        with _stalls_limited(req, STALL_SECONDS):
            has_length = req.content_length is not None
            body = req.stream.read(max_bytes + 1) if has_length else _read_parts(req, max_bytes, hold)
    except RequestError:
        raise
    except Exception as error:  # noqa: BLE001  the server's own classes for broken HTTP, of no common kind
        raise HTTPBadRequest(description=f"The request body cannot be read: {error}") from error
    if len(body) > max_bytes:
        raise BodyTooLarge(max_bytes)
    if len(body) < (req.content_length or 0):
        reason = (
            f"It ended, or came too slowly, after {len(body)} of {req.content_length} bytes; send it again."
        )
        raise HTTPBadRequest(description=f"The request body is not whole. {reason}")
    req.context.is_body_read = len(body) == req.content_length
    return body


def _check_media(req: Request) -> None:
    content_type = (req.content_type or JSON_TYPES[0]).partition(";")[0].strip().lower()
    if content_type not in JSON_TYPES and not content_type.endswith("+json"):
        raise UnsupportedMedia("Content type", content_type, "Send 'Content-Type: application/json'.")
    if (coding := (req.get_header("Content-Encoding") or PLAIN).strip().lower()) != PLAIN:
        raise UnsupportedMedia("Content-Encoding", coding, "Send the JSON as it is, without the header.")


def _read_parts(req: Request, max_bytes: int, hold: Callable[[int], None]) -> bytes:
    """Read a body of unknown length up to one byte above the limit."""
    parts: list[bytes] = []
    num_bytes = 0
    while num_bytes <= max_bytes and (part := req.stream.read(min(PART_BYTES, max_bytes + 1 - num_bytes))):
        hold(len(part))
        parts.append(part)
        num_bytes += len(part)
    return b"".join(parts)


def discard(req: Request) -> None:
    """Read what is left of a body if it is there already: then the connection can be kept."""
    if req.context.get("is_body_read") or _waits_for_invitation(req):
        return
    if not req.content_length and not req.get_header("Transfer-Encoding"):
        return
    deadline = time.monotonic() + DISCARD_SECONDS
    try:
        with _stalls_limited(req, DISCARD_STALL_SECONDS):
            while time.monotonic() < deadline and req.stream.read(DISCARD_BLOCK):
                pass
    except Exception:  # noqa: BLE001  broken HTTP or a client that is gone: the answer may not arrive either way
        return


def _waits_for_invitation(req: Request) -> bool:
    """Tell whether the client sends its body when it is told to, and has not been."""
    expected = (req.get_header("Expect") or "").strip().lower()
    return expected == "100-continue" and not req.context.get("is_invited")


def _invite(req: Request) -> None:
    req.context.is_invited = True
    if connection := req.env.get(SERVER_SOCKET):
        connection.send(INVITATION)


@contextmanager
def _stalls_limited(req: Request, seconds: float) -> Iterator[None]:
    """Let reads of the connection fail after so long without a byte; writes stay as they were."""
    connection = req.env.get(SERVER_SOCKET)
    if connection is None:  # another server, or a test without one
        yield
        return
    before = connection.gettimeout()
    connection.settimeout(seconds)
    try:
        yield
    finally:
        connection.settimeout(before)
