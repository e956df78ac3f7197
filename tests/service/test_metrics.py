"""What one process says in /metrics: names, labels, sums; what it must never say."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace

import pytest
from falcon.testing import TestClient
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from service.app import make_app, make_metrics
from service.config import Settings
from service.metrics import NAMESPACE, Metrics
from service.observing import Answer, Part, Source, Unserved
from service.registry import Registry
from service.scheduler import Scheduler
from tests.conftest import MODEL
from tests.processes import PROJECT

DOCUMENTATION = (PROJECT / "docs" / "metrics.md").read_text(encoding="utf-8")

GRAPH = SimpleNamespace(source=Source("tiny", "fp32"))
RUN = {"model": "tiny", "precision": "fp32", "part": "text"}


def samples(text: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Return the value of every series, by name without the namespace, and labels."""
    return {
        (sample.name.removeprefix(f"{NAMESPACE}_"), frozenset(sample.labels.items())): sample.value
        for family in parse_text(text)
        for sample in family.samples
    }


def value(metrics: Metrics, name: str, labels: Mapping[str, str] | None = None) -> float | None:
    content, _ = metrics.render()
    return samples(content.decode()).get((name, frozenset((labels or {}).items())))


@pytest.fixture
def metrics() -> Metrics:
    return make_metrics()


@pytest.fixture
def full(metrics: Metrics) -> Metrics:
    """Everything has happened once."""
    metrics.answered(Answer("/v1/embeddings", 200, 0.02, "tiny", 7))
    metrics.ran(GRAPH, 3, 25, 5, 0.004)
    metrics.waited(0.003)
    metrics.queue_changed(1, 40)
    metrics.loaded("tiny", "fp32", "cpu")
    for reason in Unserved:
        metrics.unserved(reason)
    return metrics


def test_a_run_is_counted_with_its_padding(metrics: Metrics) -> None:
    metrics.ran(GRAPH, 3, 25, 5, 0.004)
    metrics.ran(GRAPH, 1, 10, 0, 2.0)
    metrics.ran(SimpleNamespace(source=Source("tiny", "fp32", Part.VISION)), 1, 1000, 0, 1.0)
    assert value(metrics, "batch_tokens_sum", RUN) == 40
    assert value(metrics, "batch_tokens_count", RUN) == 2
    assert value(metrics, "batch_padding_tokens_total", RUN) == 5
    assert value(metrics, "batch_rows_total", RUN) == 4
    assert value(metrics, "run_duration_seconds_sum", RUN) == pytest.approx(2.004)
    assert value(metrics, "run_duration_seconds_bucket", RUN | {"le": "0.005"}) == 1
    assert value(metrics, "batch_tokens_sum", RUN | {"part": "vision"}) == 1000


def test_requests_are_counted_by_route_and_status_their_tokens_by_model(metrics: Metrics) -> None:
    for answer in (
        Answer("/v1/embeddings", 200, 0.02, "tiny", 7),
        Answer("/v1/rerank", 200, 0.02, "other-model", 5),
        Answer("/v1/embeddings", 200, 0.3, "tiny", 2),
        Answer("/v1/embeddings", 422, 0.001, "tiny"),
        Answer("", 404, 0.001),
    ):
        metrics.answered(answer)
    assert value(metrics, "requests_total", {"route": "/v1/embeddings", "status": "200"}) == 2
    assert value(metrics, "requests_total", {"route": "/v1/embeddings", "status": "422"}) == 1
    assert value(metrics, "requests_total", {"route": "other", "status": "404"}) == 1
    assert value(metrics, "tokens_total", {"model": "tiny"}) == 9
    assert value(metrics, "tokens_total", {"model": "other-model"}) == 5
    assert value(metrics, "request_duration_seconds_count", {"route": "/v1/embeddings"}) == 3
    assert value(metrics, "request_duration_seconds_sum", {"route": "/v1/rerank"}) == pytest.approx(0.02)


def test_the_queue_goes_up_and_down(metrics: Metrics) -> None:
    metrics.queue_changed(1, 0)
    metrics.queue_changed(0, 30)
    metrics.queue_changed(1, 0)
    assert (value(metrics, "queue_requests"), value(metrics, "queue_tokens")) == (2, 30)
    metrics.queue_changed(0, -20)
    metrics.queue_changed(-1, -10)
    assert (value(metrics, "queue_requests"), value(metrics, "queue_tokens")) == (1, 0)


@pytest.mark.parametrize("reason", Unserved)
def test_who_is_not_served_is_counted_from_zero(metrics: Metrics, reason: Unserved) -> None:
    assert value(metrics, f"requests_{reason}_total") == 0
    metrics.unserved(reason)
    found = {other: value(metrics, f"requests_{other}_total") for other in Unserved}
    assert found == {other: float(other == reason) for other in Unserved}


UNITS = ("_seconds", "_bytes", "_tokens", "_requests", "_info")  # of what is no counter
SUFFIXES = {
    "counter": ("_total",),
    "gauge": ("",),
    "histogram": ("_bucket", "_sum", "_count"),
}


def test_names_keep_the_conventions(full: Metrics) -> None:
    families = list(parse_text(full.render()[0].decode()))
    assert len(families) >= 16
    for family in families:
        assert re.fullmatch(rf"{NAMESPACE}_[a-z_]+", family.name)
        assert family.documentation.endswith(".")
        assert family.type == "counter" or family.name.endswith(UNITS), family.name
        for sample in family.samples:
            assert sample.name.removeprefix(family.name) in SUFFIXES[family.type]
            assert all(re.fullmatch("[a-z]+", label) for label in sample.labels)


