"""The inputs of a request: strings and objects to texts and images. Knows their field names, no model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import msgspec
from msgspec import Meta

from service import media
from service.errors import InvalidRequest
from service.media import ImageSource, Input

FORMS = "a string, a list of strings, or objects with a 'text' or an 'image'"
TEXT_FORMS = "a string, a list of strings, or objects with a 'text'"
DOCUMENT_FORMS = "a list of strings, or objects with a 'text'"
EMPTY_CODES = {"input": "empty_input", "documents": "empty_documents"}
ImageReference = Annotated[
    str | None, Meta(description="An image: an http(s) URL, a data URI or base64 (jina-embeddings-v4).")
]


class TextItem(msgspec.Struct):
    """An input given as an object."""

    text: Annotated[str, Meta(description="The text.")]


class InputItem(msgspec.Struct):
    """An input given as an object: a text, or an image under one of three names."""

    text: Annotated[str | None, Meta(description="A text.")] = None
    image: ImageReference = None
    url: ImageReference = None
    bytes: ImageReference = None


def embedded(given: str | InputItem | list[str | InputItem], max_inputs: int) -> list[Input]:
    """Take what is to be embedded, at least one. Raises InvalidRequest that names the input."""
    if not isinstance(given, list):
        return [_input(given, "input")]
    _check_count("input", given, max_inputs)
    return [_input(item, f"input[{index}]") for index, item in enumerate(given)]


def _input(item: str | InputItem, place: str) -> Input:
    """Take an input for a text or an image. Raises InvalidRequest for neither or both."""
    if isinstance(item, str):
        return media.found_in(item, place)
    given = [name for name in InputItem.__struct_fields__ if getattr(item, name) is not None]
    if len(given) > 1:
        raise InvalidRequest(
            f"'{place}' has {' and '.join(given)}; send each as an input of its own.",
            param=place,
            code="conflicting_fields",
        )
    if not given:
        raise InvalidRequest(
            f"'{place}.text' is missing; 'input' must be {FORMS}.",
            param=f"{place}.text",
            code="missing_field",
        )
    (name,) = given
    value: str = getattr(item, name)
    return value if name == "text" else ImageSource(value, f"{place}.{name}")


def texts(field: str, given: Sequence[str | TextItem], max_inputs: int) -> list[str]:
    """Take the texts of a field, at least one. Raises InvalidRequest that names the field."""
    _check_count(field, given, max_inputs)
    return [item if isinstance(item, str) else item.text for item in given]


def _check_count(field: str, items: Sequence[object], max_inputs: int) -> None:
    if not items:
        raise InvalidRequest(
            f"'{field}' is empty; send at least one text.", param=field, code=EMPTY_CODES[field]
        )
    if len(items) > max_inputs:
        raise InvalidRequest(
            f"'{field}' has {len(items)} items, more than {max_inputs} (MAX_INPUTS); send several requests.",
            param=field,
            code="too_many_inputs",
        )
