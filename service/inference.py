"""Runs tokens through a bundle's graph and vouches that every number is finite. Knows no text, no pixels."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from service import multimodal
from service.errors import InvalidRequest, ModelOutputInvalid
from service.graphs import Graphs
from service.manifest import Kind, Manifest, Output
from service.multimodal import ImagePrompt, TextOrImage
from service.session import Array, pad
from service.shares import Runs

# Outputs with a token axis.
PER_TOKEN = frozenset({Output.TOKEN_EMBEDDINGS, Output.SPARSE, Output.COLBERT, Output.MULTIVECTOR})

Floats = npt.NDArray[np.float32]


def run(
    graphs: Graphs,
    scheduler: Runs,
    task: str | None,
    sequences: Sequence[TextOrImage],
    outputs: Sequence[Output],
) -> list[tuple[Floats, ...]]:
    """Compute outputs for every sequence, those with a token axis cut to the sequence's own tokens.

    Raises InvalidRequest for a token that the model has no row for, ModelUnavailable when the task's graph is
    broken, ModelOutputInvalid for NaN and infinity, WaitedTooLong and ClientGone as the scheduler.
    """
    check_ids(graphs.manifest, dict(enumerate(sequences)))
    stack = stacker(graphs.manifest)
    computed = scheduler.submit(graphs.session(task), sequences, outputs, stack)
    rows = [
        tuple(
            value[: len(sequence)] if output in PER_TOKEN else value
            for output, value in zip(outputs, row, strict=True)
        )
        for sequence, row in zip(sequences, computed, strict=True)
    ]
    if not all(np.isfinite(value).all() for row in rows for value in row):
        raise ModelOutputInvalid(graphs.manifest.name)
    return rows


def stacker(manifest: Manifest) -> Callable[[Sequence[Any]], dict[str, Array]]:
    """Return what makes the inputs of a model's graphs of token ids, and of prompts if it takes images."""
    if manifest.vision is None:
        return pad
    return partial(multimodal.stack, hidden_size=manifest.dimensions)


def check_ids(manifest: Manifest, sequences: Mapping[int, TextOrImage]) -> None:
    """Refuse token ids without a row in the word table: a tokenizer may know more special tokens.

    `sequences` by their places in the request. Raises InvalidRequest, which names the place.
    """
    for index, sequence in sequences.items():
        if isinstance(sequence, ImagePrompt):
            continue  # of tokens that were looked up at the start
        if (highest := int(sequence.max(initial=0))) < manifest.vocabulary_size:
            continue
        is_embedding = manifest.kind == Kind.EMBEDDING
        raise InvalidRequest(
            f"{f'input[{index}]' if is_embedding else 'A text'} holds the special token of id {highest}, but "
            f"model {manifest.name} knows only those below {manifest.vocabulary_size}; take it out.",
            param=f"input[{index}]" if is_embedding else None,
            code="unknown_token",
        )
