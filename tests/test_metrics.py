"""/metrics of two workers under load: what it counts is what the clients counted, whoever is asked."""

from __future__ import annotations

import http.client
import json
import os
import random
import signal
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from service.metrics import NAMESPACE
from tests.conftest import MODEL, Live
from tests.test_gunicorn import ROUTE, body, wait_until, workers

Serve = Callable[..., AbstractContextManager[Live]]
NUM_CLIENTS, NUM_REQUESTS, NUM_WORKERS = 8, 60, 2
MARK = "plugh"  # in every text and path that is made up
# method, path, body: each asked for about as often
KINDS: tuple[tuple[str, str, Callable[[], bytes | None]], ...] = (
    (
        "POST",
        ROUTE,
        lambda: body([f"{MARK} " + "a" * random.randint(1, 9) for _ in range(random.randint(1, 20))]),
    ),
    ("POST", ROUTE, lambda: body(MARK)),
    ("POST", ROUTE, lambda: body(5)),
    ("POST", ROUTE, lambda: json.dumps({"model": MARK, "input": MARK}).encode()),
    ("PUT", ROUTE, lambda: body(MARK)),
    ("GET", f"/{MARK}", lambda: None),
    (MARK.upper(), f"/v1/models/{MARK}", lambda: None),
    ("POST", f"/v1/{MARK}", lambda: body(MARK)),
    ("GET", "/v1/models", lambda: None),
)
ROUTES = {ROUTE: ROUTE, "/v1/models": "/v1/models", f"/v1/models/{MARK}": "/v1/models/{name:path}"}


@dataclass
class Counted:
    """What clients have seen."""

    answers: Counter[tuple[str, str]] = field(default_factory=Counter)  # by route and status
    tokens: int = 0
    texts: int = 0
    refused: int = 0

    def add(self, path: str, status: int, answer: Any) -> None:
        self.answers[ROUTES.get(path, "other"), str(status)] += 1
        self.refused += status == 429
        if status == 200 and path == ROUTE:
            self.tokens += answer["usage"]["total_tokens"]
            self.texts += len(answer["data"])


def ask(live: Live, method: str, path: str, content: bytes | None = None) -> tuple[int, Any]:
    with closing(http.client.HTTPConnection(live.url.removeprefix("http://"), timeout=60)) as connection:
        connection.request(method, path, content, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())


def load(live: Live, counted: Counted) -> None:
    """Let many clients ask for everything, each on new connections, so that both workers get their share."""

    def client(_: int) -> list[tuple[str, int, Any]]:
        kinds = random.choices(KINDS, k=NUM_REQUESTS)
        return [(path, *ask(live, method, path, content())) for method, path, content in kinds]

    with ThreadPoolExecutor(NUM_CLIENTS) as pool:
        for answers in pool.map(client, range(NUM_CLIENTS)):
            for answer in answers:
                counted.add(*answer)


def scrape(live: Live) -> tuple[int, str]:
    """Return who answered, and what."""
    with closing(http.client.HTTPConnection(live.url.removeprefix("http://"), timeout=60)) as connection:
        connection.request("GET", "/healthz?verbose=1")
        pid = json.loads(connection.getresponse().read())["process"]["pid"]
        connection.request("GET", "/metrics")
        answer = connection.getresponse()
        assert (answer.status, answer.headers["content-type"]) == (
            200,
            "text/plain; version=0.0.4; charset=utf-8",
        )
        return pid, answer.read().decode()


def scrape_all(live: Live) -> list[str]:
    """Return what each worker says."""
    found: dict[int, str] = {}

    def has_all() -> bool:
        found.update([scrape(live)])
        return len(found) == NUM_WORKERS

    wait_until(has_all)
    assert found.keys() == workers(live)
    return list(found.values())


def values(text: str, name: str, *labels: str) -> dict[tuple[str, ...], float]:
    """Return the samples of a name by the values of their labels."""
    return {
        tuple(sample.labels[label] for label in labels): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == f"{NAMESPACE}_{name}"
    }


