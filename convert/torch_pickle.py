"""The pickle of a state dict, followed without running it. Knows no files and no torch.

A pickle is a program; here it is data. It is followed one operation at a time by the table OPERATIONS (enough
for protocols 2 to 5), and the few names it may hold (DTYPES, STORAGES, CALLS) stay words: nothing is
imported, looked up or executed. Anything else is refused by name.
"""

from __future__ import annotations

import io
import pickletools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import ml_dtypes
import numpy as np

FLOATS = {"Float": "float32", "Half": "float16", "BFloat16": "bfloat16", "Double": "float64"}
INTEGERS = {
    "Long": "int64",
    "Int": "int32",
    "Short": "int16",
    "Char": "int8",
    "Byte": "uint8",
    "Bool": "bool",
}
DTYPES: dict[str, np.dtype[Any]] = {
    f"torch.{name}": np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)
    for name in (*FLOATS.values(), *INTEGERS.values(), "uint16", "uint32", "uint64")
}
STORAGES = {f"torch.{kind}Storage": DTYPES[f"torch.{name}"] for kind, name in (FLOATS | INTEGERS).items()}
STORAGES["torch.storage.UntypedStorage"] = DTYPES[
    "torch.uint8"
]  # counted in bytes; its tensor names the dtype


class Refusal(Exception):
    """Why a file is refused, without its path."""


@dataclass(frozen=True)
class Storage:
    """The values of one or more tensors; `key` is the name of a member of the file."""

    key: str
    dtype: np.dtype[Any]
    num_bytes: int


@dataclass(frozen=True)
class Rebuilt:
    """A tensor as the pickle describes it, in values of its dtype, not yet compared with its storage."""

    storage: Storage
    offset: Any
    shape: tuple[Any, ...]
    strides: tuple[Any, ...]
    dtype: np.dtype[Any]


@dataclass(frozen=True)
class _Name:
    """A name the pickle may hold. It stands for nothing but itself."""

    text: str


@dataclass
class _Machine:
    """What a pickle has made so far: text, numbers, tuples, lists, dicts and the three classes above."""

    stack: list[Any] = field(default_factory=list)
    beneath: list[list[Any]] = field(default_factory=list)  # the stacks beneath the open marks
    memo: dict[int, Any] = field(default_factory=dict)

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def take(self, num_values: int) -> list[Any]:
        return [self.stack.pop() for _ in range(num_values)][::-1]

    def mark(self) -> None:
        self.beneath.append(self.stack)
        self.stack = []

    def take_to_mark(self) -> list[Any]:
        taken, self.stack = self.stack, self.beneath.pop()
        return taken

    def remember(self, place: int) -> None:
        self.memo[place] = self.stack[-1]

    def filled(self, kind: type[Any]) -> Any:
        """Return the list or dict on top, which is about to be filled."""
        if type(self.stack[-1]) is not kind:
            raise Refusal(f"its pickle fills {shown(self.stack[-1])} like a {kind.__name__}")
        return self.stack[-1]

    def extend(self, values: list[Any]) -> None:
        self.filled(list).extend(values)

    def set_items(self, values: list[Any]) -> None:
        if not all(type(key) in (str, int) for key in values[::2]):  # hashing a deep tuple would crash Python
            raise Refusal("its pickle has a dict whose keys are not text or integers")
        self.filled(dict).update(zip(values[::2], values[1::2], strict=True))

    def name(self, module: Any, name: Any) -> None:
        text = f"{module}.{name}" if type(module) is type(name) is str else "something without a name"
        if text not in DTYPES and text not in STORAGES and text not in CALLS:
            raise Refusal(f"it names {shown(text)}, which is not a tensor this program reads")
        self.push(_Name(text))

    def call(self) -> None:
        function, given = self.take(2)
        num_arguments, make = CALLS.get(getattr(function, "text", ""), ((), tuple))
        if type(given) is not tuple or len(given) not in num_arguments:
            raise Refusal(f"its pickle calls {shown(function)} in a way that makes no tensor")
        self.push(make(given))

    def refer(self) -> None:
        match self.stack.pop():
            case ("storage", _Name(kind), str(key), str(), int(num_values)) if kind in STORAGES:
                self.push(Storage(key, STORAGES[kind], num_values * STORAGES[kind].itemsize))
            case (other, *_) | other:
                raise Refusal(f"its pickle refers to {shown(other)}, which is not a storage")

    def drop_state(self) -> None:
        self.stack.pop()  # the `_metadata` of a state dict, which says nothing of its tensors
        self.filled(dict)


