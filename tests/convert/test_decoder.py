"""Qwen-family graphs against a second implementation in numpy, and that mistakes in them would be seen."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer

from service.session import Session, SessionSettings, pad
from tests import qwen, qwen_reference, xlmr
from tests.qwen import EMBEDDING_SIZES, JINA_CODE, JINA_RERANKER, QWEN3_EMBEDDING, QWEN3_RERANKER, SIZES
from tests.qwen_reference import Reference, unit

TOLERANCE = 2e-5  # of a unit vector's components, and of scores
SEEN = 50 * TOLERANCE  # a mistake changes more than this
COSINE = 0.999999  # of a text alone with itself in a batch, at least
LENGTHS = [(1,), (2, 1), (31, 33, 32), (7, 300, 64), (1300,)]  # attention takes queries and keys in blocks
MIXED = (7, 120, 64)
MISTAKES: list[tuple[str, dict[str, Any]]] = [
    *((name, {"theta": 10_000.0}) for name in (JINA_CODE, QWEN3_EMBEDDING)),
    *((name, {"eps": 1e-5}) for name in (JINA_CODE, QWEN3_EMBEDDING)),
    *((name, {"is_causal": False}) for name in (JINA_CODE, QWEN3_EMBEDDING)),
    *((name, {"interleaves_kv_heads": True}) for name in (JINA_CODE, QWEN3_EMBEDDING)),
    *((name, {"interleaves_angles": True}) for name in (JINA_CODE, QWEN3_EMBEDDING)),
    *((name, {"rotates_values": True}) for name in (JINA_CODE, QWEN3_EMBEDDING)),
    (JINA_CODE, {"has_biases": False}),
    (QWEN3_EMBEDDING, {"has_head_norms": False}),
]


@dataclass(frozen=True)
class Baked:
    """A checkpoint, the graph baked of it, and the reference over the same tensors."""

    source: Path
    session: Session
    reference: Reference

    def run(self, texts: list[np.ndarray], output: str) -> np.ndarray:
        (computed,) = self.session.run(pad(texts), [output])
        return computed.astype(np.float64)

    def token_id(self, token: str) -> int:
        return qwen.token_id(Tokenizer.from_file(str(self.source / "tokenizer.json")), token)


def baked(source: Path, out: Path, name: str) -> Baked:
    bundle = xlmr.bake_tiny(out, name, source)
    session = Session(bundle / "fp32" / "model.onnx", SessionSettings(num_threads=2))
    return Baked(source, session, qwen_reference.read(source, SIZES[name]))


@pytest.fixture(scope="module")
def models(qwen_sources: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Baked]:
    out = tmp_path_factory.mktemp("models")
    return {name: baked(qwen_sources / name, out, name) for name in qwen.WRITERS}


def drawn(lengths: tuple[int, ...], below: int = EMBEDDING_SIZES.rows) -> list[np.ndarray]:
    draw = np.random.default_rng(2)
    return [draw.integers(0, below, length) for length in lengths]


@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
@pytest.mark.parametrize("name", [JINA_CODE, QWEN3_EMBEDDING])
def test_vectors_equal_numpy_alone_and_padded(
    models: dict[str, Baked], name: str, lengths: tuple[int, ...]
) -> None:
    model, texts = models[name], drawn(lengths)
    together = unit(model.run(texts, "pooled"))
    assert together.shape == (len(texts), SIZES[name].hidden)
    for ids, vector in zip(texts, together, strict=True):
        assert np.abs(vector - unit(model.reference.states(ids)[-1])).max() < TOLERANCE
        (alone,) = unit(model.run([ids], "pooled"))
        assert alone @ vector > COSINE


@pytest.mark.parametrize(("name", "mistake"), MISTAKES, ids=str)
def test_a_mistake_would_be_seen(models: dict[str, Baked], name: str, mistake: dict[str, Any]) -> None:
    model, texts = models[name], drawn(MIXED)
    wrong = replace(model.reference, **mistake)
    for ids, vector in zip(texts, unit(model.run(texts, "pooled")), strict=True):
        assert np.abs(vector - unit(wrong.states(ids)[-1])).max() > SEEN


@pytest.mark.parametrize("token", [0, qwen.EMBEDDING_SIZES.rows - 1])
def test_what_follows_the_end_of_a_text_does_not_matter(models: dict[str, Baked], token: int) -> None:
    """Padding may hold any token: its mask alone says where a text ends."""
    inputs = pad(drawn(MIXED))
    exact = models[QWEN3_EMBEDDING].session.run(inputs, ["pooled"])
    filled = np.where(inputs["attention_mask"] == 1, inputs["input_ids"], token)
    other = models[QWEN3_EMBEDDING].session.run(inputs | {"input_ids": filled}, ["pooled"])
    assert np.array_equal(exact, other)


def answer_scores(model: Baked, texts: list[np.ndarray], table: str) -> np.ndarray:
    """Return P(yes) of two logits, from the whole head of the language model."""
    logits = np.stack([model.reference.states(ids)[-1] for ids in texts]) @ model.reference.tensors[table].T
    yes, no = (np.exp(logits[:, model.token_id(word)]) for word in ("yes", "no"))
    return np.asarray(yes / (yes + no))


@pytest.mark.parametrize("lengths", LENGTHS[:-1], ids=str)
def test_scores_equal_numpy_alone_and_padded(models: dict[str, Baked], lengths: tuple[int, ...]) -> None:
    model, texts = models[QWEN3_RERANKER], drawn(lengths)
    logits = model.run(texts, "scores")
    assert logits.shape == (len(texts),)
    expected = answer_scores(model, texts, "embed_tokens.weight")
    assert np.abs(1 / (1 + np.exp(-logits)) - expected).max() < TOLERANCE
    alone = np.concatenate([model.run([ids], "scores") for ids in texts])
    assert np.abs(logits - alone).max() < TOLERANCE
    assert np.abs(expected - 0.5).max() > SEEN  # yes and no in the other order are seen


def test_an_untied_head_is_the_one_that_scores(tmp_path: Path) -> None:
    source = qwen.write_qwen3_reranker(tmp_path / "checkpoint", tied=False)
    model, texts = baked(source, tmp_path / "models", QWEN3_RERANKER), drawn(MIXED)
    scores = 1 / (1 + np.exp(-model.run(texts, "scores")))
    assert np.abs(scores - answer_scores(model, texts, "lm_head.weight")).max() < TOLERANCE
    assert np.abs(scores - answer_scores(model, texts, "embed_tokens.weight")).max() > SEEN


def with_markers(model: Baked, ids: np.ndarray, num_documents: int) -> tuple[np.ndarray, np.ndarray]:
    """Put markers in the place of tokens, the query's last; return the ids and where the markers are."""
    document, query = (model.token_id(marker) for marker in (qwen.DOCUMENT_MARKER, qwen.QUERY_MARKER))
    places = np.linspace(1, len(ids) - 2, num_documents + 1).astype(int)
    marked = ids.copy()
    marked[places] = [document] * num_documents + [query]
    return marked, places