def total(text: str, name: str) -> float:
    return sum(
        sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == f"{NAMESPACE}_{name}"
    )


def check(live: Live, counted: Counted, warm_up: float) -> None:
    """Compare what every worker says with what the clients have counted, and with each other."""
    # The last run is told of after its answer, and a request leaves the queue after it.
    wait_until(lambda: total(scrape(live)[1], "queue_requests") == 0)
    wait_until(lambda: total(scrape(live)[1], "batch_rows_total") >= counted.texts + warm_up)
    for text in scrape_all(live):
        found = values(text, "requests_total", "route", "status")
        own = {
            key: count for key, count in found.items() if key[0] in {route for route, _ in counted.answers}
        }
        assert own == counted.answers
        durations = values(text, "request_duration_seconds_count", "route")
        for route in {route for route, _ in counted.answers}:
            expected = sum(count for (other, _), count in counted.answers.items() if other == route)
            assert durations[route,] == expected
        assert values(text, "tokens_total", "model") == {(MODEL,): counted.tokens}
        assert total(text, "requests_refused_total") == counted.refused
        assert total(text, "batch_rows_total") == counted.texts + warm_up
        assert total(text, "queue_wait_seconds_count") == counted.answers[ROUTE, "200"]
        assert total(text, "queue_tokens") == total(text, "queue_requests") == 0
        memory = values(text, "resident_memory_bytes", "pid")
        assert {int(pid) for (pid,) in memory} == workers(live)
        assert min(memory.values()) > 10_000_000
        assert total(text, "model_info") == 1
        assert MARK not in text.lower()


def ready(live: Live, count: int) -> None:
    """Wait until so many workers have loaded since the start, and no others are left."""
    wait_until(lambda: live.log.read_text().count("model ready") == count)
    wait_until(lambda: len(workers(live)) == NUM_WORKERS)


def test_two_workers_count_what_their_clients_do_whoever_dies(tiny_models: Path, serve: Serve) -> None:
    """`THREADS=1`: many are refused."""
    counted = Counted()
    with serve(tiny_models, WORKERS=str(NUM_WORKERS), THREADS="1") as live:
        ready(live, 2)
        warm_up = total(scrape(live)[1], "batch_rows_total") / 2  # of one worker
        load(live, counted)
        assert {
            ("other", "404"),
            (ROUTE, "200"),
            (ROUTE, "404"),
            (ROUTE, "405"),
            (ROUTE, "422"),
            (ROUTE, "429"),
        } <= (counted.answers.keys())
        check(live, counted, 2 * warm_up)

        killed = min(workers(live))
        os.kill(killed, signal.SIGKILL)
        ready(live, 3)
        check(live, counted, 3 * warm_up)
        load(live, counted)
        check(live, counted, 3 * warm_up)

        before = workers(live)
        live.process.send_signal(signal.SIGHUP)
        ready(live, 5)
        wait_until(lambda: not workers(live) & before)
        check(live, counted, 5 * warm_up)
        load(live, counted)
        check(live, counted, 5 * warm_up)


def test_who_waits_too_long_and_who_leaves_are_counted(tiny_models: Path, serve: Serve) -> None:
    with serve(tiny_models, WORKERS=str(NUM_WORKERS), REQUEST_TIMEOUT="0.000001") as live:
        ready(live, 2)
        statuses = [ask(live, "POST", ROUTE, body(MARK))[0] for _ in range(20)]
        assert set(statuses) == {504}
        for text in scrape_all(live):
            assert total(text, "requests_timed_out_total") == 20
            assert values(text, "requests_total", "route", "status")[ROUTE, "504"] == 20


def folders() -> set[str]:
    return {path.name for parent in (Path("/dev/shm"),) for path in parent.glob("jina-onnx-server-*")}


def test_what_is_counted_goes_with_the_service(tiny_models: Path, serve: Serve) -> None:
    before = folders()
    with serve(tiny_models) as live:
        (own,) = [name for name in folders() - before if live.process.poll() is None]
    assert own not in folders()
