"""JSON to typed requests, results to typed responses. Knows the API's field names, no HTTP and no model."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import msgspec
import orjson

from service.embedding import EmbedOptions
from service.encoding import EmbeddingType, Encoded
from service.errors import InvalidRequest
from service.manifest import Manifest
from service.selection import Choice

# What other clients call the same field.
ALIASES: dict[str, tuple[str, ...]] = {
    "input": ("content", "texts"),
    "task": ("task_type",),
    "dimensions": ("output_dimension", "output_dimensionality"),
    "truncate": ("truncation",),
    "embedding_type": ("encoding_type", "encoding_format", "embedding_types"),
}
INPUT_FORMS = "a string, a list of strings, or objects with a 'text'"
UNSIGNED_BINARY = "ubinary"
ERROR_PATH = re.compile(r" - at `\$(?P<path>[^`]*)`$")
MISSING_FIELD = re.compile(r"missing required field `(?P<field>\w+)`")


class TextItem(msgspec.Struct):
    """An input given as an object."""

    text: str


class EmbeddingsBody(msgspec.Struct):
    """The body of POST /v1/embeddings."""

    model: str
    input: str | TextItem | list[str | TextItem]
    embedding_type: str | list[str] | None = None
    task: str | None = None
    dimensions: int | None = None
    prompt_name: str | None = None
    late_chunking: bool | None = None
    truncate: bool | None = None
    return_multivector: bool | None = None
    normalized: bool | None = None  # accepted, ignored: vectors are always of length 1


class EmbeddingsRequest(msgspec.Struct, frozen=True):
    """A checked request: at least one text."""

    model: str
    texts: list[str]
    embedding_type: EmbeddingType
    options: EmbedOptions


def parse_embeddings(body: bytes, max_inputs: int) -> EmbeddingsRequest:
    """Parse the body of an embeddings request. Raises InvalidRequest that names the field."""
    try:
        parsed = msgspec.convert(_with_plain_names(_json_object(body)), EmbeddingsBody)
    except msgspec.ValidationError as error:
        raise _translated(str(error)) from error
    return EmbeddingsRequest(
        model=parsed.model,
        texts=_texts(parsed.input, max_inputs),
        embedding_type=_embedding_type(parsed.embedding_type),
        options=EmbedOptions(
            task=parsed.task,
            dimensions=parsed.dimensions,
            truncate=bool(parsed.truncate),
            late_chunking=bool(parsed.late_chunking),
            return_multivector=bool(parsed.return_multivector),
        ),
    )


def embeddings_response(model: str, encoded: list[Encoded], num_tokens: int) -> dict[str, Any]:
    """Make the body of the answer."""
    return {
        "object": "list",
        "model": model,
        "data": [
            {"object": "embedding", "index": index, "embedding": embedding}
            for index, embedding in enumerate(encoded)
        ],
        "usage": {"prompt_tokens": num_tokens, "total_tokens": num_tokens},
    }


def model_response(manifest: Manifest, choice: Choice) -> dict[str, Any]:
    """Describe a loaded model; device, precision and verified extend the specification."""
    return {
        "id": manifest.name,
        "object": "model",
        "created": manifest.created,
        "owned_by": manifest.owned_by,
        "type": manifest.kind,
        "max_tokens": manifest.max_tokens,
        "dimensions": manifest.dimensions,
        "supports_multimodal": False,
        "tasks": None,
        "device": "cpu",
        "precision": choice.precision,
        "verified": choice.verified,
    }


def error_response(message: str, kind: str, param: str | None, code: str) -> dict[str, Any]:
    """Make the body of every error; `detail` is what Jina clients read."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}, "detail": message}


def late_chunking_refusal(body: dict[str, Any]) -> dict[str, Any]:
    """Give an error body the one `detail` that is an object, literal from the specification."""
    return {**body, "detail": {"error": {"message": body["detail"], "type": "internal_error"}}}


def _json_object(body: bytes) -> dict[str, Any]:
    try:
        content = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise InvalidRequest(f"The body is not valid JSON: {error}.", code="invalid_json") from error
    if not isinstance(content, dict):
        raise InvalidRequest("The body must be a JSON object.", code="invalid_json")
    return content


def _with_plain_names(content: Mapping[str, Any]) -> dict[str, Any]:
    """Drop null fields and give aliases their plain names; one that contradicts its field is refused."""
    present = {name: value for name, value in content.items() if value is not None}
    for field, aliases in ALIASES.items():
        for alias in aliases:
            if alias not in present:
                continue
            value = present.pop(alias)
            known = present.setdefault(field, value)
            if type(known) is not type(value) or known != value:
                raise InvalidRequest(
                    f"'{alias}' is another name of '{field}' and has another value; send one of them.",
                    param=alias,
                    code="conflicting_fields",
                )
    return present


def _translated(message: str) -> InvalidRequest:
    """Turn a validation message with its JSON path into an error that names the field."""
    found = ERROR_PATH.search(message)
    path = found["path"].lstrip(".") if found else ""
    reason = ERROR_PATH.sub("", message)
    missing = MISSING_FIELD.search(reason)
    param = ".".join(part for part in (path, missing["field"] if missing else "") if part)
    remedy = f"; 'input' must be {INPUT_FORMS}" if param.startswith("input") else ""
    if missing:
        return InvalidRequest(f"'{param}' is missing{remedy}.", param=param, code="missing_field")
    return InvalidRequest(
        f"'{param}' has the wrong type: {reason}{remedy}.", param=param or None, code="wrong_type"
    )


def _texts(given: str | TextItem | list[str | TextItem], max_inputs: int) -> list[str]:
    items = given if isinstance(given, list) else [given]
    if not items:
        raise InvalidRequest(
            f"'input' is empty; send at least one text: {INPUT_FORMS}.", param="input", code="empty_input"
        )
    if len(items) > max_inputs:
        raise InvalidRequest(
            f"'input' has {len(items)} items, more than {max_inputs} (MAX_INPUTS); send several requests.",
            param="input",
            code="too_many_inputs",
        )
    return [item if isinstance(item, str) else item.text for item in items]


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
