"""A vector for every token of an input, for models that have such an output. Knows no HTTP."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from service import options
from service.embedding import EmbeddingModel
from service.errors import InvalidRequest
from service.manifest import Manifest, Output
from service.media import Item
from service.options import EmbedOptions

FIELDS = {Output.MULTIVECTOR: "return_multivector", Output.COLBERT: "return_colbert"}
TASK = "retrieval"

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class MultiVectors:
    """For each input (tokens, size), rows of length 1, and the tokens billed."""

    rows: Sequence[Floats]
    num_tokens: int


def asked_of(manifest: Manifest, side: str, *, truncate: bool) -> EmbedOptions:
    """Say what to ask of a model for one side of retrieval. Raises InvalidRequest where it cannot."""
    if not any(output in manifest.outputs for output in FIELDS):
        raise InvalidRequest(
            f"Model {manifest.name} has no vectors of tokens; use jina-embeddings-v4 or bge-m3, or send the "
            "request to /v1/embeddings.",
            param="model",
            code="unsupported_model",
        )
    task = f"{TASK}.{side}"
    if task not in manifest.task_names:
        raise InvalidRequest(
            f"Model {manifest.name} is served without the task {task}, which 'input_type' asks for.",
            param="input_type",
            code="unknown_task",
        )
    is_multivector = Output.MULTIVECTOR in manifest.outputs
    return EmbedOptions(
        task=task, truncate=truncate, return_multivector=is_multivector, return_colbert=not is_multivector
    )


def check(model: EmbeddingModel, asked: EmbedOptions, dimensions: int | None) -> None:
    """Refuse, before any work, a size that the vectors do not have. Raises InvalidRequest."""
    if dimensions is None:
        return
    task = options.task_of(model.manifest, asked)
    output = next(output for output, field in FIELDS.items() if getattr(asked, field))
    size = model.graphs.session(task.variant if task else None).size_of(output)
    if dimensions != size:
        raise InvalidRequest(
            f"'dimensions' is {dimensions}; the token vectors of {model.manifest.name} have only their own "
            f"size, {size}.",
            param="dimensions",
            code="invalid_dimensions",
        )


def embed(model: EmbeddingModel, items: Sequence[Item], asked: EmbedOptions) -> MultiVectors:
    """Embed every token. Raises InvalidRequest and others as the model."""
    try:
        computed = model.embed(items, asked)
    except InvalidRequest as error:
        if error.param is None or error.param not in FIELDS.values():
            raise
        message = error.message.replace(error.param, "input", 1)  # the caller sent no such field
        raise InvalidRequest(message, param="input", code=error.code) from error
    rows = (computed.multivectors if asked.return_multivector else computed.colbert) or []
    return MultiVectors(rows, computed.num_tokens)
