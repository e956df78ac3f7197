"""What a request may ask of an embedding model: tasks with sides, sizes above and below the default."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from convert.catalog import RECIPES
from service import options, schema, tokenization
from service.embedding import EmbeddingModel
from service.errors import InvalidRequest
from service.manifest import Manifest, Precision, Variant
from service.options import EmbedOptions
from service.selection import Choice
from tests import qwen
from tests.service import fakes
from tests.service.fakes import FakeSession

CODE, V3, BGE_M3, QWEN3 = (
    "jina-code-embeddings-0.5b", "jina-embeddings-v3", "bge-m3", "qwen3-embedding-0.6b",
)  # fmt: skip
LARGE, SIZE, DEFAULT_SIZE = "qwen3-embedding-4b", 2560, 1024
SHARED_GRAPH = Variant(precision=Precision.FP32, file="fp32/model.onnx")


def manifest(model: str, dimensions: int = 64, default: int = 0) -> Manifest:
    """Return what a catalog says of a model, with a size and one graph for all tasks."""
    return replace(
        RECIPES[model].manifest,
        dimensions=dimensions,
        vocabulary_size=10_000,
        default_dimensions=default or dimensions,
        variants=(SHARED_GRAPH,),
    )


def task_of(model: str, task: str | None, prompt_name: str | None) -> str | None:
    found = options.task_of(manifest(model), EmbedOptions(task=task, prompt_name=prompt_name))
    return found.name if found else None


# --- tasks and their sides --------------------------------------------------------------------------------


@pytest.mark.parametrize("base", ["nl2code", "qa", "code2code", "code2nl", "code2completion"])
@pytest.mark.parametrize(
    ("suffix", "prompt_name", "side"),
    [
        ("", None, "query"),
        ("", "query", "query"),
        ("", "passage", "passage"),
        (".query", None, "query"),
        (".query", "query", "query"),
        (".passage", None, "passage"),
        (".passage", "passage", "passage"),
    ],
)
def test_a_task_and_its_side(base: str, suffix: str, prompt_name: str | None, side: str) -> None:
    assert task_of(CODE, f"{base}{suffix}", prompt_name) == f"{base}.{side}"


@pytest.mark.parametrize(
    ("prompt_name", "side"), [(None, "query"), ("query", "query"), ("passage", "passage")]
)
def test_a_side_of_the_default_task(prompt_name: str | None, side: str) -> None:
    assert task_of(CODE, None, prompt_name) == f"nl2code.{side}"


@pytest.mark.parametrize(
    ("task", "prompt_name", "param", "code"),
    [
        (None, "document", "prompt_name", "invalid_prompt_name"),
        ("nl2code", "Query", "prompt_name", "invalid_prompt_name"),
        ("nl2code.query", "", "prompt_name", "invalid_prompt_name"),
        ("unknown", "x" * 9999, "prompt_name", "invalid_prompt_name"),
        ("nl2code.query", "passage", "prompt_name", "conflicting_fields"),
        ("nl2code.passage", "query", "prompt_name", "conflicting_fields"),
        ("unknown", None, "task", "unknown_task"),
        ("unknown", "query", "task", "unknown_task"),
        ("unknown.query", "query", "task", "unknown_task"),
        ("", None, "task", "unknown_task"),
        ("", "query", "task", "unknown_task"),
        (".query", None, "task", "unknown_task"),
        ("query", "query", "task", "unknown_task"),
        ("nl2code.", "query", "task", "unknown_task"),
        ("nl2code.query.query", None, "task", "unknown_task"),
        ("nl2code.query.passage", "passage", "task", "unknown_task"),
    ],
)
def test_sides_that_are_refused(task: str | None, prompt_name: str | None, param: str, code: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        task_of(CODE, task, prompt_name)
    assert (refused.value.param, refused.value.code) == (param, code)
    assert len(refused.value.message) < 1000
    if param == "task":
        assert "nl2code.query" in refused.value.message, "the message lists the tasks"
    elif code == "invalid_prompt_name":
        assert "query, passage" in refused.value.message


@pytest.mark.parametrize("prompt_name", ["query", "passage", "document", ""])
@pytest.mark.parametrize(
    ("model", "task"),
    [
        (V3, "text-matching"), (V3, "retrieval.query"), (V3, "retrieval.passage"), (V3, None),
        (BGE_M3, "retrieval.query"), (BGE_M3, None), (QWEN3, "retrieval.query"), (QWEN3, "bitext"),
        (QWEN3, None),
    ],
)  # fmt: skip
def test_models_without_sides_ignore_prompt_names(model: str, task: str | None, prompt_name: str) -> None:
    expected = "text-matching" if (model, task) == (V3, None) else task
    assert task_of(model, task, prompt_name) == expected


@pytest.mark.parametrize(("model", "task"), [(V3, "retrieval"), (BGE_M3, "retrieval"), (QWEN3, "code")])
def test_models_without_sides_know_no_bare_task(model: str, task: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        task_of(model, task, "query")
    assert (refused.value.param, refused.value.code) == ("task", "unknown_task")


# --- sizes ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "given"), [(None, DEFAULT_SIZE), (1, 1), (DEFAULT_SIZE, DEFAULT_SIZE),
                         (DEFAULT_SIZE + 1, DEFAULT_SIZE + 1), (SIZE, SIZE)]
)  # fmt: skip
def test_a_size_below_the_default_and_above_it(asked: int | None, given: int) -> None:
    described = manifest(LARGE, SIZE, DEFAULT_SIZE)
    assert options.dimensions_of(described, EmbedOptions(dimensions=asked)) == given
    assert schema.model_response(described, Choice(Precision.FP32, True, ""))["dimensions"] == DEFAULT_SIZE


@pytest.mark.parametrize("asked", [0, -1, SIZE + 1, 2**40])
def test_a_size_that_no_vector_has(asked: int) -> None:
    with pytest.raises(InvalidRequest, match=f"from 1 to {SIZE}") as refused:
        options.dimensions_of(manifest(LARGE, SIZE, DEFAULT_SIZE), EmbedOptions(dimensions=asked))
    assert (refused.value.param, refused.value.code) == ("dimensions", "invalid_dimensions")


@pytest.mark.parametrize("asked", [1, DEFAULT_SIZE - 1])
def test_a_model_not_trained_for_it_has_one_size(asked: int) -> None:
    described = manifest(BGE_M3, DEFAULT_SIZE)
    assert options.dimensions_of(described, EmbedOptions(dimensions=DEFAULT_SIZE)) == DEFAULT_SIZE
    with pytest.raises(InvalidRequest, match=f"only its own size, {DEFAULT_SIZE}"):
        options.dimensions_of(described, EmbedOptions(dimensions=asked))


def test_vectors_have_the_size_asked_for_and_length_one(tmp_path: Path) -> None:
    drawn = np.random.default_rng(0).standard_normal(SIZE)
    path = tmp_path / "tokenizer.json"
    qwen.tokenizer(appends_end=True).save(str(path))
    described = manifest(LARGE, SIZE, DEFAULT_SIZE)
    graphs = fakes.graphs(described, FakeSession(lambda ids: drawn))
    model = EmbeddingModel(described, tokenization.load(path), graphs, fakes.scheduler(), frozenset())
    for asked, given in ((None, DEFAULT_SIZE), (SIZE, SIZE), (3, 3)):
        (vector,) = model.embed(["fox"], EmbedOptions(dimensions=asked)).vectors
        expected = drawn[:given] / np.linalg.norm(drawn[:given])
        np.testing.assert_allclose(vector, expected, rtol=0, atol=1e-6)
