"""Vectors over HTTP against those of sentence-transformers (float32, torch)."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import pytest

from convert import reference
from tests.conftest import MODEL, Live

CASES = json.loads((reference.FOLDER / f"{MODEL}.json").read_text(encoding="utf-8"))["cases"]


@pytest.fixture(scope="module")
def vectors(real_models: Path, serve: Callable[..., AbstractContextManager[Live]]) -> np.ndarray:
    with serve(real_models, PRECISION="fp32") as live, live.client() as client:
        body = {"model": MODEL, "input": [case["text"] for case in CASES], "truncate": True}
        answer = client.post("/v1/embeddings", json=body)
        assert answer.status_code == 200, answer.text
        capped = sum(min(case["num_tokens"], 256) for case in CASES)
        assert answer.json()["usage"]["total_tokens"] == capped
        return np.array([item["embedding"] for item in answer.json()["data"]])


@pytest.mark.reference
@pytest.mark.parametrize("number", range(len(CASES)), ids=lambda number: f"{CASES[number]['text'][:24]!r}")
def test_fp32_equals_sentence_transformers(vectors: np.ndarray, number: int) -> None:
    expected = np.array(CASES[number]["vector"])
    assert vectors[number] @ expected >= 0.99999
    assert np.abs(vectors[number] - expected).max() < 2e-5
