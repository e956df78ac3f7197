"""Request bodies to checked requests. Knows the API's field names, no HTTP and no bundle."""

from __future__ import annotations

import msgspec

from service import forms, inputs
from service.encoding import EmbeddingType
from service.errors import InvalidRequest
from service.media import Input
from service.options import PASSAGE, QUERY, EmbedOptions
from service.scoring import RankOptions

UNSIGNED_BINARY = "ubinary"
SIDES = {"query": QUERY, "document": PASSAGE}  # of retrieval, as `input_type` spells them


class RerankRequest(msgspec.Struct, frozen=True):
    """A checked request: a query that is not blank, at least one document."""

    model: str
    query: str
    documents: list[str]
    return_documents: bool
    options: RankOptions


class EmbeddingsRequest(msgspec.Struct, frozen=True):
    """A checked request: at least one input."""

    model: str
    inputs: list[Input]
    embedding_type: EmbeddingType
    options: EmbedOptions


class TokenizeRequest(msgspec.Struct, frozen=True):
    """A checked request: at least one text."""

    model: str
    texts: list[str]
    task: str | None
    return_ids: bool


class MultiVectorRequest(msgspec.Struct, frozen=True):
    """A checked request: at least one input."""

    model: str
    inputs: list[Input]
    side: str  # of retrieval
    dimensions: int | None
    truncate: bool
    embedding_type: EmbeddingType


def parse_embeddings(body: bytes, max_inputs: int) -> EmbeddingsRequest:
    """Parse the body of an embeddings request. Raises InvalidRequest that names the field."""
    parsed = forms.EMBEDDINGS.read(body)
    return EmbeddingsRequest(
        model=parsed.model,
        inputs=inputs.embedded(parsed.input, max_inputs),
        embedding_type=_embedding_type(parsed.embedding_type),
        options=EmbedOptions(
            task=parsed.task,
            prompt_name=parsed.prompt_name,
            dimensions=parsed.dimensions,
            truncate=bool(parsed.truncate),
            late_chunking=bool(parsed.late_chunking),
            return_multivector=bool(parsed.return_multivector),
            return_sparse=bool(parsed.return_sparse),
            return_colbert=bool(parsed.return_colbert),
        ),
    )


def parse_rerank(body: bytes, max_inputs: int) -> RerankRequest:
    """Parse the body of a rerank request. Raises InvalidRequest that names the field."""
    parsed = forms.RERANK.read(body)
    if not parsed.query.strip():
        raise InvalidRequest("'query' is empty; send a text.", param="query", code="empty_query")
    if parsed.top_n is not None and parsed.top_n < 1:
        raise InvalidRequest(
            f"'top_n' is {parsed.top_n}; it must be 1 or more, or left out for all documents.",
            param="top_n",
            code="invalid_top_n",
        )
    return RerankRequest(
        model=parsed.model,
        query=parsed.query,
        documents=inputs.texts("documents", parsed.documents, max_inputs),
        return_documents=parsed.return_documents,
        options=RankOptions(
            top_n=parsed.top_n,
            instruction=parsed.instruction if (parsed.instruction or "").strip() else None,
            max_query_length=parsed.max_query_length,
            max_doc_length=parsed.max_doc_length,
            return_embeddings=bool(parsed.return_embeddings),
        ),
    )


def parse_tokenize(body: bytes, max_inputs: int) -> TokenizeRequest:
    """Parse the body of a tokenize request. Raises InvalidRequest that names the field."""
    parsed = forms.TOKENIZE.read(body)
    given = parsed.input if isinstance(parsed.input, list) else [parsed.input]
    texts = inputs.texts("input", given, max_inputs)
    return TokenizeRequest(parsed.model, texts, parsed.task, bool(parsed.return_ids))


def parse_multi_vector(body: bytes, max_inputs: int) -> MultiVectorRequest:
    """Parse the body of a multi-vector request. Raises InvalidRequest that names the field."""
    parsed = forms.MULTI_VECTOR.read(body)
    return MultiVectorRequest(
        model=parsed.model,
        inputs=inputs.embedded(parsed.input, max_inputs),
        side=SIDES[parsed.input_type],
        dimensions=parsed.dimensions,
        truncate=bool(parsed.truncate),
        embedding_type=_embedding_type(parsed.embedding_type),
    )


def _embedding_type(given: str | list[str] | None) -> EmbeddingType:
    if isinstance(given, list):
        if len(given) != 1:
            raise InvalidRequest(
                f"'embedding_type' lists {len(given)} types; name one.",
                param="embedding_type",
                code="invalid_embedding_type",
            )
        given = given[0]
    if given == UNSIGNED_BINARY:
        raise InvalidRequest(
            "'embedding_type' ubinary is not implemented; ask for 'binary' and add 128 to every number.",
            param="embedding_type",
            code="invalid_embedding_type",
        )
    try:
        return EmbeddingType(EmbeddingType.FLOAT if given is None else given)
    except ValueError:
        raise InvalidRequest(
            f"'embedding_type' is {given!r}; use one of {', '.join(EmbeddingType)}.",
            param="embedding_type",
            code="invalid_embedding_type",
        ) from None
