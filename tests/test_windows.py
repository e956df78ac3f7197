"""Late chunking of a document that is longer than the model takes: states are those of each window alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from service import late_chunking
from service.config import Settings
from service.embedding import EmbeddingModel
from service.late_chunking import Document
from service.manifest import Output
from service.options import EmbedOptions
from service.registry import Registry
from service.scheduler import Scheduler
from service.session import pad
from tests import xlmr

WORDS = [xlmr.WORDS[(7 * number) % len(xlmr.WORDS)] for number in range(150)]
TEXT = " ".join(WORDS)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> EmbeddingModel:
    folder = tmp_path_factory.mktemp("windows")
    source = xlmr.write_jina_v3(folder / "checkpoint")
    xlmr.bake_tiny(folder / "models", xlmr.V3, source)
    registry = Registry(Settings(models_dir=folder / "models"), Scheduler(1024))
    registry.load()
    return registry.embedding(xlmr.V3)


def states(model: EmbeddingModel, task: str, ids: np.ndarray) -> np.ndarray:
    """Run token ids alone."""
    (found,) = model.graphs.session(task).run(pad([ids]), [Output.TOKEN_EMBEDDINGS])
    return np.asarray(found[0])


def windows_by_hand(num_tokens: int, capacity: int, overlap: int) -> list[tuple[int, int]]:
    begins = range(0, max(1, num_tokens - overlap), capacity - overlap)
    return [(begin, min(begin + capacity, num_tokens)) for begin in begins]


@pytest.mark.parametrize(
    ("task", "max_tokens"),
    [("text-matching", 24), ("text-matching", 41), ("text-matching", 100), ("retrieval.query", 100)],
)
def test_each_token_has_the_state_of_its_first_window(
    model: EmbeddingModel, task: str, max_tokens: int
) -> None:
    """Every token is a chunk of its own here, so that each vector is one token's state."""
    limited = replace(model, manifest=replace(model.manifest, max_tokens=max_tokens))
    prefix = {known.name: known.prefix for known in model.manifest.tasks}[task]
    located = model.tokenizer.locate(prefix + TEXT)
    is_text = ~located.is_special & (located.ends > len(prefix))
    opening, text = located.ids[: np.argmax(is_text)], located.ids[is_text]
    capacity = max_tokens - len(opening) - 1
    chunk_ends = located.ends[is_text] - len(prefix)
    computed = limited.embed_document(
        Document(TEXT, chunk_ends, is_one_text=False), EmbedOptions(task=task)
    ).vectors
    assert len(computed) == len(text)
    seen: set[int] = set()
    cuts = windows_by_hand(len(text), capacity, capacity // 2)
    assert len(cuts) > 2
    for begin, end in cuts:
        alone = states(model, task, np.concatenate([opening, text[begin:end], located.ids[-1:]]))
        for token in set(range(begin, end)) - seen - {0, len(text) - 1}:  # those have special tokens beside
            expected = alone[len(opening) + token - begin]
            expected = expected / np.linalg.norm(expected)
            assert np.abs(computed[token] - expected).max() < 2e-5
        seen |= set(range(begin, end))
    assert seen == set(range(len(text)))


def test_the_ends_carry_the_special_tokens(model: EmbeddingModel) -> None:
    limited = replace(model, manifest=replace(model.manifest, max_tokens=30))
    located = model.tokenizer.locate(TEXT)
    text, task = located.ids[1:-1], "separation"
    ends = located.ends[1:-1]
    computed = limited.embed_document(
        Document(TEXT, ends, is_one_text=False), EmbedOptions(task=task)
    ).vectors
    first = states(model, task, np.concatenate([located.ids[:1], text[:28], located.ids[-1:]]))
    begin, end = windows_by_hand(len(text), 28, 14)[-1]
    last = states(model, task, np.concatenate([located.ids[:1], text[begin:end], located.ids[-1:]]))
    for row, pair in ((computed[0], first[:2]), (computed[-1], last[-2:])):
        mean = pair.mean(axis=0)
        assert np.abs(row - mean / np.linalg.norm(mean)).max() < 2e-5


def test_a_document_within_the_limit_is_one_window(model: EmbeddingModel) -> None:
    short = " ".join(WORDS[:40])
    located = model.tokenizer.locate(short)
    whole = late_chunking.document([short])
    assert len(late_chunking.plan(whole, located, 0, len(located.ids)).windows) == 1
    assert len(late_chunking.plan(whole, located, 0, len(located.ids) - 1).windows) == 2


def test_the_overlap_is_256_tokens_where_the_window_holds_more() -> None:
    assert late_chunking.spans(10_000, 8190)[1] == (8190 - 256, 8190, 10_000)
