"""Closed-loop clients: each sends its next request once the last is answered. Knows HTTP, no measurement.

The clients are threads of this process, which has nothing else to do meanwhile. What they send is encoded
before the clock starts and what they receive is parsed after it stops: the generator takes as little as
it can of the cores that the service runs on.
"""

from __future__ import annotations

import http.client
import math
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import orjson

from tests.bench.errors import BenchError
from tests.bench.server import MODEL, Service

ROUTE = "/v1/embeddings"
HEADERS = {"Content-Type": "application/json"}
MAX_SHOWN = 500  # characters of an unexpected answer


@dataclass(frozen=True)
class Answer:
    """The body of an answer and how long it took."""

    body: bytes
    seconds: float


@dataclass(frozen=True)
class Load:
    """All answers, each client's in its order, and the time from the first request to the last answer."""

    answers: list[Answer]
    seconds: float

    def parsed(self) -> list[dict[str, Any]]:
        """Return the answers' JSON."""
        return [orjson.loads(answer.body) for answer in self.answers]


def encode(texts: Sequence[str], model: str = MODEL) -> bytes:
    """Return the body of a request, as users send it: float vectors, cut at the model's limit."""
    return orjson.dumps({"model": model, "input": texts, "truncate": True})


def run(service: Service, streams: Sequence[Iterator[bytes]], seconds: float = math.inf) -> Load:
    """Send each stream's bodies from a client of its own until they end, or no more after `seconds`.

    Clients may share one stream. Raises BenchError when an answer is not 200.
    """
    connections = [service.connect() for _ in streams]
    try:
        with ThreadPoolExecutor(len(streams)) as clients:
            begin = time.perf_counter()
            futures = [
                clients.submit(_send_all, connection, stream, begin + seconds)
                for connection, stream in zip(connections, streams, strict=True)
            ]
            answers = [answer for future in futures for answer in future.result()]
            return Load(answers, time.perf_counter() - begin)
    finally:
        for connection in connections:
            connection.close()


def _send_all(
    connection: http.client.HTTPConnection, bodies: Iterator[bytes], deadline: float
) -> list[Answer]:
    answers = []
    for body in bodies:
        begin = time.perf_counter()
        connection.request("POST", ROUTE, body, HEADERS)
        response = connection.getresponse()
        received = response.read()
        end = time.perf_counter()
        if response.status != http.client.OK:
            shown = received.decode(errors="replace")[:MAX_SHOWN]
            raise BenchError(f"POST {ROUTE} answered {response.status}: {shown}")
        answers.append(Answer(received, end - begin))
        if end >= deadline:
            break
    return answers
