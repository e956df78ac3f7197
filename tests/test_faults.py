"""Requests that fail: those that share a run with one are answered, and nothing of it stays behind."""

from __future__ import annotations

import http.client
import json
import random
import socket
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path

import httpx
import numpy as np
import pytest
from falcon.testing import Result, TestClient
from prometheus_client.parser import text_string_to_metric_families
from safetensors.numpy import load_file, save_file

from convert.bake import BakeRequest, Verification, bake
from convert.catalog import RECIPES
from service.app import make_app
from service.config import Settings
from service.manifest import Precision
from service.observing import Nobody
from service.registry import Registry
from service.scheduler import Scheduler
from service.session import Array, Floats, pad
from tests import checkpoints
from tests.conftest import MODEL, Live
from tests.steady import wait_until

SECONDS = 60.0  # for what must happen
PRECISIONS = (Precision.FP32, Precision.INT8, Precision.INT8_BLOCK, Precision.INT4)
WORD_TABLE = "embeddings.word_embeddings.weight"
POISON = "9"  # a token of which the model has no sane vector
GOOD = ("fox a", "sea b", "dog c")  # of as many tokens as the poisoned text: no precision pads them
BAD = f"cat {POISON}"
ROUTE, JSON = "/v1/embeddings", "application/json"


class Gate:
    """A session that takes the device for itself until it may go on."""

    may_pad, has_narrow = True, False

    def __init__(self) -> None:
        self.has_begun, self.may_go = threading.Event(), threading.Event()

    def run(self, inputs: Mapping[str, Array], outputs: Sequence[str]) -> list[Floats]:
        self.has_begun.set()
        assert self.may_go.wait(SECONDS)
        return [np.zeros((1, 1), dtype=np.float32)]


class Rows(Nobody):
    """Notes how many texts each run has had."""

    def __init__(self) -> None:
        self.counts: list[int] = []

    def ran(self, graph: object, num_rows: int, num_tokens: int, num_padding: int, seconds: float) -> None:
        self.counts.append(num_rows)


