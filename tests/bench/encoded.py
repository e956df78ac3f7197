"""What it costs to make the bytes of an answer from its vectors, by the service's own functions. No HTTP."""

from __future__ import annotations

import statistics
import time

import numpy as np

from service import app, schema
from service.embedding import Embeddings
from service.encoding import EmbeddingType, Floats
from tests.bench import tables

NUM_VECTORS, DIMENSIONS, NUM_RUNS = 64, 1024, 101
MAX_MILLISECONDS = 4.0


def measure() -> dict[EmbeddingType, float]:
    """Return the processor milliseconds of an answer, the median of many."""
    vectors = np.random.default_rng(0).standard_normal((NUM_VECTORS, DIMENSIONS)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return {
        kind: statistics.median(_milliseconds(vectors, kind) for _ in range(NUM_RUNS))
        for kind in EmbeddingType
    }


def table(found: dict[EmbeddingType, float], command: str) -> list[str]:
    """Lay out each form and compare floats with the target."""
    rows = [(kind, f"{milliseconds:.2f}") for kind, milliseconds in found.items()]
    title = f"an answer of {NUM_VECTORS} x {DIMENSIONS}, from array to bytes, processor time"
    floats = found[EmbeddingType.FLOAT]
    return [
        *tables.aligned(title, command, ("form", "ms"), rows),
        f"target of {EmbeddingType.FLOAT}: less than {MAX_MILLISECONDS:g} ms: {floats:.2f}, "
        f"{tables.verdict(floats < MAX_MILLISECONDS)}",
    ]


def _milliseconds(vectors: Floats, kind: EmbeddingType) -> float:
    begin = time.process_time()
    computed = Embeddings(vectors=vectors, num_tokens=0)
    app._dumps(schema.embeddings_response("model", kind, computed))
    return (time.process_time() - begin) * 1000
