"""Running graphs: alone or padded, in order, one request at a time, and nothing kept of long runs."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest

from convert.recipe import DEFAULT_PRECISIONS
from service.errors import BundleError
from service.graphs import ROUNDS_ACTIVATIONS
from service.manifest import Precision
from service.scheduler import Scheduler
from service.session import Array, Floats, Session, SessionSettings, pad, save_prepacked
from tests.bench import memory
from tests.conftest import MODEL

SETTINGS = SessionSettings(num_threads=2)
# Cosine of a text alone against the same text among others.
INDEPENDENCE = {Precision.FP32: 0.999999, Precision.INT8_BLOCK: 0.99999, Precision.INT8: 0.999}


def sequences(count: int, seed: int = 1) -> list[np.ndarray]:
    draw = np.random.default_rng(seed)
    return [draw.integers(5, 60, draw.integers(2, 48)) for _ in range(count)]


def cosines(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(ours, axis=1) * np.linalg.norm(theirs, axis=1)
    return np.asarray(np.einsum("nd,nd->n", ours, theirs) / norms)


@pytest.mark.parametrize("precision", DEFAULT_PRECISIONS)
def test_a_text_does_not_depend_on_its_neighbours(tiny_models: Path, precision: Precision) -> None:
    settings = SessionSettings(num_threads=2, may_pad=precision not in ROUNDS_ACTIVATIONS)
    session = Session(tiny_models / MODEL / precision / "model.onnx", settings)
    texts = sequences(200)
    alone = np.stack([session.run(pad([ids]), ["pooled"])[0][0] for ids in texts])
    scheduled = np.stack([row for (row,) in Scheduler(200).submit(session, texts, ["pooled"], pad)])
    assert cosines(alone, scheduled).min() >= INDEPENDENCE[precision]


def test_token_embeddings_have_the_shape_of_the_input(tiny_models: Path) -> None:
    session = Session(tiny_models / MODEL / "fp32" / "model.onnx", SETTINGS)
    assert session.output_names == ("pooled", "token_embeddings")
    (states,) = session.run(pad(sequences(3)), ["token_embeddings"])
    assert states.shape == (3, max(len(ids) for ids in sequences(3)), 32)


def test_a_broken_graph_is_named(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"no graph")
    with pytest.raises(BundleError, match=r"model\.onnx cannot be opened"):
        Session(tmp_path / "model.onnx", SETTINGS)


def test_a_long_run_gives_its_memory_back(tiny_models: Path) -> None:
    path = tiny_models / MODEL / "fp32" / "model.onnx"
    ids = np.full((2000, 48), 7)
    inputs = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    kept = {}
    for max_kept_tokens in (ids.size, ids.size - 1):
        session = Session(path, SessionSettings(num_threads=1, max_kept_tokens=max_kept_tokens))
        before = memory.own_bytes(memory.ANONYMOUS)
        session.run(inputs, ["pooled"])
        kept[max_kept_tokens] = memory.own_bytes(memory.ANONYMOUS) - before
    assert kept[ids.size] > 50_000_000  # such a run takes some memory
    assert kept[ids.size - 1] < 0.2 * kept[ids.size]


def test_a_narrow_run_of_more_than_a_lane_s_part_gives_its_memory_back(
    tiny_models: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "model.onnx"
    save_prepacked(tiny_models / MODEL / "fp32" / "model.onnx", copy, "model.data", 2)
    ids = np.full((2000, 48), 7)
    inputs = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    kept = {}
    for max_kept_tokens in (2 * ids.size, 2 * ids.size - 1):  # of two lanes
        settings = SessionSettings(num_threads=2, num_lanes=2, max_kept_tokens=max_kept_tokens)
        session = Session(copy, settings, is_prepacked=True)
        before = memory.own_bytes(memory.ANONYMOUS)
        session.run_narrow(inputs, ["pooled"])
        kept[max_kept_tokens] = memory.own_bytes(memory.ANONYMOUS) - before
    assert kept[2 * ids.size] > 50_000_000
    assert kept[2 * ids.size - 1] < 0.2 * kept[2 * ids.size]


class Counting:
    """A session that notes how many runs overlap."""

    may_pad = True
    has_narrow = False

    def __init__(self) -> None:
        self.running = self.most = 0

    def run(self, inputs: Mapping[str, Array], outputs: Sequence[str]) -> list[Floats]:
        self.running += 1
        self.most = max(self.most, self.running)
        time.sleep(0.005)
        self.running -= 1
        return [np.asarray(inputs["attention_mask"], dtype=np.float32)]


def test_one_request_at_a_time_runs_on_a_session() -> None:
    session, scheduler = Counting(), Scheduler(8)
    threads = [
        threading.Thread(target=scheduler.submit, args=(session, sequences(4), ["mask"], pad))
        for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert session.most == 1


def test_order_is_kept() -> None:
    texts = sequences(30)
    rows = Scheduler(100).submit(Counting(), texts, ["mask"], pad)  # type: ignore[arg-type]
    assert [int(row.sum()) for (row,) in rows] == [len(ids) for ids in texts]


def test_runs_that_are_ready_wait_for_their_session_too() -> None:
    session, scheduler = Counting(), Scheduler(8)
    ready = pad(sequences(4))
    work = [lambda: scheduler.submit(session, sequences(4), ["mask"], pad)] * 3  # type: ignore[arg-type]
    work += [lambda: [(scheduler.run(session, ready, "mask", 4),)]] * 3  # type: ignore[arg-type]
    threads = [threading.Thread(target=target) for target in work]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert session.most == 1
    assert (scheduler.run(session, ready, "mask", 4) == ready["attention_mask"]).all()  # type: ignore[arg-type]
