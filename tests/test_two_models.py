"""Two models under load on the lanes of one device: every answer is its text's own, no thread too many."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from service import copies, lanes
from service.config import Settings
from service.embedding import EmbeddingModel
from service.manifest import Precision
from service.options import EmbedOptions
from service.registry import Registry
from service.scheduler import Scheduler
from service.session import Array, Floats, Session
from tests import tiny
from tests.test_independence import LOWEST_COSINE

NUM_THREADS = 4
NUM_LANES = lanes.count(NUM_THREADS)
MODELS = (tiny.MINILM, tiny.BGE_M3)
PRECISIONS = (Precision.FP32, Precision.INT8, Precision.INT8_BLOCK, Precision.INT4)
WORDS = ["the", "red", "fox", "is", "far", "and", "a", "blue", "sea", "of", "dogs"]
NUM_TEXTS, NUM_REQUESTS, NUM_CLIENTS = 24, 120, 16
RUN_SECONDS = 0.001  # so that runs meet, however fast the tiny models are

Run = Callable[[Session, Mapping[str, Array], Sequence[str]], list[Floats]]


class Device:
    """Counts what runs at once."""

    def __init__(self) -> None:
        self.most_runs = self.most_threads = 0
        self.meetings: set[frozenset[str]] = set()  # models that ran at once
        self._runs: list[tuple[str, int]] = []  # model and threads of each that goes on
        self._guard = threading.Lock()

    def counted(self, run: Run, num_threads: int) -> Run:
        """Return a run that is counted with its threads."""

        def counted_run(
            session: Session, inputs: Mapping[str, Array], outputs: Sequence[str]
        ) -> list[Floats]:
            mine = (session.source.model, num_threads)
            with self._guard:
                self._runs.append(mine)
                self.most_runs = max(self.most_runs, len(self._runs))
                self.most_threads = max(self.most_threads, sum(threads for _, threads in self._runs))
                self.meetings.add(frozenset(model for model, _ in self._runs))
            time.sleep(RUN_SECONDS)
            try:
                return run(session, inputs, outputs)
            finally:
                with self._guard:
                    self._runs.remove(mine)

        return counted_run


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Device:
    found = Device()
    monkeypatch.setattr(Session, "run", found.counted(Session.run, NUM_THREADS))
    monkeypatch.setattr(Session, "run_narrow", found.counted(Session.run_narrow, NUM_THREADS // NUM_LANES))
    monkeypatch.setattr(copies, "MIN_WEIGHTS_BYTES", 0)  # only copies have narrow runs
    return found


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("two_models")
    for model in MODELS:
        tiny.write_and_bake(out, model, PRECISIONS)
    return out


@pytest.mark.parametrize("precision", PRECISIONS)
def test_answers_under_load_are_those_of_each_text_alone(
    models: Path, device: Device, precision: Precision
) -> None:
    settings = Settings(models_dir=models, precision=precision, intra_op_threads=NUM_THREADS)
    registry = Registry(settings, Scheduler(settings.max_batch_tokens, NUM_LANES))
    registry.load()
    served = {model: registry.embedding(model) for model in MODELS}
    draw = random.Random(7)
    texts = [" ".join(draw.choices(WORDS, k=draw.randint(1, 8))) for _ in range(NUM_TEXTS)]
    alone = {(model, text): vectors(served[model], [text])[0] for model in MODELS for text in texts}
    asked = [
        (draw.choice(MODELS), draw.sample(texts, draw.choice((1, 1, 2, 16)))) for _ in range(NUM_REQUESTS)
    ]
    with ThreadPoolExecutor(NUM_CLIENTS) as pool:
        answers = list(pool.map(lambda one: vectors(served[one[0]], one[1]), asked))
    lowest = min(
        float(row @ alone[model, text])
        for (model, batch), rows in zip(asked, answers, strict=True)
        for text, row in zip(batch, rows, strict=True)
    )
    assert lowest >= LOWEST_COSINE[precision] - 2e-7  # the rounding of a float32 dot product of unit vectors
    assert frozenset(MODELS) in device.meetings, "both ran at once"
    assert 1 < device.most_runs <= NUM_LANES
    assert device.most_threads <= NUM_THREADS


def vectors(model: EmbeddingModel, texts: Sequence[str]) -> np.ndarray:
    return model.embed(texts, EmbedOptions(truncate=True)).vectors