def test_openmetrics_is_given_to_who_accepts_it_and_says_the_same(full: Metrics) -> None:
    content, content_type = full.render("application/openmetrics-text;version=1.0.0;q=0.5,text/plain;q=0.2")
    assert content_type == "application/openmetrics-text; version=1.0.0; charset=utf-8"
    families = list(parse_openmetrics(content.decode()))
    plain, plain_type = full.render("text/plain")
    assert plain_type == "text/plain; version=0.0.4; charset=utf-8"
    found = {sample.name for family in families for sample in family.samples}
    assert found == {sample.name for family in parse_text(plain.decode()) for sample in family.samples}


def test_memory_is_that_of_the_process(metrics: Metrics) -> None:
    found = samples(metrics.render()[0].decode())
    ((_, resident),) = [item for item in found.items() if item[0][0] == "resident_memory_bytes"]
    ((_, anonymous),) = [item for item in found.items() if item[0][0] == "anonymous_memory_bytes"]
    assert 10_000_000 < anonymous <= resident < 100_000_000_000


def test_two_in_one_process_count_apart(metrics: Metrics) -> None:
    make_metrics().unserved(Unserved.REFUSED)
    assert value(metrics, "requests_refused_total") == 0


# --- the whole application -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def client(tiny_models: Path) -> TestClient:
    """An application that tells its metrics of everything."""
    settings, metrics = Settings(models_dir=tiny_models), make_metrics()
    scheduler = Scheduler(settings.max_batch_tokens, observer=metrics)
    registry = Registry(settings, scheduler, observer=metrics)
    registry.load()
    return TestClient(make_app(settings, registry, metrics=metrics))


def scraped(client: TestClient) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    answer = client.simulate_get("/metrics")
    assert answer.status_code == 200
    return samples(answer.text)


def difference(
    client: TestClient, before: dict[tuple[str, frozenset[tuple[str, str]]], float], name: str
) -> float:
    after = scraped(client)
    return sum(found - before.get(key, 0) for key, found in after.items() if key[0] == name)


def test_a_request_shows_in_every_figure(client: TestClient) -> None:
    before = scraped(client)
    answer = client.simulate_post("/v1/embeddings", json={"model": MODEL, "input": ["a", "hello there"]})
    usage = answer.json["usage"]["total_tokens"]
    assert difference(client, before, "tokens_total") == usage > 0
    assert difference(client, before, "batch_rows_total") == 2
    own = difference(client, before, "batch_tokens_sum") - difference(
        client, before, "batch_padding_tokens_total"
    )
    assert own == usage
    assert difference(client, before, "queue_wait_seconds_count") == 1
    assert difference(client, before, "run_duration_seconds_sum") > 0
    after = scraped(client)
    for gauge in ("queue_requests", "queue_tokens"):
        assert after[gauge, frozenset()] == 0
    (info,) = [dict(labels) for name, labels in after if name == "model_info"]
    assert (info["model"], info["device"]) == (MODEL, "cpu")
    (build,) = [dict(labels) for name, labels in after if name == "build_info"]
    assert build.keys() == {"version", "python", "onnxruntime"}


MARK = "xyzzy"


def test_nothing_that_a_caller_makes_up_is_in_it(client: TestClient) -> None:
    num_series = len(scraped(client))
    for number in range(20):
        mark = f"{MARK}{number}"
        client.simulate_post(
            "/v1/embeddings", json={"model": MODEL, "input": mark}, headers={"X-Request-ID": mark}
        )
        client.simulate_post("/v1/embeddings", json={"model": mark, "input": mark})
        client.simulate_post("/v1/embeddings", json={"model": MODEL, "input": "a", "task": mark})
        client.simulate_get(f"/{mark}")
        client.simulate_get(f"/v1/embeddings/{mark}")
        client.simulate_get("/metrics", headers={"Accept": mark}, query_string=mark)
    text = client.simulate_get("/metrics").text
    assert MARK not in text.lower()
    routes = {dict(labels).get("route") for _, labels in samples(text)} - {None}
    assert routes == {"/v1/embeddings", "/metrics", "other"}
    # New at most: 200, 404 and 422 of embeddings, 404 of other paths, 200 of /metrics, and their times.
    assert len(samples(text)) - num_series < 60


@pytest.mark.parametrize(
    "accept",
    [
        "application/openmetrics-text; version=a.b",
        "text/plain; version=1.x",
        "*/*",
        "",
        ",;=,",
        "text/plain; escaping=x",
    ],
)
def test_whatever_is_accepted_there_is_an_answer_that_can_be_read(client: TestClient, accept: str) -> None:
    answer = client.simulate_get("/metrics", headers={"Accept": accept})
    parse = parse_openmetrics if "openmetrics" in answer.headers["content-type"] else parse_text
    assert answer.status_code == 200
    assert list(parse(answer.text))


def test_head_has_the_head_alone(client: TestClient) -> None:
    answer = client.simulate_head("/metrics")
    assert (answer.status_code, answer.content) == (200, b"")
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"


def test_other_methods_are_refused(client: TestClient) -> None:
    assert client.simulate_post("/metrics").status_code == 405


def test_every_metric_is_in_the_documentation(full: Metrics) -> None:
    rows = re.findall(r"^\| `([a-z_]+)` \| (\w+) \|(.*?)\|", DOCUMENTATION, re.MULTILINE)
    documented = {name: (kind, set(re.findall("[a-z]+", labels))) for name, kind, labels in rows}
    found = {}
    for family in parse_text(full.render()[0].decode()):
        suffix = "_total" if family.type == "counter" else ""
        labels = {label for sample in family.samples for label in sample.labels} - {"le"}
        found[family.name.removeprefix(f"{NAMESPACE}_") + suffix] = (family.type, labels)
    assert documented == found
