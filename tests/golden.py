"""The golden set beside the project: tiny checkpoints in the published layouts and what they must give.

It is on the developers' machines and in CI, not on a user's: tests that need it skip without it. What the
tests of all families ask of a service over these checkpoints is here too.
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
from falcon.testing import TestClient

from tests.processes import PROJECT

SHARED = PROJECT.parent / "shared"
GOLDEN = SHARED / "golden"
TOKENIZERS = SHARED / "data" / "tokenizers"
TOKENIZER = TOKENIZERS / "xlm-roberta" / "tokenizer.json.gz"
QWEN_TOKENIZER = TOKENIZERS / "qwen3" / "tokenizer.json.gz"
MISSING = f"needs the golden checkpoints and tokenizers of {SHARED}, which are not part of the project"

# Largest differences, from the README of the golden set.
UNIT, HEADS, SCORE, LOGIT = 2e-5, 5e-5, 2e-5, 1e-4
SAME_COSINE = 0.999999  # of a text's vectors, alone and among others


def is_there() -> bool:
    """Tell whether the golden set is beside the project."""
    return all(path.is_file() for path in (GOLDEN / "make_checkpoints.py", TOKENIZER, QWEN_TOKENIZER))


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


def by_id(case: dict[str, Any]) -> str:
    """Name a case in the list of tests."""
    return str(case["id"])


def embed(client: TestClient, model: str, texts: Any, **fields: Any) -> dict[str, Any]:
    """Ask for vectors; return the body of the answer."""
    return _answer(client, "/v1/embeddings", {"model": model, "input": texts, **fields})


def rerank(client: TestClient, model: str, query: str, documents: Any, **fields: Any) -> dict[str, Any]:
    """Ask for an order; return the body of the answer."""
    return _answer(client, "/v1/rerank", {"model": model, "query": query, "documents": documents, **fields})


def _answer(client: TestClient, route: str, asked: dict[str, Any]) -> dict[str, Any]:
    answer = client.simulate_post(route, json=asked)
    assert answer.status_code == 200, answer.text
    body: dict[str, Any] = answer.json
    return body


def vectors(body: dict[str, Any]) -> np.ndarray:
    """Read the vectors of an answer: (inputs, size)."""
    return np.array([item["embedding"] for item in body["data"]])


def scores(body: dict[str, Any]) -> np.ndarray:
    """Read the scores of an answer that has all documents, in the order of the documents."""
    found = {result["index"]: result["relevance_score"] for result in body["results"]}
    return np.array([found[index] for index in range(len(body["results"]))])


def assert_near(computed: Any, expected: np.ndarray, tolerance: float) -> None:
    """Compare numbers of the same shape."""
    assert np.shape(computed) == np.shape(expected)
    assert np.abs(np.asarray(computed) - expected).max(initial=0) <= tolerance


def cosine(one: np.ndarray, other: np.ndarray) -> float:
    """Return the cosine of two vectors."""
    return float(one @ other / np.linalg.norm(one) / np.linalg.norm(other))
