"""The answer for a text does not depend on its neighbours, by the objects that serve HTTP."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

from convert import verify
from service import manifest as contract
from service.embedding import open_model
from service.graphs import Graphs
from service.manifest import Precision
from service.options import EmbedOptions
from service.scheduler import Scheduler
from service.session import SessionSettings
from tests.conftest import MODEL

NUM_BATCHES = 50
LOWEST_COSINE = {Precision.FP32: 0.999999, Precision.INT8_BLOCK: 0.99999, Precision.INT8: 0.999}


@pytest.mark.parametrize("precision", Precision)
def test_alone_and_in_random_batches(real_models: Path, precision: Precision) -> None:
    folder = real_models / MODEL
    graphs = Graphs(folder, contract.load(folder), precision, SessionSettings(num_threads=2))
    model = open_model(graphs, Scheduler(2048))
    options = EmbedOptions(truncate=True)
    draw = random.Random(5)
    texts = [text for text in verify.texts() if len(text) < 200]
    alone = {text: model.embed([text], options).vectors[0] for text in texts}
    lowest = 1.0
    for _ in range(NUM_BATCHES):
        batch = draw.sample(texts, draw.randint(2, 16))
        vectors = model.embed(batch, options).vectors
        lowest = min(
            lowest, *(float(np.dot(alone[text], row)) for text, row in zip(batch, vectors, strict=True))
        )
    assert lowest >= LOWEST_COSINE[precision] - 2e-7  # the rounding of a float32 dot product of unit vectors
