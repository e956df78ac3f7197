"""`make gpu-check` tried on the CPU: that it compares, that it can fail, and what it says without CUDA."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from service.devices import CPU, Device, Kind
from service.manifest import Precision
from tests import checkpoints, qwen, qwen_vl, tiny
from tests.bench.cases import Size
from tests.gpu_check import parity, placement, speed
from tests.gpu_check.__main__ import COMPARED, main, unusable
from tests.gpu_check.parity import LIMITS, Row
from tests.tiny import MINILM

SMALL = ["--device", "cpu", "--only", "parity,placement", "--models", MINILM]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("gpu_check")
    tiny.write_and_bake(out, MINILM, COMPARED)
    return out / MINILM


def test_without_cuda_it_says_why_and_how_and_ends_well(capsys: pytest.CaptureFixture[str]) -> None:
    if unusable(Device(Kind.CUDA, 0)) is None:
        pytest.skip("this host has CUDA")
    assert main([]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("gpu-check: skipped: ")
    assert ".venv/bin/python -m pip install --constraint constraints.txt --editable '.[test,gpu]'" in printed


def test_the_command_compares_and_passes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(SMALL) == 0
    printed = capsys.readouterr().out
    for precision in COMPARED:
        assert re.search(rf"{MINILM} {precision}/model.onnx padded pooled: PASS", printed)
    assert f"{MINILM}: every node but those of shapes on cpu" in printed
    assert printed.endswith("gpu-check: passed\n")


def test_the_command_fails_where_an_output_differs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(LIMITS, Precision.BF16, 1e-5)
    assert main(SMALL) == 1
    printed = capsys.readouterr().out
    assert re.search(r"bf16/model.onnx padded pooled: FAIL", printed)
    assert re.search(r"gpu-check: \d failures", printed)


def test_other_weights_fail_and_those_of_fp32_do_not(bundle: Path, tmp_path: Path) -> None:
    tiny.write_and_bake(tmp_path / "right", MINILM, COMPARED)
    source = checkpoints.write_bert(tmp_path / "other" / ".checkpoints" / MINILM, seed=1)
    assert source.exists()
    tiny.write_and_bake(tmp_path / "other", MINILM, COMPARED)
    mixed = tmp_path / "right" / MINILM
    shutil.copy(tmp_path / "other" / MINILM / "fp16" / "weights.data", mixed / "fp16" / "weights.data")
    rows = list(parity.compared(mixed, CPU))
    assert {row.graph.partition("/")[0] for row in rows if not row.passed} == {"fp16"}
    assert all(row.error > 0.1 for row in rows if not row.passed)


@pytest.mark.parametrize("model", [tiny.BGE_M3, qwen.JINA_RERANKER, qwen_vl.JINA_V4])
def test_outputs_of_every_kind_are_compared(tmp_path: Path, model: str) -> None:
    manifest = tiny.write_and_bake(tmp_path, model, (Precision.FP32, Precision.FP16))
    rows = list(parity.compared(tmp_path / model, CPU))
    assert all(row.passed for row in rows)
    assert {row.output for row in rows} >= set(manifest.outputs)
    assert any(row.run == "images" for row in rows) == (manifest.vision is not None)
    assert all(row.error > 0 for row in rows if row.graph.startswith("fp16"))


def test_what_is_not_a_number_does_not_pass() -> None:
    assert not Row("m", "g", error=float("nan"), limit=1.0).passed
    assert Row("m", "g", left_out="CUDA has no kernel for x").passed


@pytest.mark.parametrize(
    ("precision", "passed"), [(Precision.FP32, True), (Precision.FP16, False), (Precision.BF16, False)]
)
def test_what_is_for_cuda_and_lacks_a_kernel_there_fails(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, precision: Precision, passed: bool
) -> None:
    monkeypatch.setattr(parity, "lacking", lambda graph: ["Node x"])
    rows = list(parity.compared(bundle, Device(Kind.CUDA, 0)))
    (row,) = [row for row in rows if row.graph.startswith(f"{precision}/")]
    assert row.passed == passed
    assert (": FAIL: " in str(row)) != passed


def test_what_cuda_lacks_is_named(tmp_path: Path) -> None:
    tiny.write_and_bake(tmp_path, qwen.QWEN3_EMBEDDING, (Precision.FP32,))
    (first, *_) = parity.lacking(tmp_path / qwen.QWEN3_EMBEDDING / "fp32" / "model.onnx")
    assert first.startswith("GroupQueryAttention")


def test_a_node_on_the_cpu_is_found_where_cuda_is_wanted(bundle: Path) -> None:
    """Here every node runs on the CPU: those that compute numbers are misplaced, those of shapes are not."""
    found = list(placement.misplaced(bundle, CPU, Kind.CUDA))
    operators = {line.split(": ")[1].split(" ")[0] for line in found}
    assert {"MatMul", "MultiHeadAttention", "LayerNormalization"} <= operators
    assert "Shape" not in operators
    assert all(line.endswith("ran on CPUExecutionProvider") for line in found)
    assert list(placement.misplaced(bundle, CPU, Kind.CPU)) == []


def test_speed_names_each_size_and_leaves_out_what_is_too_long(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speed, "MAX_RUNS", 1)
    lines = list(speed.measured(bundle, CPU, (Size(1, 16), Size(1, 4096))))
    assert len(lines) == len(COMPARED)
    assert all(re.search(r"tokens/s: 1x16 [\d,]+, 1x4096 left out$", line) for line in lines)
