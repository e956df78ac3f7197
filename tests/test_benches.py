"""The benches of serving run to their end and print their tables; their figures mean nothing here."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.processes import PROJECT

PARTS = "single,bulk,beside,fairness,together,long-text,encoding,workers"


@pytest.mark.full
def test_the_benches_of_serving_run(real_models: Path) -> None:
    command = [sys.executable, "-m", "tests.bench", "--only", PARTS, "--precision", "fp32"]
    command += ["--runs", "1", "--seconds", "0.5", "--models-dir", str(real_models)]
    ended = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr
    for table in (
        "single queries",
        "HTTP",
        "closed loops",
        "p95",
        "together",
        "a long text",
        "float",
        "in memory of a worker",
    ):
        assert table in ended.stdout


@pytest.mark.full
def test_the_overload_bench_runs_and_draws(real_models: Path, tmp_path: Path) -> None:
    plot = tmp_path / "overload.png"
    command = [sys.executable, "-m", "tests.bench", "--only", "overload", "--precision", "fp32"]
    command += ["--seconds", "1", "--plot", str(plot), "--models-dir", str(real_models)]
    ended = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr
    assert "offered load" in ended.stdout
    assert plot.read_bytes().startswith(b"\x89PNG")
