"""The OpenAPI document, made of the types that parse requests and of `service.operations`."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import msgspec

from service import fitting
from service.answers import ErrorAnswer
from service.forms import Form
from service.manifest import Manifest
from service.operations import MODEL_ID, OPERATIONS, TAGS, Operation

Json = dict[str, Any]
SCHEMAS = "#/components/schemas/{name}"
JSON = "application/json"
DESCRIPTION = (
    "Embeddings and reranking over the Jina HTTP format. Unknown fields of a body are ignored, null means "
    "absent. Fields called extensions stand beside the specified ones. A key is needed only where the "
    "service was started with `API_KEYS`, and not for health: `Authorization: Bearer KEY` or, for what only "
    "reads, HTTP Basic with the key as the password."
)
ERRORS: dict[int, tuple[str, str]] = {  # what it means, and an example's code
    400: ("The HTTP request is broken.", "bad_request"),
    401: ("A key is needed (`API_KEYS`) and none, or a wrong one, was sent.", "invalid_api_key"),
    404: ("No such model is loaded.", "model_not_found"),
    413: ("The body is larger than `MAX_BODY_BYTES`.", "body_too_large"),
    415: ("The body is not declared as JSON.", "unsupported_media_type"),
    422: ("A field is wrong; `param` names it.", "wrong_type"),
    429: ("Too much waits already, or `RATE_LIMIT` is exceeded.", "overloaded"),
    500: ("The service failed.", "internal_error"),
    503: ("The model is loading, or failed to load.", "model_loading"),
    504: ("The request's turn did not come within `REQUEST_TIMEOUT`.", "request_timeout"),
}
TYPES = {401: "authentication_error", 429: "rate_limit_error"}
REQUEST_ID, TIMING = "X-Request-ID", "Server-Timing"
OF_ANSWERS = (REQUEST_ID, "Content-Encoding")  # headers of every answer
ERROR_HEADERS = {
    401: ("WWW-Authenticate",), 429: ("Retry-After",), 500: (TIMING,), 503: ("Retry-After", TIMING),
}  # fmt: skip
OF_ALL = (401,)  # of every route but health, where keys are set
HEADERS: Json = {
    REQUEST_ID: {
        "description": "The request's id, the caller's own if it sent a sane one; it stands in the log.",
        "required": True,
        "schema": {"type": "string"},
    },
    "Retry-After": {
        "description": "Seconds after which to come again; of 503 only while a model is loading.",
        "schema": {"type": "integer", "minimum": 1},
    },
    TIMING: {
        "description": (
            "Where the time has gone, in milliseconds, once a request was computed: `tokenize;dur=1.23`, "
            "`queue`, `run`, `encode`, `total`; what has not ended is left out."
        ),
        "schema": {"type": "string"},
    },
    "Content-Encoding": {
        "description": "Of a large body, if `Accept-Encoding` asks for it and `COMPRESSION` allows it.",
        "schema": {"type": "string", "enum": ["gzip"]},
    },
    "WWW-Authenticate": {"description": "How to show a key.", "schema": {"type": "string"}},
}
CALLERS_ID: Json = {
    "name": REQUEST_ID,
    "in": "header",
    "description": "An id of your own for this request.",
    "schema": {"type": "string", "pattern": "^[A-Za-z0-9._:-]{1,128}$"},
}
SCHEMES: dict[str, Json] = {
    "bearer": {
        "type": "http",
        "scheme": "bearer",
        "description": "Needed only where the service was started with `API_KEYS`.",
    },
    "basic": {
        "type": "http",
        "scheme": "basic",
        "description": "For what only reads (GET, HEAD): the key as the password, under any name.",
    },
}
COMPUTING: list[Json] = [{"bearer": []}, {}]  # with a key, or none where none is wanted
READING: list[Json] = [{"bearer": []}, {"basic": []}, {}]


def document(version: str, routes: Collection[tuple[str, str]], loaded: Sequence[Manifest] = ()) -> Json:
    """Describe routes, given as (method, path), those of `service.operations` alone; HEAD is as GET.

    Examples name loaded models where one of these can answer them.
    """
    described = [operation for operation in OPERATIONS if (operation.method, operation.path) in routes]
    paths: dict[str, Json] = {}
    for operation in described:
        methods = paths.setdefault(operation.path, {})
        methods[operation.method.lower()] = found = _operation(operation, loaded)
        if ("HEAD", operation.path) in routes:
            methods["head"] = _headless(found)
    return {
        "openapi": "3.1.0",
        "info": {"title": "jina-onnx-server", "version": version, "description": DESCRIPTION},
        "servers": [{"url": "/"}],
        "tags": [{"name": tag, "description": meaning} for tag, meaning in TAGS.items()],
        "security": COMPUTING,
        "paths": paths,
        "components": {
            "schemas": _schemas(described),
            "headers": HEADERS,
            "parameters": {"RequestId": CALLERS_ID},
            "responses": {str(status): _error(status) for status in ERRORS},
            "securitySchemes": SCHEMES,
        },
    }


def _operation(operation: Operation, loaded: Sequence[Manifest]) -> Json:
    place = operation.path.strip("/").replace("/", "_").replace(".", "_") or "root"
    shown = fitting.fit(operation.examples, loaded)
    found: Json = {
        "operationId": f"{operation.method.lower()}_{place}".replace("{", "").replace("}", ""),
        "summary": operation.summary,
        "tags": [operation.tag],
        "parameters": [*_parameters(operation, loaded), {"$ref": "#/components/parameters/RequestId"}],
        "responses": _responses(operation, _model_of(shown)),
    }
    if operation.method == "GET":
        found["security"] = [] if operation.is_health else READING
    if operation.form:
        content = {"schema": _reference(operation.form.body), "examples": _named(shown)}
        found["requestBody"] = {"required": True, "content": {JSON: content}}
    return found


def _parameters(operation: Operation, loaded: Sequence[Manifest]) -> list[Json]:
    """List the parameters, the example of a model's id being that of a loaded one."""
    names: list[Any] = [manifest.name for manifest in loaded] or [MODEL_ID["example"]]
    known = MODEL_ID["example"] in names
    return [
        each | {"example": names[0]} if each is MODEL_ID and not known else each
        for each in operation.parameters
    ]


