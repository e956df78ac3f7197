"""Request bodies: bytes to a JSON object under plain field names to a typed body; errors name the field.

Knows no field of its own.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, TypeVar

import msgspec
import orjson

from service.errors import InvalidRequest

Aliases = Mapping[str, tuple[str, ...]]  # field -> what other clients call it
Body = TypeVar("Body")
ERROR_PATH = re.compile(r" - at `\$(?P<path>[^`]*)`$")
MISSING_FIELD = re.compile(r"missing required field `(?P<field>\w+)`")


def parse(body: bytes, form: type[Body], aliases: Aliases, remedies: Mapping[str, str]) -> Body:
    """Read a body as a form. Raises InvalidRequest with the remedy of the field it names."""
    try:
        return msgspec.convert(_with_plain_names(_json_object(body), aliases), form)
    except msgspec.ValidationError as error:
        raise _translated(str(error), remedies) from error


def _json_object(body: bytes) -> dict[str, Any]:
    try:
        content = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise InvalidRequest(f"The body is not valid JSON: {error}.", code="invalid_json") from error
    if not isinstance(content, dict):
        raise InvalidRequest("The body must be a JSON object.", code="invalid_json")
    return content


def _with_plain_names(content: Mapping[str, Any], aliases: Aliases) -> dict[str, Any]:
    """Drop null fields and give aliases their plain names; one that contradicts its field is refused."""
    present = {name: value for name, value in content.items() if value is not None}
    for field, names in aliases.items():
        for alias in names:
            if alias not in present:
                continue
            value = present.pop(alias)
            known = present.setdefault(field, value)
            if type(known) is not type(value) or not _are_equal(known, value):
                raise InvalidRequest(
                    f"'{alias}' is another name of '{field}' and has another value; send one of them.",
                    param=alias,
                    code="conflicting_fields",
                )
    return present


def _are_equal(one: object, other: object) -> bool:
    """Compare JSON; what is nested deeper than Python compares counts as unequal: no field takes it."""
    try:
        return one == other
    except RecursionError:
        return False


def _translated(message: str, remedies: Mapping[str, str]) -> InvalidRequest:
    """Turn a validation message with its JSON path into an error that names the field."""
    found = ERROR_PATH.search(message)
    path = found["path"].lstrip(".") if found else ""
    reason = ERROR_PATH.sub("", message)
    missing = MISSING_FIELD.search(reason)
    param = ".".join(part for part in (path, missing["field"] if missing else "") if part)
    field = re.split(r"[.\[]", param)[0]
    remedy = f"; '{field}' must be {remedies[field]}" if field in remedies else ""
    if missing:
        return InvalidRequest(f"'{param}' is missing{remedy}.", param=param, code="missing_field")
    return InvalidRequest(
        f"'{param}' has the wrong type: {reason}{remedy}.", param=param or None, code="wrong_type"
    )
