"""How much memory a model is taken to need."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from service import footprint
from service import manifest as contract
from service.files import FileRecord
from service.footprint import (
    FLOAT_BYTES,
    LINEAR_FACTOR,
    SESSION_BYTES,
    STATE_FLOATS,
    TABLE_SHARE,
    TOKENIZER_BYTES,
    needed_bytes,
)
from service.manifest import Manifest, Precision, Variant
from service.vision import Vision
from tests.conftest import MODEL
from tests.service.test_selection import manifest

FP32, INT8 = Precision.FP32, Precision.INT8


def record(size: int, weights_bytes: int = 0) -> FileRecord:
    return FileRecord(size=size, sha256="", weights_bytes=weights_bytes)


@pytest.fixture
def two_tasks() -> Manifest:
    """Tasks that share 6000 of 10000 bytes in fp32, a table of 3200 among them; int8 does not say."""
    variants = [
        Variant(precision=precision, task=task, file=f"{precision}/{task}.onnx")
        for precision in (FP32, INT8)
        for task in ("a", "b")
    ]
    files = {
        "tokenizer.json": record(5000),
        "fp32/a.onnx": record(10, 8000),
        "fp32/b.onnx": record(10, 8000),
        "fp32/weights.data": record(10_000),
        "int8/a.onnx": record(10),
        "int8/b.onnx": record(10),
        "int8/weights.data": record(3000),
    }
    return replace(manifest(*variants), files=files, dimensions=8, vocabulary_size=100)


@pytest.mark.parametrize(
    ("precision", "tasks", "linear", "table"),
    [
        (FP32, ["a"], 8000 - 3200, 3200),
        (FP32, ["a", "b"], 2 * (8000 - 3200), 3200),
        (INT8, ["a"], 1500 - 900, 900),
        (INT8, ["a", "b"], 2 * (1500 - 900), 900),
    ],
)
def test_what_is_opened_counts_and_the_table_once(
    two_tasks: Manifest, precision: Precision, tasks: list[str], linear: int, table: int
) -> None:
    session = STATE_FLOATS * FLOAT_BYTES * 64 * 8 + SESSION_BYTES
    rest = session * len(tasks) + TOKENIZER_BYTES * 100
    shared = needed_bytes(two_tasks, precision, tasks, 64, sharers=4)
    assert shared == round((linear * LINEAR_FACTOR + table * TABLE_SHARE) / 4) + rest
    assert needed_bytes(two_tasks, precision, tasks, 64) == (
        round(linear * LINEAR_FACTOR + table * TABLE_SHARE) + rest
    )
    twice = needed_bytes(two_tasks, precision, tasks, 64, sharers=4, num_sessions=2)
    assert twice - shared == session * len(tasks)


def test_every_precision_can_be_estimated(two_tasks: Manifest) -> None:
    assert {precision for precision in Precision if needed_bytes(two_tasks, precision, [], 64)} == {
        *Precision
    }


def test_the_vision_tower_counts_at_every_precision(two_tasks: Manifest) -> None:
    without = needed_bytes(two_tasks, INT8, ["a"], 64)
    files = two_tasks.files | {"vision/model.onnx": record(10, 1000), "vision/weights.data": record(1000)}
    tower = Vision.__new__(Vision)
    object.__setattr__(tower, "file", "vision/model.onnx")
    seeing = replace(two_tasks, files=files, vision=tower)
    assert needed_bytes(seeing, INT8, ["a"], 64) - without == pytest.approx(
        1000 * LINEAR_FACTOR + SESSION_BYTES, abs=1
    )


@pytest.mark.parametrize("precision", ["fp32", "int8", "int8-block"])
def test_a_bake_says_what_a_graph_reads(tiny_models: Path, precision: str) -> None:
    baked = contract.load(tiny_models / MODEL)
    said = footprint.weights_bytes(baked, f"{precision}/model.onnx")
    assert said == baked.files[f"{precision}/model.onnx"].weights_bytes
    assert 0.8 < said / baked.files[f"{precision}/weights.data"].size <= 1  # the file aligns its tensors


def test_tasks_that_share_weights_each_say_all_they_read(tmp_path: Path) -> None:
    from tests import xlmr

    source = xlmr.write_jina_v3(tmp_path / "checkpoint")
    xlmr.bake_tiny(tmp_path / "models", xlmr.V3, source, ("retrieval.query", "separation"))
    baked = contract.load(tmp_path / "models" / xlmr.V3)
    said = [footprint.weights_bytes(baked, variant.file) for variant in baked.variants]
    on_disk = baked.files[f"{baked.variants[0].precision}/weights.data"].size
    assert len(said) >= 2
    assert said[0] < on_disk < said[0] + said[1]
