"""What each route takes and answers, as data: the OpenAPI document says it. Knows no HTTP framework."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from service import answers, forms
from service.forms import Form

HTML, TEXT, OPEN_METRICS = "text/html", "text/plain", "application/openmetrics-text"
FILES = ("text/css", "text/javascript", "image/png", TEXT, HTML)
OF_BODIES = (400, 404, 413, 415, 422, 429, 500, 503, 504)

VERBOSE = {
    "name": "verbose",
    "in": "query",
    "description": "Say what runs where, and what the queue holds.",
    "schema": {"type": "string", "enum": ["true", "false", "1", "0"]},
}
MODEL_ID = {
    "name": "name",
    "in": "path",
    "required": True,
    "description": "A model's id, or its hub id; the slash of a hub id may stand as it is.",
    "schema": {"type": "string", "minLength": 1},
    "example": "jina-embeddings-v3",
}
FILE = {
    "name": "name",
    "in": "path",
    "required": True,
    "description": "A file that the pages name.",
    "schema": {"type": "string", "minLength": 1},
    "example": "favicon.png",
}


@dataclass(frozen=True, kw_only=True)
class Operation:
    """A method of a route: what it takes, what it answers with 200, and its errors."""

    method: str
    path: str
    summary: str
    answer: type | tuple[str, ...] | None = None  # a body's type, or media types; None: any JSON object
    errors: tuple[int, ...] = (500,)
    form: Form[Any] | None = None
    examples: Mapping[str, dict[str, Any]] = field(default_factory=dict)
    parameters: tuple[dict[str, Any], ...] = ()
    is_computed: bool = False  # by a model's graph: the answer says where the time has gone
    is_health: bool = False  # needs no key, and says 503 with its own body


EMBEDDINGS = Operation(
    method="POST",
    path="/v1/embeddings",
    summary="Embed texts and images",
    form=forms.EMBEDDINGS,
    is_computed=True,
    answer=answers.EmbeddingsAnswer,
    errors=OF_BODIES,
    examples={
        "texts": {"model": "all-minilm-l6-v2", "input": ["Hello, world!", "How are you?"]},
        "query of retrieval, shorter vectors": {
            "model": "jina-embeddings-v3",
            "input": "How is bread made?",
            "task": "retrieval.query",
            "dimensions": 8,
        },
        "late chunking": {
            "model": "jina-embeddings-v3",
            "input": "Berlin is the capital of Germany. Its population is 3.85 million.",
            "late_chunking": True,
        },
        "text and image": {
            "model": "jina-embeddings-v4",
            "task": "retrieval.passage",
            "input": ["A red square", {"image": forms.RED_SQUARE}],
        },
        "sparse and colbert vectors": {
            "model": "bge-m3",
            "input": ["How is bread made?"],
            "return_sparse": True,
            "return_colbert": True,
        },
        "as OpenAI's client sends it": {
            "model": "all-minilm-l6-v2",
            "input": "Hello",
            "encoding_format": "base64",
        },
    },
)
MULTI_VECTOR = Operation(
    method="POST",
    path="/v1/multi-vector",
    summary="Embed every token of texts and images",
    form=forms.MULTI_VECTOR,
    is_computed=True,
    answer=answers.MultiVectorAnswer,
    errors=OF_BODIES,
    examples={
        "query": {"model": "bge-m3", "input": "How is bread made?", "input_type": "query"},
        "documents": {
            "model": "jina-embeddings-v4",
            "input": ["Bread is baked from dough.", {"image": forms.RED_SQUARE}],
            "input_type": "document",
            "embedding_type": "base64",
        },
    },
)
RERANK = Operation(
    method="POST",
    path="/v1/rerank",
    summary="Rank documents by their relevance to a query",
    form=forms.RERANK,
    is_computed=True,
    answer=answers.RerankAnswer,
    errors=OF_BODIES,
    examples={
        "documents": {
            "model": "bge-reranker-v2-m3",
            "query": "How is bread made?",
            "documents": ["Bread is baked from dough.", {"text": "Shares fell on Monday."}],
            "top_n": 1,
        },
        "instruction": {
            "query": "How is bread made?",
            "documents": ["Bread is baked from dough.", "Shares fell on Monday."],
            "instruction": "Recipes are relevant.",
            "return_documents": False,
            "return_embeddings": True,
        },
    },
)
TOKENIZE = Operation(
    method="POST",
    path="/v1/tokenize",
    summary="Count the tokens of texts",
    form=forms.TOKENIZE,
    answer=answers.TokenizeAnswer,
    errors=OF_BODIES,
    examples={
        "numbers": {"model": "all-minilm-l6-v2", "input": ["Hello, world!", "How are you?"]},
        "ids with a prefix": {
            "model": "jina-embeddings-v3",
            "input": "How is bread made?",
            "task": "retrieval.query",
            "return_ids": True,
        },
    },
)
OPERATIONS = (
    EMBEDDINGS,
    MULTI_VECTOR,
    RERANK,
    TOKENIZE,
    Operation(
        method="GET", path="/v1/models", summary="List the models that serve", answer=answers.ModelsAnswer
    ),
    Operation(
        method="GET",
        path="/v1/models/{name}",
        summary="Describe one model",
        answer=answers.ModelEntry,
        errors=(404, 500, 503),
        parameters=(MODEL_ID,),
    ),
    Operation(
        method="GET",
        path="/healthz",
        summary="Say whether every model is ready",
        answer=answers.HealthAnswer,
        errors=(400, 500, 503),
        parameters=(VERBOSE,),
        is_health=True,
    ),
    Operation(
        method="GET",
        path="/readyz",
        summary="Say whether a model is ready",
        answer=answers.HealthAnswer,
        errors=(500, 503),
        is_health=True,
    ),
    Operation(
        method="GET",
        path="/livez",
        summary="Say that the process answers",
        answer=answers.HealthAnswer,
        is_health=True,
    ),
    Operation(method="GET", path="/", summary="Say what this service is", answer=answers.RootAnswer),
    Operation(method="GET", path="/openapi.json", summary="This document"),
    Operation(method="GET", path="/metrics", summary="Count, for Prometheus", answer=(TEXT, OPEN_METRICS)),
    Operation(method="GET", path="/docs", summary="This document as a page", answer=(HTML,)),
    Operation(method="GET", path="/playground", summary="Try models in a page", answer=(HTML,)),
    Operation(
        method="GET",
        path="/static/{name}",
        summary="A file of these pages",
        answer=FILES,
        errors=(404, 500),
        parameters=(FILE,),
    ),
)
