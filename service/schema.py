"""JSON to typed requests, results to typed responses. Knows the API's field names, no HTTP and no bundle."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from service import inputs, status
from service.embedding import Embeddings
from service.encoding import EmbeddingType, Encoded, encode
from service.errors import InvalidRequest
from service.inputs import InputItem, TextItem
from service.manifest import Kind, Manifest
from service.media import Input
from service.options import EmbedOptions
from service.parsing import Aliases, parse
from service.reranking import Ranking
from service.scoring import RankOptions
from service.selection import Choice

# What other clients call the same field.
EMBEDDINGS_ALIASES: Aliases = {
    "input": ("content", "texts"),
    "task": ("task_type",),
    "dimensions": ("output_dimension", "output_dimensionality"),
    "truncate": ("truncation",),
    "embedding_type": ("encoding_type", "encoding_format", "embedding_types"),
}
RERANK_ALIASES: Aliases = {"top_n": ("top_k",), "max_doc_length": ("max_tokens_per_doc",)}
DEFAULT_RERANKER = "jina-reranker-v3"
UNSIGNED_BINARY = "ubinary"


class EmbeddingsBody(msgspec.Struct):
    """The body of POST /v1/embeddings."""

    model: str
    input: str | InputItem | list[str | InputItem]
    embedding_type: str | list[str] | None = None
    task: str | None = None
    dimensions: int | None = None
    prompt_name: str | None = None
    late_chunking: bool | None = None
    truncate: bool | None = None
    return_multivector: bool | None = None
    return_sparse: bool | None = None  # bge-m3
    return_colbert: bool | None = None  # bge-m3
    normalized: bool | None = None  # accepted, ignored: vectors are always of length 1


class RerankBody(msgspec.Struct):
    """The body of POST /v1/rerank. Texts that are too long are always cut."""

    query: str
    documents: list[str | TextItem]
    model: str = DEFAULT_RERANKER
    top_n: int | None = None
    return_documents: bool = True
    instruction: str | None = None  # qwen3-reranker, jina-reranker-v3
    max_query_length: int | None = None  # jina-reranker-v3, tokens
    max_doc_length: int | None = None  # jina-reranker-v3, tokens
    return_embeddings: bool | None = None  # jina-reranker-v3


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


def parse_embeddings(body: bytes, max_inputs: int) -> EmbeddingsRequest:
    """Parse the body of an embeddings request. Raises InvalidRequest that names the field."""
    parsed = parse(body, EmbeddingsBody, EMBEDDINGS_ALIASES, {"input": inputs.FORMS})
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
    parsed = parse(body, RerankBody, RERANK_ALIASES, {"documents": inputs.DOCUMENT_FORMS})
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


def embeddings_response(model: str, kind: EmbeddingType, computed: Embeddings) -> dict[str, Any]:
    """Make the body of the answer; the vectors of an input are one, or a list of many."""
    encoded: Sequence[Encoded | list[Encoded]] = [
        encode(rows, kind) for rows in computed.multivectors or ()
    ] or encode(computed.vectors, kind)
    items: list[dict[str, Any]] = [
        {"object": "embedding", "index": index, "embedding": embedding}
        for index, embedding in enumerate(encoded)
    ]
    for item, sparse in zip(items, computed.sparse or (), strict=False):
        item["sparse_embedding"] = {"indices": sparse.indices, "values": sparse.values}
    for item, colbert in zip(items, computed.colbert or (), strict=False):
        item["colbert_embedding"] = colbert
    return {"object": "list", "model": model, "data": items, "usage": _usage(computed.num_tokens)}


def rerank_response(model: str, asked: RerankRequest, ranking: Ranking) -> dict[str, Any]:
    """Make the body of the answer, best document first; documents as they were sent, never cut."""
    results: list[dict[str, Any]] = [
        {"index": index, "relevance_score": score}
        for index, score in zip(ranking.order, ranking.scores, strict=True)
    ]
    if asked.return_documents:
        for result in results:
            result["document"] = {"text": asked.documents[result["index"]]}
    if ranking.embeddings is not None:
        for result, embedding in zip(results, ranking.embeddings, strict=True):
            result["embedding"] = embedding
    return {"model": model, "object": "list", "results": results, "usage": _usage(ranking.num_tokens)}


def model_response(manifest: Manifest, choice: Choice) -> dict[str, Any]:
    """Describe a loaded model; device, precision, verified and reason extend the specification."""
    return {
        "id": manifest.name,
        "object": "model",
        "created": manifest.created,
        "owned_by": manifest.owned_by,
        "type": manifest.kind,
        "max_tokens": manifest.max_tokens,
        "dimensions": manifest.default_dimensions if manifest.kind == Kind.EMBEDDING else None,
        "supports_multimodal": manifest.vision is not None,
        "tasks": list(manifest.task_variants) or None,
        **status.of_choice(choice),
    }


def error_response(message: str, kind: str, param: str | None, code: str) -> dict[str, Any]:
    """Make the body of every error; `detail` is what Jina clients read."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}, "detail": message}


def late_chunking_refusal(body: dict[str, Any]) -> dict[str, Any]:
    """Give an error body the one `detail` that is an object, literal from the specification."""
    return {**body, "detail": {"error": {"message": body["detail"], "type": "internal_error"}}}


def _usage(num_tokens: int) -> dict[str, int]:
    return {"prompt_tokens": num_tokens, "total_tokens": num_tokens}


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
