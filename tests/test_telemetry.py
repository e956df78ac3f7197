"""What serves and what bakes reports to nobody: ONNX Runtime would, from its import on."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.processes import PROJECT

SECONDS_TO_BEGIN = 0.5  # its identifier and its queue are made at once


def files_after(statements: str, home: Path) -> list[Path]:
    """Return the files at home after a process outside of CI, where there are no reports anyway."""
    subprocess.run(
        [sys.executable, "-c", f"{statements}; import time; time.sleep({SECONDS_TO_BEGIN})"],
        cwd=PROJECT,
        env={"PATH": os.environ["PATH"], "HOME": str(home)},
        check=True,
    )
    return [path for path in home.rglob("*") if path.is_file()]


def test_onnxruntime_alone_would_report(tmp_path: Path) -> None:
    assert files_after("import onnxruntime", tmp_path), "it no longer does: service/__init__.py may forget it"


@pytest.mark.parametrize("module", ["service.probe", "convert.__main__"])
def test_nothing_is_reported(module: str, tmp_path: Path) -> None:
    assert not files_after(f"import {module}, onnxruntime", tmp_path)
