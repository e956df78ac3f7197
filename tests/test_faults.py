"""A request that fails in a run that it shares: the others of the run are answered as if it had not come."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from falcon.testing import Result, TestClient
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
from tests.conftest import MODEL
from tests.steady import wait_until

SECONDS = 20.0
PRECISIONS = (Precision.FP32, Precision.INT8, Precision.INT8_BLOCK, Precision.INT4)
WORD_TABLE = "embeddings.word_embeddings.weight"
POISON = "9"  # a token of which the model has no sane vector
GOOD = ("fox a", "sea b", "dog c")  # of as many tokens as the poisoned text: no precision pads them
BAD = f"cat {POISON}"
ROUTE = "/v1/embeddings"


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