@pytest.fixture(scope="module")
def poisoned_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model, in every precision, whose table has no numbers for one token."""
    out = tmp_path_factory.mktemp("poisoned")
    source = checkpoints.write_bert(out / ".checkpoints" / MODEL)
    tensors = load_file(source / "model.safetensors")
    for value, piece in ((np.nan, POISON), (np.inf, f"##{POISON}")):
        tensors[WORD_TABLE][checkpoints.wordpiece_tokenizer().token_to_id(piece)] = value
    save_file(tensors, source / "model.safetensors")
    request = BakeRequest(out=out, source=str(source), precisions=PRECISIONS, verification=Verification.SKIP)
    with warnings.catch_warnings(action="ignore"):  # numpy's, of what is not finite
        bake(RECIPES[MODEL], request)
    return out


@contextmanager
def held(scheduler: Scheduler) -> Iterator[None]:
    """Hold the device until the block ends."""
    gate = Gate()
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(scheduler.submit, gate, [np.zeros(1)], ["out"], pad)  # type: ignore[arg-type]
        assert gate.has_begun.wait(SECONDS)
        try:
            yield
        finally:
            gate.may_go.set()
        future.result(SECONDS)


def post(client: TestClient, text: str) -> Result:
    return client.simulate_post(ROUTE, json={"model": MODEL, "input": text})


def vector(result: Result) -> np.ndarray:
    assert result.status_code == 200, result.text
    return np.array(result.json["data"][0]["embedding"])


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("bad", [BAD, f"cat{POISON}"], ids=["nan", "infinite"])
def test_what_is_not_finite_fails_its_own_request_alone(
    poisoned_models: Path, precision: Precision, bad: str
) -> None:
    rows = Rows()
    settings = Settings(models_dir=poisoned_models, precision=precision)
    scheduler = Scheduler(settings.max_batch_tokens, observer=rows)
    registry = Registry(settings, scheduler)
    registry.load()
    client = TestClient(make_app(settings, registry))
    alone = {text: vector(post(client, text)) for text in GOOD}
    texts = (GOOD[0], bad, *GOOD[1:])
    with ThreadPoolExecutor(len(texts)) as pool:
        with held(scheduler):
            futures: list[Future[Result]] = [pool.submit(post, client, text) for text in texts]
            wait_until(lambda: len(scheduler._turns) == len(texts), SECONDS)
        answers = dict(zip(texts, (future.result(SECONDS) for future in futures), strict=True))
    assert rows.counts[-1] == len(texts), "all were in one run"
    failed = answers.pop(bad)
    assert failed.status_code == 500
    assert failed.json["error"]["code"] == "model_output_not_finite"
    for text, answer in answers.items():
        np.testing.assert_allclose(vector(answer), alone[text], rtol=0, atol=1e-6)
    assert post(client, bad).status_code == 500


# --- what stays behind ------------------------------------------------------------------------------------

NUM_CLIENTS = 12
LIMITS = {
    "MAX_QUEUE_TOKENS": "20000", "THREADS": "10", "REQUEST_TIMEOUT": "0.01", "MAX_BODY_BYTES": "100000",
}  # fmt: skip
MANY = [f"{'fox ' * 6}{number}" for number in range(300)]  # whose client may go before they are computed
ENDS = {200, 404, 413, 415, 422, 429, 500, 504}


def body(given: object, model: str = MODEL) -> bytes:
    return json.dumps({"model": model, "input": given}).encode()


# Content type and body of each kind of request.
KINDS = (
    (JSON, body("fox a")),
    (JSON, body([GOOD[0]] * 50)),
    (JSON, body(MANY)),
    (JSON, body(BAD)),
    (JSON, body([*GOOD, BAD] * 10)),
    (JSON, body("fox", "no-such-model")),
    (JSON, body("a" * 1000)),  # longer than the model takes
    (JSON, b'{"model": '),
    (JSON, b" " * 100_001),
    ("text/plain", body("fox")),
)


def send(live: Live, content_type: str, content: bytes, seconds: float = SECONDS) -> int:
    """Send a request; return its status, 0 where the client has gone before an answer came."""
    connection = http.client.HTTPConnection(live.url.removeprefix("http://"), timeout=seconds)
    with closing(connection):
        try:
            connection.request("POST", ROUTE, content, {"Content-Type": content_type})
            return connection.getresponse().status
        except (TimeoutError, ConnectionError):
            return 0


def leave_in_the_middle(live: Live, content: bytes) -> None:
    """Send half of a body and go."""
    host, port = live.url.removeprefix("http://").split(":")
    head = (
        f"POST {ROUTE} HTTP/1.1\r\nHost: x\r\nContent-Type: {JSON}\r\nContent-Length: {len(content)}\r\n\r\n"
    )
    with socket.create_connection((host, int(port)), timeout=SECONDS) as connection:
        connection.sendall(f"{head}{len(content)}\r\n\r\n".encode() + content[: len(content) // 2])


def client(live: Live, seed: int, seen: set[int], is_over: threading.Event) -> None:
    """Send requests of every kind, stay or go, until it is over."""
    draw = random.Random(seed)
    while not is_over.is_set():
        content_type, content = draw.choice(KINDS)
        if draw.random() < 0.1:
            leave_in_the_middle(live, content)
        else:
            seen.add(send(live, content_type, content, seconds=draw.choice((SECONDS, SECONDS, 0.02))))


def queue_of(live: Live) -> dict[str, float]:
    found: dict[str, float] = httpx.get(f"{live.url}/healthz", params={"verbose": "1"}).json()["queue"]
    return found


def gauges_of(live: Live) -> dict[str, float]:
    families = text_string_to_metric_families(httpx.get(f"{live.url}/metrics").text)
    samples = {sample.name: sample.value for family in families for sample in family.samples}
    return {name: samples[f"jina_onnx_server_queue_{name}"] for name in ("requests", "tokens")}


@pytest.mark.full
def test_nothing_waits_once_all_have_been_answered_refused_or_gone(
    poisoned_models: Path, serve: Callable[..., AbstractContextManager[Live]]
) -> None:
    seen, is_over = set[int](), threading.Event()
    with serve(poisoned_models, PRECISION=Precision.FP32, **LIMITS) as live:
        with ThreadPoolExecutor(NUM_CLIENTS) as pool:
            clients = [pool.submit(client, live, seed, seen, is_over) for seed in range(NUM_CLIENTS)]
            try:
                wait_until(lambda: seen >= ENDS and queue_of(live)["disconnected"] > 0, SECONDS)
            finally:
                is_over.set()
            for future in clients:
                future.result(SECONDS)
        wait_until(lambda: queue_of(live)["requests"] == 0, SECONDS)
        found = queue_of(live)
        assert min(found[end] for end in ("admitted", "refused", "timed_out", "disconnected")) > 0
        assert (found["requests"], found["tokens"]) == (0, 0)
        assert gauges_of(live) == {"requests": 0, "tokens": 0}
        assert send(live, JSON, body("fox a")) == 200
