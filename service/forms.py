"""What requests may carry: the types that bodies are parsed into, and what else clients call their fields.

The OpenAPI document is made of these types and says what their annotations say. Knows no HTTP and no model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Generic, Literal, TypeVar

import msgspec
from msgspec import Meta

from service import inputs
from service.inputs import InputItem, TextItem
from service.parsing import Aliases, parse

Body = TypeVar("Body")
RED_SQUARE = (  # a PNG, for examples
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAIAAAACCAIAAAD91JpzAAAAFklEQVR42mP8z8DAwMDAxMDA"
    "wMDAAAANHQEDaB7T3gAAAABJRU5ErkJggg=="
)
DEFAULT_RERANKER = "jina-reranker-v3"

Model = Annotated[str, Meta(description="A loaded model (`GET /v1/models`), or its hub id.")]
Inputs = Annotated[
    str | InputItem | list[str | InputItem],
    Meta(description="A text, an object with a `text` or an image, or a list of these in any order."),
]
EncodingTypes = Annotated[
    str | list[str] | None,
    Meta(
        description="`float`; `base64`: little-endian float32; `binary`: packed signs minus 128. "
        "Also as a list of one."
    ),
]
Truncate = Annotated[bool | None, Meta(description="Cut a text that is too long instead of refusing it.")]


class EmbeddingsBody(msgspec.Struct):
    """The body of POST /v1/embeddings."""

    model: Model
    input: Inputs
    embedding_type: EncodingTypes = None
    task: Annotated[
        str | None, Meta(description="A task of the model (`GET /v1/models`); without it the model's own.")
    ] = None
    dimensions: Annotated[
        int | None, Meta(description="The vectors' size, where the model was trained for several.")
    ] = None
    prompt_name: Annotated[
        str | None,
        Meta(
            description="`query` or `passage`: completes a task of jina-code-embeddings or -v4. Of a model "
            "outside the catalog: one of its own prompts."
        ),
    ] = None
    late_chunking: Annotated[
        bool | None,
        Meta(description="Embed parts of one document, each knowing the whole (jina-embeddings-v3, -v4)."),
    ] = None
    truncate: Truncate = None
    return_multivector: Annotated[
        bool | None, Meta(description="Extension, jina-embeddings-v4: a vector for each token.")
    ] = None
    return_sparse: Annotated[
        bool | None, Meta(description="Extension, bge-m3: add `sparse_embedding`, weights of token ids.")
    ] = None
    return_colbert: Annotated[
        bool | None, Meta(description="Extension, bge-m3: add `colbert_embedding`, a vector for each token.")
    ] = None
    normalized: Annotated[
        bool | None, Meta(description="Accepted and ignored: vectors always have length 1.")
    ] = None


class RerankBody(msgspec.Struct):
    """The body of POST /v1/rerank. Texts that are too long are always cut."""

    query: Annotated[str, Meta(description="A text that is not blank.")]
    documents: Annotated[list[str | TextItem], Meta(description="Strings, or objects with a `text`.")]
    model: Annotated[str, Meta(description="A loaded reranker.")] = DEFAULT_RERANKER
    top_n: Annotated[
        int | None, Meta(description="How many of the best to return, 1 or more; without it all.")
    ] = None
    return_documents: Annotated[bool, Meta(description="Return each document's text.")] = True
    instruction: Annotated[
        str | None,
        Meta(description="Extension, qwen3-reranker and jina-reranker-v3: what relevance means here."),
    ] = None
    max_query_length: Annotated[
        int | None, Meta(description="Extension, jina-reranker-v3: tokens read of the query.")
    ] = None
    max_doc_length: Annotated[
        int | None, Meta(description="Extension, jina-reranker-v3: tokens read of each document.")
    ] = None
    return_embeddings: Annotated[
        bool | None, Meta(description="Extension, jina-reranker-v3: add each document's vector.")
    ] = None


class TokenizeBody(msgspec.Struct):
    """The body of POST /v1/tokenize."""

    model: Model
    input: Annotated[
        str | TextItem | list[str | TextItem],
        Meta(description="A text, an object with a `text`, or a list of these."),
    ]
    task: Annotated[
        str | None, Meta(description="A task of the model: its prefix is put before every text.")
    ] = None
    return_ids: Annotated[bool | None, Meta(description="Return the token ids beside their number.")] = None


class MultiVectorBody(msgspec.Struct):
    """The body of POST /v1/multi-vector."""

    model: Annotated[str, Meta(description="jina-embeddings-v4 or bge-m3, or a hub id of theirs.")]
    input: Inputs
    input_type: Annotated[
        Literal["query", "document"],
        Meta(description="What the inputs are: what is searched for, or what is searched."),
    ] = "document"
    dimensions: Annotated[
        int | None, Meta(description="The size of each vector; these models have only their own.")
    ] = None
    truncate: Truncate = None
    embedding_type: EncodingTypes = None


@dataclass(frozen=True)
class Form(Generic[Body]):
    """How one kind of body is read."""

    body: type[Body]
    aliases: Aliases = field(default_factory=dict)  # what other clients call the same field
    remedies: Mapping[str, str] = field(default_factory=dict)

    def read(self, content: bytes) -> Body:
        """Read a body. Raises InvalidRequest that names the field."""
        return parse(content, self.body, self.aliases, self.remedies)


INPUT_ALIASES = ("content", "texts")
SIZE_ALIASES = ("output_dimension", "output_dimensionality")
TRUNCATE_ALIASES = ("truncation",)
TYPE_ALIASES = ("encoding_type", "encoding_format", "embedding_types")
EMBEDDINGS = Form(
    EmbeddingsBody,
    {
        "input": INPUT_ALIASES,
        "task": ("task_type",),
        "dimensions": SIZE_ALIASES,
        "truncate": TRUNCATE_ALIASES,
        "embedding_type": TYPE_ALIASES,
    },
    {"input": inputs.FORMS},
)
RERANK = Form(
    RerankBody,
    {"top_n": ("top_k",), "max_doc_length": ("max_tokens_per_doc",)},
    {"documents": inputs.DOCUMENT_FORMS},
)
TOKENIZE = Form(TokenizeBody, {"input": INPUT_ALIASES, "task": ("task_type",)}, {"input": inputs.TEXT_FORMS})
MULTI_VECTOR = Form(
    MultiVectorBody,
    {
        "input": INPUT_ALIASES,
        "dimensions": SIZE_ALIASES,
        "truncate": TRUNCATE_ALIASES,
        "embedding_type": TYPE_ALIASES,
    },
    {"input": inputs.FORMS, "input_type": "'query' or 'document'"},
)
