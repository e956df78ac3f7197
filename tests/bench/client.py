"""One request at a time, and the tokens it must be billed for. Knows HTTP, no measurement."""

from __future__ import annotations

import http.client
import time
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import orjson

from tests.bench.errors import BenchError
from tests.bench.load import HEADERS, MAX_SHOWN
from tests.bench.server import ANSWER_SECONDS, Service
from tests.processes import LOCALHOST


@dataclass(frozen=True)
class Request:
    """What is sent, and the tokens it must be billed for."""

    route: str
    body: bytes
    num_billed: int


def send(service: Service, request: Request) -> float:
    """Return the seconds of one request. Raises BenchError on another answer or count of tokens."""
    return exchange(service, request)[0]


def exchange(service: Service, request: Request) -> tuple[float, dict[str, Any]]:
    """Return the seconds of one request and its answer. Raises BenchError as `send`."""
    # A connection of its own, open before the clock starts: the service closes those that idle for long.
    with closing(service.connect()) as connection:
        begin = time.perf_counter()
        connection.request("POST", request.route, request.body, HEADERS)
        response = connection.getresponse()
        received = response.read()
        seconds = time.perf_counter() - begin
    if response.status != http.client.OK:
        shown = received.decode(errors="replace")[:MAX_SHOWN]
        raise BenchError(f"POST {request.route} answered {response.status}: {shown}")
    answer: dict[str, Any] = orjson.loads(received)
    num_tokens = answer["usage"]["total_tokens"]
    if num_tokens != request.num_billed:
        raise BenchError(f"the service counted {num_tokens} tokens instead of {request.num_billed}")
    return seconds, answer


def post(port: int, route: str, body: bytes) -> dict[str, Any]:
    """Return the answer of a server that may be another one. Raises BenchError when it is not 200."""
    with closing(http.client.HTTPConnection(LOCALHOST, port, timeout=ANSWER_SECONDS)) as connection:
        connection.request("POST", route, body, HEADERS)
        response = connection.getresponse()
        received = response.read()
    if response.status != http.client.OK:
        shown = received.decode(errors="replace")[:MAX_SHOWN]
        raise BenchError(f"POST {route} answered {response.status}: {shown}")
    answer: dict[str, Any] = orjson.loads(received)
    return answer
