"""What admission counts for a request beside what is then computed for it, by kind of model."""

from __future__ import annotations

import numpy as np
import pytest

from service.embedding import EmbeddingModel
from service.options import EmbedOptions
from service.registry import Registry
from service.scoring import RankOptions
from service.tickets import Ticket

pytestmark = pytest.mark.reference

QUERY = "What keeps bread from going stale within a day of baking it at home?"
PASSAGES = [
    "Bread goes stale as its starch gives up water and hardens again; a closed box keeps the water in.",
    "The harbour of the old town was rebuilt in the spring, with room for forty small boats and a market.",
    "Sugar, fat and sour dough all slow the change down. Freezing stops it, a cool cupboard makes it faster.",
] * 8
MOST, LEAST = 2.0, 0.5  # estimated tokens for each that is computed


class Computed:
    """Counts what is computed for a request."""

    def __init__(self) -> None:
        self.num_tokens = 0
        self.ticket = Ticket(on_progress=self._count)

    def _count(self, ticket: Ticket, num_tokens: int) -> None:
        self.num_tokens += num_tokens


@pytest.fixture(params=["golden_registry", "golden_qwen_registry", "golden_v4_registry"])
def registry(request: pytest.FixtureRequest) -> Registry:
    found: Registry = request.getfixturevalue(request.param)
    return found


def assert_near(estimated: int, computed: Computed) -> None:
    assert computed.num_tokens
    assert LEAST < estimated / computed.num_tokens < MOST, (estimated, computed.num_tokens)


PLAIN = RankOptions()
INSTRUCTED = RankOptions(instruction="Prefer passages that a baker would agree with, in plain words.")
CUT_DOCUMENTS, CUT_QUERY = RankOptions(max_doc_length=8), RankOptions(max_query_length=4)
BGE, QWEN3, JINA = "bge-reranker-v2-m3", "qwen3-reranker-0.6b", "jina-reranker-v3"


@pytest.mark.parametrize(
    ("model", "options"),
    [(BGE, PLAIN), (QWEN3, PLAIN), (QWEN3, INSTRUCTED)]
    + [(JINA, options) for options in (PLAIN, INSTRUCTED, CUT_DOCUMENTS, CUT_QUERY)],
)
def test_rerankers(
    model: str, options: RankOptions, golden_registry: Registry, golden_qwen_registry: Registry
) -> None:
    reranker = (golden_registry if model == BGE else golden_qwen_registry).reranker(model)
    texts = [f"{number}. {text}" for number, text in enumerate(PASSAGES)]
    computed = Computed()
    reranker.shared(computed.ticket).rank(QUERY, texts, options)
    assert_near(reranker.estimate(QUERY, texts, options), computed)


def test_embeddings_of_every_task(registry: Registry) -> None:
    texts = [QUERY, *PASSAGES]
    models = [loaded.model for loaded in registry.loaded() if isinstance(loaded.model, EmbeddingModel)]
    assert models
    for model in models:
        for task in model.manifest.task_names or [None]:
            asked = EmbedOptions(task=task, truncate=True)
            computed = Computed()
            model.shared(computed.ticket).embed(texts, asked)
            assert_near(model.estimate(texts, asked), computed)


def test_the_largest_images(golden_v4_registry: Registry) -> None:
    model = golden_v4_registry.embedding("jina-embeddings-v4")
    assert model.tower
    side = int(model.tower.vision.max_pixels**0.5) // 28 * 28  # whole cells
    pictures = [np.full((side, side, 3), shade, np.uint8) for shade in (10, 200)]
    asked = EmbedOptions(truncate=True)
    computed = Computed()
    model.shared(computed.ticket).embed(pictures, asked)
    assert_near(2 * model.tower.max_tokens, computed)
