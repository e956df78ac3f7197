"""What the OpenAPI document says of answers. `service.schema` makes them; tests hold both together."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from service.manifest import Kind, Precision

Index = Annotated[int, Meta(ge=0, description="The place in the request, from 0.")]
Number = Annotated[int, Meta(ge=0)]
Vector = Annotated[
    list[float] | str,
    Meta(description="Numbers, or base64 of little-endian float32; of `binary` integers from -128 to 127."),
]


class Usage(msgspec.Struct, forbid_unknown_fields=True):
    """The tokens of the texts themselves, without the prefix of a task."""

    prompt_tokens: Number
    total_tokens: Number


class SparseEmbedding(msgspec.Struct, forbid_unknown_fields=True):
    """The weights of the tokens that an input has."""

    indices: list[Number]
    values: list[float]


class EmbeddingItem(msgspec.Struct, forbid_unknown_fields=True):
    """The vector of one input."""

    object: Literal["embedding"]
    index: Index
    embedding: Annotated[
        list[float | str | list[float]] | str,
        Meta(description="As `embedding_type` says; with `return_multivector` a list of such vectors."),
    ]
    sparse_embedding: Annotated[
        SparseEmbedding | UnsetType, Meta(description="Extension, with `return_sparse`.")
    ] = UNSET
    colbert_embedding: Annotated[
        list[list[float]] | UnsetType, Meta(description="Extension, with `return_colbert`.")
    ] = UNSET


class EmbeddingsAnswer(msgspec.Struct, forbid_unknown_fields=True):
    """Vectors in the order of the inputs."""

    object: Literal["list"]
    model: str
    data: list[EmbeddingItem]
    usage: Usage


class MultiVectorItem(msgspec.Struct, forbid_unknown_fields=True):
    """The vectors of one input, one for each token."""

    object: Literal["embeddings"]
    index: Index
    embeddings: list[Vector]


class MultiVectorAnswer(msgspec.Struct, forbid_unknown_fields=True):
    """Vectors of tokens in the order of the inputs."""

    object: Literal["list"]
    model: str
    data: list[MultiVectorItem]
    usage: Usage


class TokenizeItem(msgspec.Struct, forbid_unknown_fields=True):
    """The tokens of one text, those of its task's prefix among them."""

    index: Index
    tokens: Number
    ids: Annotated[list[Number] | UnsetType, Meta(description="With `return_ids`.")] = UNSET


class TokenizeAnswer(msgspec.Struct, forbid_unknown_fields=True):
    """Tokens in the order of the texts."""

    model: str
    data: list[TokenizeItem]
    usage: Usage


class DocumentText(msgspec.Struct, forbid_unknown_fields=True):
    """A document as it was sent."""

    text: str


class RerankItem(msgspec.Struct, forbid_unknown_fields=True):
    """One document and how relevant it is."""

    index: Index
    relevance_score: Annotated[float, Meta(description="From 0 to 1; of jina-reranker-v3 from -1 to 1.")]
    document: Annotated[DocumentText | UnsetType, Meta(description="With `return_documents`.")] = UNSET
    embedding: Annotated[
        list[float] | UnsetType, Meta(description="Extension, with `return_embeddings`.")
    ] = UNSET


class RerankAnswer(msgspec.Struct, forbid_unknown_fields=True):
    """The best document first."""

    model: str
    object: Literal["list"]
    results: list[RerankItem]
    usage: Usage


class ModelEntry(msgspec.Struct, forbid_unknown_fields=True):
    """A loaded model; device, precision, verified and reason are extensions."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    type: Kind
    max_tokens: int
    dimensions: Annotated[int | None, Meta(description="Of requests that name none; null of a reranker.")]
    supports_multimodal: bool
    tasks: list[str] | None
    device: str
    precision: Precision
    verified: bool
    reason: Annotated[str, Meta(description="Why this device and precision.")]


class ModelsAnswer(msgspec.Struct, forbid_unknown_fields=True):
    """The models that serve."""

    object: Literal["list"]
    data: list[ModelEntry]


class HealthAnswer(msgspec.Struct, forbid_unknown_fields=True):
    """The state of the worker that answers."""

    status: Literal["ok", "loading", "error"]
    failed: Annotated[
        dict[str, str] | UnsetType, Meta(description="The reasons of models that could not be loaded.")
    ] = UNSET
    process: Annotated[dict[str, Any] | UnsetType, Meta(description="With `verbose`.")] = UNSET
    models: Annotated[dict[str, dict[str, Any]] | UnsetType, Meta(description="With `verbose`.")] = UNSET
    queue: Annotated[dict[str, float] | UnsetType, Meta(description="With `verbose`.")] = UNSET


class RootAnswer(msgspec.Struct, forbid_unknown_fields=True):
    """What this service is."""

    name: str
    version: str
    models: list[str]
    routes: list[str]


class ErrorFields(msgspec.Struct, forbid_unknown_fields=True):
    """What went wrong."""

    message: Annotated[str, Meta(description="Names the field and the remedy.")]
    type: Literal["invalid_request_error", "authentication_error", "rate_limit_error", "internal_error"]
    param: Annotated[str | None, Meta(description="The field, where there is one: `input[3]`.")]
    code: str


class LateChunkingFields(msgspec.Struct, forbid_unknown_fields=True):
    """A refusal of late chunking, as the API specifies it."""

    message: str
    type: str


class LateChunkingDetail(msgspec.Struct, forbid_unknown_fields=True):
    """A refusal of late chunking, as the API specifies it."""

    error: LateChunkingFields


class ErrorAnswer(msgspec.Struct, forbid_unknown_fields=True):
    """The body of every error."""

    error: ErrorFields
    detail: Annotated[
        str | LateChunkingDetail,
        Meta(description="The message; an object only where late chunking is refused."),
    ]
