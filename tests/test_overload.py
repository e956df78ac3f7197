"""A live service that has more to do than it can: who is refused, who leaves, and what the others get."""

from __future__ import annotations

import http.client
import json
import random
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from convert import texts as converter_texts
from convert.recipe import DEFAULT_PRECISIONS
from service.manifest import Precision
from tests.conftest import MODEL, Live
from tests.test_independence import LOWEST_COSINE

Serve = Callable[..., AbstractContextManager[Live]]
ROUTE = "/v1/embeddings"
LONG_TEXT = "some longer words about nothing " * 60  # more than the model takes
BULK = [f"{number} {LONG_TEXT}" for number in range(128)]  # seconds on two cores
SECONDS = 60.0


def body(texts: str | list[str]) -> bytes:
    return json.dumps({"model": MODEL, "input": texts, "truncate": True, "embedding_type": "float"}).encode()


def connect(live: Live) -> http.client.HTTPConnection:
    return http.client.HTTPConnection(live.url.removeprefix("http://"), timeout=SECONDS)


def post(live: Live, texts: str | list[str]) -> tuple[int, dict[str, str], Any]:
    connection = connect(live)
    try:
        connection.request("POST", ROUTE, body(texts), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        return (
            answer.status,
            {name.lower(): value for name, value in answer.getheaders()},
            json.loads(answer.read()),
        )
    finally:
        connection.close()


def queue_of(live: Live) -> dict[str, float]:
    connection = connect(live)
    connection.request("GET", "/healthz?verbose=1")
    found: dict[str, float] = json.loads(connection.getresponse().read())["queue"]
    connection.close()
    return found


def wait_until(is_true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SECONDS
    while not is_true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@contextmanager
def busy(live: Live) -> Iterator[Any]:
    """Keep the service at work with one bulk request."""
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(post, live, BULK)
        wait_until(lambda: queue_of(live)["tokens"] > 0)
        yield future
        status, _, answer = future.result(SECONDS)
        assert (status, len(answer["data"])) == (200, len(BULK))


@pytest.mark.parametrize("texts", [LONG_TEXT, [LONG_TEXT] * 64], ids=["single", "batch"])
def test_over_the_limit_a_request_is_refused_while_others_go_on(
    real_models: Path, serve: Serve, texts: str | list[str]
) -> None:
    with serve(real_models, MAX_QUEUE_TOKENS="400", PRECISION="fp32") as live:
        with busy(live) as bulk:  # more than the limit by itself: it counts for half of that
            status, headers, answer = post(live, texts)
            assert not bulk.done()
            assert queue_of(live).items() >= {"refused": 1, "requests": 1, "timed_out": 0}.items()
        assert (status, answer["error"]["type"], answer["error"]["code"]) == (
            429,
            "rate_limit_error",
            "overloaded",
        )
        assert int(headers["retry-after"]) >= 1
        assert post(live, "a short query")[0] == 200


def test_more_requests_than_threads_are_refused_and_health_still_answers(
    real_models: Path, serve: Serve
) -> None:
    with serve(real_models, THREADS="1", PRECISION="fp32") as live, busy(live):
        status, headers, answer = post(live, "a short query")
        assert (status, answer["error"]["code"]) == (429, "overloaded")
        assert "THREADS" in answer["detail"]
        assert queue_of(live)["refused"] == 1


def test_who_waits_too_long_gets_504_and_is_not_computed(real_models: Path, serve: Serve) -> None:
    settings = {"REQUEST_TIMEOUT": "0.000001", "PRECISION": "fp32", "LOG_LEVEL": "info"}
    with serve(real_models, **settings) as live:
        status, _, answer = post(live, "a short query")
        assert (status, answer["error"]["type"], answer["error"]["code"]) == (
            504,
            "internal_error",
            "request_timeout",
        )
        found = queue_of(live)
        assert (found["timed_out"], found["tokens_per_second"], found["tokens"]) == (1, 0, 0)


def test_a_client_that_has_gone_is_dropped_and_counted(real_models: Path, serve: Serve) -> None:
    with serve(real_models, PRECISION="fp32") as live:
        host, port = live.url.removeprefix("http://").split(":")
        content = body(BULK * 4)
        head = f"POST {ROUTE} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        with socket.create_connection((host, int(port)), timeout=SECONDS) as connection:
            connection.sendall(head.encode() + f"Content-Length: {len(content)}\r\n\r\n".encode() + content)
            wait_until(lambda: queue_of(live)["tokens_per_second"] > 0)  # it is being computed
        wait_until(lambda: queue_of(live)["requests"] == 0)
        assert queue_of(live).items() >= {"disconnected": 1, "tokens": 0}.items()
        assert post(live, "still there")[0] == 200
        lines = [json.loads(line) for line in live.log.read_text().splitlines()]
    assert [line["status"] for line in lines if line.get("inputs") == len(BULK) * 4] == [499]


def vectors(answer: Any) -> np.ndarray:
    return np.array([item["embedding"] for item in answer["data"]])


@pytest.mark.parametrize(
    "precision", [*DEFAULT_PRECISIONS, pytest.param(Precision.INT4, marks=pytest.mark.full)]
)
def test_answers_under_load_are_those_of_each_text_alone(
    request: pytest.FixtureRequest, serve: Serve, tmp_path: Path, precision: Precision
) -> None:
    """Many clients at once: runs are shared, some wide, some narrow; every answer is its text's own."""
    texts = [text for text in converter_texts.evaluation() if len(text) < 300][:120]
    draw = random.Random(3)
    batches = [draw.sample(texts, draw.choice((1, 1, 2, 5, 16))) for _ in range(150)]
    models = request.getfixturevalue("int4_models" if precision == Precision.INT4 else "real_models")
    with serve(models, PRECISION=precision, CACHE_DIR=str(tmp_path)) as live:
        alone = {text: vectors(post(live, text)[2])[0] for text in texts}
        with ThreadPoolExecutor(16) as pool:
            answers = list(pool.map(lambda batch: post(live, batch), batches))
    assert {status for status, _, _ in answers} == {200}
    cosines = [
        float(row @ alone[text])
        for batch, (_, _, answer) in zip(batches, answers, strict=True)
        for text, row in zip(batch, vectors(answer), strict=True)
    ]
    assert min(cosines) >= LOWEST_COSINE[precision] - 2e-7  # rounding of float32