def unpickled(pickled: bytes) -> Any:
    """Follow a pickle; return what it makes: dicts, lists, tuples, numbers, text and Rebuilt.

    Raises Refusal where it names or does anything else, ValueError or LookupError where it is damaged.
    """
    machine, stream = _Machine(), io.BytesIO(pickled)
    while (code := stream.read(1)) != STOP:
        known = CODES.get(code)
        if known is None:
            raise Refusal("its pickle is damaged or cut short")
        if known.name not in OPERATIONS:
            raise Refusal(f"its pickle uses {known.name}, which no state dict needs")
        OPERATIONS[known.name](machine, known.arg.reader(stream) if known.arg else None)
    return machine.stack.pop()


def shown(value: object) -> str:
    """Return a text, or the kind of another value, fit for a message: printable and short."""
    text = value if isinstance(value, str) else getattr(value, "text", type(value).__name__)
    return ascii(text)[1:-1][:200]


def _parameter(given: tuple[Any, ...]) -> Rebuilt:
    if not isinstance(given[0], Rebuilt):
        raise Refusal(f"its pickle makes a parameter of {shown(given[0])}")
    return given[0]


def _rebuilt(given: tuple[Any, ...], dtype: Any, flags: tuple[Any, ...] = ()) -> Rebuilt:
    storage, offset, shape, strides = given[:4]
    if not (
        type(storage) is Storage and type(shape) is type(strides) is tuple and isinstance(dtype, np.dtype)
    ):
        raise Refusal(
            "its pickle makes a tensor of something other than a storage, sizes, strides and a dtype"
        )
    if any(flags):
        raise Refusal("its pickle makes a tensor that is lazily conjugated or negated")
    return Rebuilt(storage, offset, shape, strides, dtype)


def _like_storage(given: tuple[Any, ...]) -> Rebuilt:
    return _rebuilt(given, getattr(given[0], "dtype", None), given[6:])


def _with_dtype(given: tuple[Any, ...]) -> Rebuilt:
    return _rebuilt(given, DTYPES.get(getattr(given[6], "text", "")), given[7:])


# What the functions that may be named make: how many arguments they take, and the result.
CALLS: dict[str, tuple[tuple[int, ...], Callable[[tuple[Any, ...]], Any]]] = {
    "collections.OrderedDict": ((0,), lambda given: {}),
    "torch._utils._rebuild_parameter": ((3,), _parameter),
    "torch._utils._rebuild_tensor": ((4,), _like_storage),
    "torch._utils._rebuild_tensor_v2": ((6, 7), _like_storage),
    "torch._utils._rebuild_tensor_v3": ((7, 8), _with_dtype),
}

CODES = {known.code.encode("latin-1"): known for known in pickletools.opcodes}
STOP = b"."

# What each operation of a pickle does with the value that is written behind it; the others are refused.
VALUES = (
    "BININT",
    "BININT1",
    "BININT2",
    "LONG1",
    "BINFLOAT",
    "BINUNICODE",
    "SHORT_BINUNICODE",
    "BINUNICODE8",
)
OPERATIONS: dict[str, Callable[[_Machine, Any], None]] = {
    **dict.fromkeys(("PROTO", "FRAME"), lambda machine, _: None),
    **dict.fromkeys((*VALUES, "BINBYTES", "SHORT_BINBYTES"), _Machine.push),
    "NONE": lambda machine, _: machine.push(None),
    "NEWTRUE": lambda machine, _: machine.push(True),
    "NEWFALSE": lambda machine, _: machine.push(False),
    "EMPTY_LIST": lambda machine, _: machine.push([]),
    "EMPTY_DICT": lambda machine, _: machine.push({}),
    "EMPTY_TUPLE": lambda machine, _: machine.push(()),
    "TUPLE1": lambda machine, _: machine.push(tuple(machine.take(1))),
    "TUPLE2": lambda machine, _: machine.push(tuple(machine.take(2))),
    "TUPLE3": lambda machine, _: machine.push(tuple(machine.take(3))),
    "MARK": lambda machine, _: machine.mark(),
    "TUPLE": lambda machine, _: machine.push(tuple(machine.take_to_mark())),
    "APPEND": lambda machine, _: machine.extend(machine.take(1)),
    "APPENDS": lambda machine, _: machine.extend(machine.take_to_mark()),
    "SETITEM": lambda machine, _: machine.set_items(machine.take(2)),
    "SETITEMS": lambda machine, _: machine.set_items(machine.take_to_mark()),
    **dict.fromkeys(("BINPUT", "LONG_BINPUT"), _Machine.remember),
    "MEMOIZE": lambda machine, _: machine.remember(len(machine.memo)),
    **dict.fromkeys(("BINGET", "LONG_BINGET"), lambda machine, place: machine.push(machine.memo[place])),
    "GLOBAL": lambda machine, names: machine.name(*names.split(" ", 1)),
    "STACK_GLOBAL": lambda machine, _: machine.name(*machine.take(2)),
    "REDUCE": lambda machine, _: machine.call(),
    "BUILD": lambda machine, _: machine.drop_state(),
    "BINPERSID": lambda machine, _: machine.refer(),
}
