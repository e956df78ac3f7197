"""Fixtures: tiny checkpoints of the Qwen family, and copies of them to change."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import qwen

Copy = Callable[[str], Path]


@pytest.fixture(scope="session")
def qwen_sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a checkpoint of each kind of the family."""
    folder = tmp_path_factory.mktemp("qwen")
    for name, write in qwen.WRITERS.items():
        write(folder / name)
    return folder


@pytest.fixture
def qwen_copy(qwen_sources: Path, tmp_path: Path) -> Copy:
    """Copy a checkpoint, to be changed."""
    return lambda name: Path(shutil.copytree(qwen_sources / name, tmp_path / "checkpoint"))
