"""The answer for a text does not depend on its neighbours, by the objects that serve HTTP."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

from convert import texts as converter_texts
from convert.bake import BakeRequest, Verification, bake
from convert.catalog import RECIPES
from convert.recipe import DEFAULT_PRECISIONS
from service import manifest as contract
from service.embedding import open_model
from service.graphs import Graphs
from service.manifest import Output, Precision
from service.options import EmbedOptions
from service.scheduler import Scheduler
from service.session import SessionSettings, pad
from tests import qwen
from tests.conftest import MODEL

NUM_BATCHES = 50
LOWEST_COSINE = {
    Precision.FP32: 0.999999, Precision.INT8_BLOCK: 0.99999, Precision.INT8: 0.999, Precision.INT4: 0.99999,
}  # fmt: skip


@pytest.mark.parametrize("precision", [*DEFAULT_PRECISIONS, Precision.INT4])
def test_alone_and_in_random_batches(real_models: Path, int4_models: Path, precision: Precision) -> None:
    folder = (int4_models if precision == Precision.INT4 else real_models) / MODEL
    graphs = Graphs(folder, contract.load(folder), precision, SessionSettings(num_threads=2))
    model = open_model(graphs, Scheduler(2048))
    options = EmbedOptions(truncate=True)
    draw = random.Random(5)
    texts = [text for text in converter_texts.evaluation() if len(text) < 200]
    alone = {text: model.embed([text], options).vectors[0] for text in texts}
    lowest = 1.0
    for _ in range(NUM_BATCHES):
        batch = draw.sample(texts, draw.randint(2, 16))
        vectors = model.embed(batch, options).vectors
        lowest = min(
            lowest, *(float(np.dot(alone[text], row)) for text, row in zip(batch, vectors, strict=True))
        )
    assert lowest >= LOWEST_COSINE[precision] - 2e-7  # the rounding of a float32 dot product of unit vectors


@pytest.mark.parametrize("precision", [Precision.INT8, Precision.INT8_BLOCK, Precision.INT4])
def test_texts_of_equal_length_share_a_run_of_a_decoder(tmp_path: Path, precision: Precision) -> None:
    source = qwen.write_qwen3_embedding(tmp_path / "checkpoint")
    request = BakeRequest(
        out=tmp_path, source=str(source), precisions=(precision,), verification=Verification.SKIP
    )
    manifest = bake(RECIPES[qwen.QWEN3_EMBEDDING], request)
    graphs = Graphs(tmp_path / manifest.name, manifest, precision, SessionSettings(num_threads=2))
    session = graphs.session(None)
    ids = np.random.default_rng(0).integers(0, manifest.vocabulary_size, (16, 40))
    together = Scheduler(2048).submit(session, list(ids), [Output.POOLED], pad)
    alone = [Scheduler(2048).submit(session, [row], [Output.POOLED], pad)[0] for row in ids]
    for (one,), (other,) in zip(together, alone, strict=True):
        cosine = float(one @ other / np.linalg.norm(one) / np.linalg.norm(other))
        assert cosine >= LOWEST_COSINE[precision] - 2e-7