def _model_of(shown: Mapping[str, Json]) -> str | None:
    """Return the model that the first example of a request names."""
    return next((body.get("model") for body in shown.values()), None)


def _responses(operation: Operation, model: str | None) -> Json:
    headers = _headers(TIMING) if operation.is_computed else _headers()
    good = {
        "description": operation.summary + ".",
        "headers": headers,
        "content": _content(operation, operation.answers, model),
    }
    statuses = operation.errors if operation.is_health else sorted({*operation.errors, *OF_ALL})
    found: Json = {"200": good}
    found |= {str(status): {"$ref": f"#/components/responses/{status}"} for status in statuses}
    if operation.is_health and 503 in statuses:
        content = _content(operation, operation.refusals, model)
        found["503"] = {
            "description": "Not ready.", "headers": _headers("Retry-After"), "content": content
        }  # fmt: skip
    return found


def _content(operation: Operation, answers: Mapping[str, Json], model: str | None) -> Json:
    """Describe a body and show it as the model of the request's example gives it."""
    answer = operation.answer
    if isinstance(answer, tuple):
        return {media: {"schema": {"type": "string"}} for media in answer}
    found: Json = {JSON: {"schema": _reference(answer) if answer else {"type": "object"}}}
    if answers:
        found[JSON]["examples"] = _named(
            {
                name: body | ({"model": model} if model and "model" in body else {})
                for name, body in answers.items()
            }
        )
    if operation.page:
        found[operation.page] = {"schema": {"type": "string"}}
    return found


def _headless(operation: Json) -> Json:
    """Turn a GET into its HEAD, whose answers have no body."""
    found = copy.deepcopy(operation)
    found["operationId"] = found["operationId"].replace("get_", "head_", 1)
    for status, answer in found["responses"].items():
        description = answer.get("description") or ERRORS[int(status)][0]
        found["responses"][status] = {"description": description, "headers": _headers()}
    return found


def _error(status: int) -> Json:
    meaning, code = ERRORS[status]
    kind = "internal_error" if status >= 500 else TYPES.get(status, "invalid_request_error")
    example = {"error": {"message": meaning, "type": kind, "param": None, "code": code}, "detail": meaning}
    return {
        "description": meaning,
        "headers": _headers(*ERROR_HEADERS.get(status, ())),
        "content": {JSON: {"schema": _reference(ErrorAnswer), "example": example}},
    }


def _headers(*names: str) -> Json:
    return {name: {"$ref": f"#/components/headers/{name}"} for name in (*OF_ANSWERS, *names)}


def _named(examples: Mapping[str, Json]) -> Json:
    return {name.replace(" ", "-"): {"summary": name, "value": value} for name, value in examples.items()}


def _reference(body: type) -> Json:
    return {"$ref": SCHEMAS.format(name=body.__name__)}


def _schemas(operations: Iterable[Operation]) -> Json:
    forms = [operation.form for operation in operations if operation.form]
    bodies = [form.body for form in forms]
    types = [operation.answer for operation in operations if isinstance(operation.answer, type)]
    _, schemas = msgspec.json.schema_components([*bodies, *types, ErrorAnswer], ref_template=SCHEMAS)
    for form in forms:
        _add_aliases(schemas[form.body.__name__], form)
    return schemas


def _add_aliases(schema: Json, form: Form[Any]) -> None:
    """Describe what else clients call fields; of a required field one of its names must be there."""
    properties, needed = schema["properties"], []
    for name, aliases in form.aliases.items():
        for alias in aliases:
            properties[alias] = properties[name] | {"description": f"Another name of `{name}`."}
        if name in schema["required"]:
            schema["required"].remove(name)
            needed.append({"anyOf": [{"required": [one]} for one in (name, *aliases)]})
    if needed:
        schema["allOf"] = needed