def projected(reference: Reference, ids: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Return the unit vectors of the tokens at some places."""
    first, second = (reference.tensors[f"projector.{layer}.weight"] for layer in (0, 2))
    return unit(np.maximum(reference.states(ids)[places] @ first.T, 0) @ second.T)


@pytest.mark.parametrize("num_documents", [1, 5])
@pytest.mark.parametrize("lengths", [(20,), (400,), (64, 300, 20)], ids=str)
def test_projected_markers_equal_numpy_in_their_order(
    models: dict[str, Baked], lengths: tuple[int, ...], num_documents: int
) -> None:
    model = models[JINA_RERANKER]
    smallest_marker = model.token_id(qwen.SCORE_MARKER)
    texts, places = zip(
        *(with_markers(model, ids, num_documents) for ids in drawn(lengths, smallest_marker)), strict=True
    )
    computed = unit(model.run(list(texts), "projected"))
    assert computed.shape == (len(texts), num_documents + 1, qwen.PROJECTION)
    for ids, found, row in zip(texts, places, computed, strict=True):
        expected = projected(model.reference, ids, found)
        assert np.abs(row - expected).max() < TOLERANCE
        assert np.abs(row - expected[::-1]).max() > SEEN
        assert np.abs(row - projected(model.reference, ids, found - 1)).max() > SEEN


def test_a_token_that_marks_no_text_is_not_projected(models: dict[str, Baked]) -> None:
    """The third added token and a prompt without any marker."""
    model = models[JINA_RERANKER]
    score = model.token_id(qwen.SCORE_MARKER)
    assert model.run([np.array([1, score, 2])], "projected").shape == (1, 0, qwen.PROJECTION)


def test_a_listwise_prompt_may_be_longer_than_the_positions(tmp_path: Path) -> None:
    """Its capacity counts texts, not the words around them; the reference computes angles as they come."""
    source = qwen.write_jina_reranker(tmp_path / "checkpoint")
    xlmr.write_json(source / "config.json", replace(SIZES[JINA_RERANKER], positions=64).config)
    model = baked(source, tmp_path / "models", JINA_RERANKER)
    (ids,) = drawn((600,), model.token_id(qwen.SCORE_MARKER))
    marked, places = with_markers(model, ids, 5)
    (row,) = unit(model.run([marked], "projected"))
    assert np.abs(row - projected(model.reference, marked, places)).max() < TOLERANCE
