"""What each route takes and answers, as data: the OpenAPI document says it. Knows no HTTP framework."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from service import answers, examples, forms
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


class Tag(StrEnum):
    """The groups of the document, in their order."""

    EMBEDDINGS = "Embeddings"
    RERANKING = "Reranking"
    TOKENS = "Tokens"
    MODELS = "Models"
    SERVICE = "Service"
    PAGES = "Pages"


TAGS = {
    Tag.EMBEDDINGS: "Vectors of texts and images.",
    Tag.RERANKING: "Documents in the order of their relevance.",
    Tag.TOKENS: "What texts are for a model.",
    Tag.MODELS: "What is loaded here.",
    Tag.SERVICE: "Health, metrics and this document.",
    Tag.PAGES: "For people with a browser.",
}


@dataclass(frozen=True, kw_only=True)
class Operation:
    """A method of a route: what it takes, what it answers with 200, and its errors."""

    method: str
    path: str
    summary: str
    tag: Tag
    answer: type | tuple[str, ...] | None = None  # a body's type, or media types; None: any JSON object
    errors: tuple[int, ...] = (500,)
    form: Form[Any] | None = None
    examples: Mapping[str, dict[str, Any]] = field(default_factory=dict)
    answers: Mapping[str, dict[str, Any]] = field(default_factory=dict)  # examples of what 200 has
    refusals: Mapping[str, dict[str, Any]] = field(default_factory=dict)  # and of what health has with 503
    parameters: tuple[dict[str, Any], ...] = ()
    page: str | None = None  # a media type that browsers get in place of the body
    is_computed: bool = False  # by a model's graph: the answer says where the time has gone
    is_health: bool = False  # needs no key, and says 503 with its own body


EMBEDDINGS = Operation(
    method="POST",
    path="/v1/embeddings",
    summary="Embed texts and images",
    tag=Tag.EMBEDDINGS,
    form=forms.EMBEDDINGS,
    is_computed=True,
    answer=answers.EmbeddingsAnswer,
    errors=OF_BODIES,
    examples=examples.EMBEDDINGS,
    answers=examples.EMBEDDINGS_ANSWERS,
)
MULTI_VECTOR = Operation(
    method="POST",
    path="/v1/multi-vector",
    summary="Embed every token of texts and images",
    tag=Tag.EMBEDDINGS,
    form=forms.MULTI_VECTOR,
    is_computed=True,
    answer=answers.MultiVectorAnswer,
    errors=OF_BODIES,
    examples=examples.MULTI_VECTOR,
    answers=examples.MULTI_VECTOR_ANSWERS,
)
RERANK = Operation(
    method="POST",
    path="/v1/rerank",
    summary="Rank documents by their relevance to a query",
    tag=Tag.RERANKING,
    form=forms.RERANK,
    is_computed=True,
    answer=answers.RerankAnswer,
    errors=OF_BODIES,
    examples=examples.RERANK,
    answers=examples.RERANK_ANSWERS,
)
TOKENIZE = Operation(
    method="POST",
    path="/v1/tokenize",
    summary="Count the tokens of texts",
    tag=Tag.TOKENS,
    form=forms.TOKENIZE,
    answer=answers.TokenizeAnswer,
    errors=OF_BODIES,
    examples=examples.TOKENIZE,
    answers=examples.TOKENIZE_ANSWERS,
)
OPERATIONS = (
    EMBEDDINGS,
    MULTI_VECTOR,
    RERANK,
    TOKENIZE,
    Operation(
        method="GET",
        path="/v1/models",
        summary="List the models that serve",
        tag=Tag.MODELS,
        answer=answers.ModelsAnswer,
        answers=examples.MODELS_ANSWERS,
    ),
    Operation(
        method="GET",
        path="/v1/models/{name}",
        summary="Describe one model",
        tag=Tag.MODELS,
        answer=answers.ModelEntry,
        answers=examples.MODEL_ANSWERS,
        errors=(404, 500, 503),
        parameters=(MODEL_ID,),
    ),
    Operation(
        method="GET",
        path="/healthz",
        summary="Say whether every model is ready",
        tag=Tag.SERVICE,
        answer=answers.HealthAnswer,
        answers=examples.READY,
        refusals=examples.NOT_ALL_READY,
        errors=(400, 500, 503),
        parameters=(VERBOSE,),
        is_health=True,
    ),
    Operation(
        method="GET",
        path="/readyz",
        summary="Say whether a model is ready",
        tag=Tag.SERVICE,
        answer=answers.HealthAnswer,
        answers=examples.READY,
        refusals=examples.NONE_READY,
        errors=(500, 503),
        is_health=True,
    ),
    Operation(
        method="GET",
        path="/livez",
        summary="Say that the process answers",
        tag=Tag.SERVICE,
        answer=answers.HealthAnswer,
        answers=examples.READY,
        is_health=True,
    ),
    Operation(
        method="GET",
        path="/",
        summary="Say what this service is",
        tag=Tag.SERVICE,
        answer=answers.RootAnswer,
        answers=examples.ROOT_ANSWERS,
        page=HTML,
    ),
    Operation(method="GET", path="/openapi.json", summary="This document", tag=Tag.SERVICE),
    Operation(
        method="GET",
        path="/metrics",
        summary="Count, for Prometheus",
        tag=Tag.SERVICE,
        answer=(TEXT, OPEN_METRICS),
    ),
    Operation(method="GET", path="/docs", summary="This document as a page", tag=Tag.PAGES, answer=(HTML,)),
    Operation(
        method="GET", path="/playground", summary="Try models in a page", tag=Tag.PAGES, answer=(HTML,)
    ),
    Operation(
        method="GET",
        path="/static/{name}",
        summary="A file of these pages",
        tag=Tag.PAGES,
        answer=FILES,
        errors=(404, 500),
        parameters=(FILE,),
    ),
)
