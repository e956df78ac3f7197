"""Results to the bodies of answers. Knows the API's field names, no HTTP."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from service import status
from service.embedding import Embeddings
from service.encoding import EmbeddingType, Encoded, encode
from service.manifest import Kind, Manifest
from service.multi_vector import MultiVectors
from service.requests import RerankRequest
from service.reranking import Ranking
from service.selection import Choice
from service.token_counts import Counted


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


def tokenize_response(model: str, counted: Counted, *, return_ids: bool) -> dict[str, Any]:
    """Make the body of the answer."""
    items: list[dict[str, Any]] = [
        {"index": index, "tokens": len(ids)} for index, ids in enumerate(counted.ids)
    ]
    if return_ids:
        for item, ids in zip(items, counted.ids, strict=True):
            item["ids"] = ids
    return {"model": model, "data": items, "usage": _usage(counted.num_tokens)}


def multi_vector_response(model: str, kind: EmbeddingType, found: MultiVectors) -> dict[str, Any]:
    """Make the body of the answer; every vector of an input is encoded by itself."""
    items = [
        {"object": "embeddings", "index": index, "embeddings": encode(rows, kind)}
        for index, rows in enumerate(found.rows)
    ]
    return {"object": "list", "model": model, "data": items, "usage": _usage(found.num_tokens)}


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
