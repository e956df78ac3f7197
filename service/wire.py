"""Where an ONNX model keeps its tensors outside: reads the places and writes others, in the bytes alone.

Knows the protobuf wire format and the few fields on the way from a model to the places of its tensors; every
other byte stays as it is. The service has no `onnx` package, and needs none for this.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

VARINT, FIXED64, LENGTH, FIXED32 = 0, 1, 2, 5  # wire types; groups, the others, are not in ONNX
FIXED_SIZES = {FIXED64: 8, FIXED32: 4}
MAX_VARINT_BYTES = 10
# Fields, by message.
MODEL_GRAPH = 7
GRAPH_NODE, GRAPH_INITIALIZER = 1, 5
NODE_ATTRIBUTE = 5
ATTRIBUTE_TENSOR, ATTRIBUTE_GRAPH, ATTRIBUTE_TENSORS, ATTRIBUTE_GRAPHS = 5, 6, 10, 11
TENSOR_NAME, TENSOR_EXTERNAL = 8, 13
ENTRY_KEY, ENTRY_VALUE = 1, 2

Entries = Mapping[str, str]


@dataclass(frozen=True)
class External:
    """A tensor whose bytes are in another file: its name and what the model says of the place."""

    name: str
    entries: Entries


Place = Callable[[External], Entries]  # says where a tensor is from now on
Rewrite = Callable[[bytes, Place], bytes]


@dataclass(frozen=True)
class Field:
    """A field of a message: its number, its wire type, its own bytes with the tag, and its content."""

    number: int
    kind: int
    whole: bytes
    content: bytes  # empty unless it has a length


def external_tensors(model: bytes) -> list[External]:
    """List the external tensors of a model and its subgraphs. Raises ValueError for what is no model."""
    found: list[External] = []

    def note(tensor: External) -> Entries:
        found.append(tensor)
        return tensor.entries

    rewrite(model, note)
    return found


def rewrite(model: bytes, place: Place) -> bytes:
    """Return the model with its external tensors where `place` says. Raises ValueError for what is no model.

    Tensors are given in the order of the file, those of subgraphs too; names may come again in subgraphs.
    """
    if not any(field.number == MODEL_GRAPH for field in fields(model)):
        raise ValueError("there is no graph in it")
    return _message({MODEL_GRAPH: _graph})(model, place)


def fields(message: bytes) -> Iterator[Field]:
    """Read the fields of a message one by one. Raises ValueError where the bytes are none."""
    position = 0
    while position < len(message):
        begin = position
        tag, position = _varint(message, position)
        number, kind = tag >> 3, tag & 7
        content = b""
        if kind == VARINT:
            _, position = _varint(message, position)
        elif kind == LENGTH:
            size, position = _varint(message, position)
            content = message[position : position + size]
            position += size
        elif kind in FIXED_SIZES:
            position += FIXED_SIZES[kind]
        else:
            raise ValueError(f"wire type {kind} at byte {begin}")
        if not number or position > len(message):
            raise ValueError(f"field {number} at byte {begin} is not whole")
        yield Field(number, kind, message[begin:position], content)


def _message(children: Mapping[int, Rewrite]) -> Rewrite:
    """Make what rewrites a message by rewriting some of its fields, which are messages themselves."""

    def rewrite_message(message: bytes, place: Place) -> bytes:
        parts = []
        for field in fields(message):
            child = children.get(field.number)
            if child is None:
                parts.append(field.whole)
            else:
                _check_length(field)
                parts.append(_field(field.number, child(field.content, place)))
        return b"".join(parts)

    return rewrite_message


def _graph(message: bytes, place: Place) -> bytes:
    return _message({GRAPH_NODE: _node, GRAPH_INITIALIZER: _tensor})(message, place)


def _node(message: bytes, place: Place) -> bytes:
    return _message({NODE_ATTRIBUTE: _attribute})(message, place)


def _attribute(message: bytes, place: Place) -> bytes:
    tensors = dict.fromkeys((ATTRIBUTE_TENSOR, ATTRIBUTE_TENSORS), _tensor)
    graphs = dict.fromkeys((ATTRIBUTE_GRAPH, ATTRIBUTE_GRAPHS), _graph)
    return _message(tensors | graphs)(message, place)


def _tensor(message: bytes, place: Place) -> bytes:
    """Write the entries of a tensor's place anew, behind all its other fields."""
    name, entries, parts = "", dict[str, str](), []
    for field in fields(message):
        if field.number == TENSOR_EXTERNAL:
            _check_length(field)
            key, value = _entry(field.content)
            if key in entries:
                raise ValueError(f"{key!r} is said twice of one tensor")
            entries[key] = value
            continue
        if field.number == TENSOR_NAME:
            _check_length(field)
            name = field.content.decode()
        parts.append(field.whole)
    if not entries:
        return message
    for key, value in place(External(name, entries)).items():
        entry = _field(ENTRY_KEY, key.encode()) + _field(ENTRY_VALUE, value.encode())
        parts.append(_field(TENSOR_EXTERNAL, entry))
    return b"".join(parts)


def _entry(message: bytes) -> tuple[str, str]:
    texts = {field.number: field.content.decode() for field in fields(message)}
    if not texts.get(ENTRY_KEY):
        raise ValueError("an entry of a tensor's place has no key")
    return texts[ENTRY_KEY], texts.get(ENTRY_VALUE, "")


def _check_length(field: Field) -> None:
    if field.kind != LENGTH:
        raise ValueError(f"field {field.number} has wire type {field.kind} instead of {LENGTH}")


def _field(number: int, content: bytes) -> bytes:
    return _encoded(number << 3 | LENGTH) + _encoded(len(content)) + content


def _varint(message: bytes, position: int) -> tuple[int, int]:
    """Return a number and the position behind it."""
    value = 0
    for index, byte in enumerate(message[position : position + MAX_VARINT_BYTES]):
        value |= (byte & 0x7F) << 7 * index
        if byte < 0x80:
            return value, position + index + 1
    raise ValueError(f"the number at byte {position} has no end")


def _encoded(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes((*encoded, value))
