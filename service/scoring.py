"""What the ways of scoring have in common: what a request asks, what they work with, what they answer.

Knows no prompt and no template.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from service import inference
from service.graphs import Graphs
from service.manifest import Manifest, Output
from service.shares import Runs
from service.tokenization import Ids, Tokenizer

Floats = npt.NDArray[np.float32]
Scores = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class RankOptions:
    """What a request asks of a reranker beside its texts; None leaves it to the model."""

    top_n: int | None = None
    instruction: str | None = None
    max_query_length: int | None = None  # tokens
    max_doc_length: int | None = None  # tokens
    return_embeddings: bool = False


@dataclass(frozen=True)
class Parts:
    """What a reranker is made of."""

    manifest: Manifest
    tokenizer: Tokenizer
    graphs: Graphs
    scheduler: Runs


@dataclass(frozen=True)
class Scored:
    """A score for each document, the tokens billed, and the documents' vectors where the model makes any."""

    scores: Scores  # (documents,)
    num_tokens: int
    vectors: Floats | None = None  # (documents, size), not normalised


def logits(parts: Parts, sequences: Sequence[Ids]) -> Floats:
    """Compute the one logit of every sequence: (sequences,). Raises as `inference.run`.

    Equal sequences, of equal documents or of what a long query leaves of them, are run once: their logits are
    equal.
    """
    keys = [ids.tobytes() for ids in sequences]
    different = dict(zip(keys, sequences, strict=True))
    rows = inference.run(parts.graphs, parts.scheduler, None, list(different.values()), [Output.SCORES])
    found = {key: value for key, (value,) in zip(different, rows, strict=True)}
    return np.array([found[key] for key in keys], dtype=np.float32)


def sigmoid(values: Floats) -> Scores:
    """Turn logits into probabilities."""
    return np.asarray(1 / (1 + np.exp(-values.astype(np.float64))))
