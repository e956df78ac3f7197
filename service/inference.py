"""Runs token ids through a bundle's graph and vouches that every number is finite. Knows no text."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from service.errors import InvalidRequest, ModelOutputInvalid
from service.graphs import Graphs
from service.manifest import Kind, Manifest, Output
from service.scheduler import Scheduler

PER_TOKEN = frozenset({Output.TOKEN_EMBEDDINGS, Output.SPARSE, Output.COLBERT})  # outputs with a token axis

Ids = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]


def run(
    graphs: Graphs,
    scheduler: Scheduler,
    task: str | None,
    sequences: Sequence[Ids],
    outputs: Sequence[Output],
) -> list[tuple[Floats, ...]]:
    """Compute outputs for every sequence, those with a token axis cut to the sequence's own tokens.

    Raises InvalidRequest for a token that the model has no row for, ModelUnavailable when the task's graph is
    broken, ModelOutputInvalid for NaN and infinity.
    """
    _check_ids(graphs.manifest, sequences)
    computed = scheduler.submit(graphs.session(task), sequences, outputs)
    rows = [
        tuple(
            value[: len(ids)] if output in PER_TOKEN else value
            for output, value in zip(outputs, row, strict=True)
        )
        for ids, row in zip(sequences, computed, strict=True)
    ]
    if not all(np.isfinite(value).all() for row in rows for value in row):
        raise ModelOutputInvalid(graphs.manifest.name)
    return rows


def _check_ids(manifest: Manifest, sequences: Sequence[Ids]) -> None:
    """Refuse token ids without a row in the word table: a tokenizer may know more special tokens."""
    for index, ids in enumerate(sequences):
        if (highest := int(ids.max(initial=0))) < manifest.vocabulary_size:
            continue
        is_embedding = manifest.kind == Kind.EMBEDDING
        raise InvalidRequest(
            f"{f'input[{index}]' if is_embedding else 'A text'} holds the special token of id {highest}, but "
            f"model {manifest.name} knows only those below {manifest.vocabulary_size}; take it out.",
            param=f"input[{index}]" if is_embedding else None,
            code="unknown_token",
        )
