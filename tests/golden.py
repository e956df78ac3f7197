"""The golden set beside the project: tiny checkpoints in the published layouts and what they must give.

It is on the developers' machines and in CI, not on a user's: tests that need it skip without it.
"""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.processes import PROJECT

SHARED = PROJECT.parent / "shared"
GOLDEN = SHARED / "golden"
TOKENIZER = SHARED / "data" / "tokenizers" / "xlm-roberta" / "tokenizer.json.gz"
MISSING = f"needs the golden checkpoints and tokenizers of {SHARED}, which are not part of the project"

# Largest differences, from the README of the golden set.
UNIT, HEADS, SCORE, LOGIT = 2e-5, 5e-5, 2e-5, 1e-4


def is_there() -> bool:
    """Tell whether the golden set is beside the project."""
    return (GOLDEN / "make_checkpoints.py").is_file() and TOKENIZER.is_file()


def cases(model: str, kind: str, keep: Callable[[dict[str, Any]], object] = bool) -> list[Any]:
    """List the cases of one kind of a model; one that skips where the golden set is absent."""
    if not is_there():
        return [pytest.param(None, marks=pytest.mark.skip(reason=MISSING), id="absent")]
    return [case for case in expected(model).get(kind, []) if keep(case)]


def expected(model: str) -> dict[str, Any]:
    """Read what a model must give."""
    content: dict[str, Any] = json.loads((GOLDEN / "expected" / f"{model}.json").read_text(encoding="utf-8"))
    return content


def arrays(model: str) -> dict[str, np.ndarray]:
    """Read the arrays that `expected` names."""
    with np.load(GOLDEN / "expected" / f"{model}.npz") as stored:
        return dict(stored)


def make_checkpoints(out: Path, *names: str) -> None:
    """Write golden checkpoints."""
    subprocess.run([sys.executable, GOLDEN / "make_checkpoints.py", out, "--only", *names], check=True)


def xlm_roberta_tokenizer() -> bytes:
    """Read the full tokenizer of the XLM-R family."""
    return gzip.decompress(TOKENIZER.read_bytes())
