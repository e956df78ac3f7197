"""A thin builder of ONNX graphs whose constants are read only when written. Knows no model and no files."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper

OPSET = 21
IR_VERSION = 10
MICROSOFT = "com.microsoft"
INPUT_IDS, ATTENTION_MASK = "input_ids", "attention_mask"  # inputs that every text graph has
MICROSOFT_OPERATORS = frozenset(
    {"MultiHeadAttention", "GroupQueryAttention", "RotaryEmbedding", "BiasGelu", "QuickGelu"}
    | {"SkipSimplifiedLayerNormalization"}
    | {"MatMulNBits", "MatMulIntegerToFloat", "GatherBlockQuantized"}
)

Array = npt.NDArray[np.generic]
Attribute = int | float | Sequence[int] | onnx.GraphProto


@dataclass(frozen=True)
class Constant:
    """An array that is read when written. Constants of equal `key` hold equal values and are stored once."""

    key: str
    shape: tuple[int, ...]
    dtype: np.dtype[np.generic]
    read: Callable[[], Array]
    read_parts: Callable[[], Iterator[Array]] | None = None  # rows after rows, where all at once are too many

    def parts(self) -> Iterator[Array]:
        """Read the values in parts, rows after rows, or as one part."""
        return self.read_parts() if self.read_parts else iter([self.read()])

    @property
    def num_bytes(self) -> int:
        """Return the size of the values."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize


@dataclass(frozen=True)
class Columns:
    """Columns of a constant's last axis that stand for the channels of a value: divided, they divide it.

    With `repeats`, each group of `width` columns stands for as many groups of channels: key and value heads
    that several query heads share.
    """

    constant: str
    begin: int
    count: int
    width: int = 1
    repeats: int = 1


def constant_of(key: str, array: Array) -> Constant:
    """Wrap an array that is in memory already."""
    return Constant(key, array.shape, array.dtype, lambda: array)


def constant_in_parts(
    key: str, shape: tuple[int, ...], dtype: npt.DTypeLike, parts: Callable[[], Iterator[Array]]
) -> Constant:
    """Make a constant that is written part by part and never held whole."""
    return Constant(key, shape, np.dtype(dtype), lambda: np.concatenate(list(parts())), parts)


@dataclass
class Graph:
    """Nodes in order, constants by name, inputs and outputs by name. Every value is float32 unless said."""

    name: str
    is_flat: bool = False  # values are (batch * tokens, size)
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: dict[str, Constant] = field(default_factory=dict)
    inputs: list[onnx.ValueInfoProto] = field(default_factory=list)
    outputs: list[onnx.ValueInfoProto] = field(default_factory=list)
    shapes: list[onnx.ValueInfoProto] = field(default_factory=list)  # of values where none can be inferred
    exact: set[str] = field(default_factory=set)  # nodes whose weights stay as they are in every precision
    # By values: what scales their channels.
    scaled_by: dict[str, tuple[Columns, ...]] = field(default_factory=dict)

    @property
    def num_bytes(self) -> int:
        """Return the size of the constants."""
        return sum(constant.num_bytes for constant in self.constants.values())

    def input(self, name: str, dtype: npt.DTypeLike, shape: Sequence[int | str]) -> str:
        """Declare a graph input; a string in the shape names a dimension that varies."""
        self.inputs.append(_value_info(name, dtype, shape))
        return name

    def output(self, name: str, shape: Sequence[int | str]) -> None:
        """Declare a value as a graph output of type float32."""
        self.outputs.append(_value_info(name, np.float32, shape))

    def shape(self, name: str, shape: Sequence[int | str]) -> None:
        """Say the shape of a value that the graph computes, where the operator that makes it cannot tell.

        ONNX Runtime gives a value the memory of a dead one of equal shape, unless it is told not to, as the
        service does. Values of unknown shape are looked through again for every later one: opening 24 layers
        in int8 took four times as long.
        """
        self.shapes.append(_value_info(name, np.float32, shape))

    def constant(self, name: str, constant: Constant) -> str:
        """Add a constant and return its name; the same name and key may come again."""
        known = self.constants.setdefault(name, constant)
        if known.key != constant.key:
            raise ValueError(f"constant {name!r} is defined twice: {known.key!r} and {constant.key!r}")
        return name

    def value(self, name: str, value: npt.ArrayLike, dtype: npt.DTypeLike = np.int64) -> str:
        """Add a small constant given by value."""
        return self.constant(name, constant_of(f"value:{name}:{value!r}", np.asarray(value, dtype=dtype)))

    def op(
        self, kind: str, name: str, inputs: Sequence[str], attributes: Mapping[str, Attribute] | None = None
    ) -> str:
        """Append a node with one output that has the node's name; return it."""
        self.nodes.append(node(kind, name, inputs, [name], attributes))
        return name

    def exact_op(self, kind: str, name: str, inputs: Sequence[str]) -> str:
        """Append a node that quantization leaves alone: it costs next to nothing as it is."""
        self.exact.add(name)
        return self.op(kind, name, inputs)

    def split(self, name: str, value: str, num_parts: int) -> list[str]:
        """Append a node that cuts a value's last axis into equal parts; return their names."""
        parts = [f"{name}.{part}" for part in range(num_parts)]
        self.nodes.append(node("Split", name, [value], parts, {"axis": -1, "num_outputs": num_parts}))
        return parts


def node(
    kind: str,
    name: str,
    inputs: Sequence[str],
    outputs: Sequence[str],
    attributes: Mapping[str, Attribute] | None = None,
) -> onnx.NodeProto:
    """Make a node, in ONNX Runtime's own domain where the operator is one of its own."""
    domain = MICROSOFT if kind in MICROSOFT_OPERATORS else ""
    return helper.make_node(
        kind, inputs, outputs, name=name, domain=domain, **dict[str, Any](attributes or {})
    )


def branch(
    name: str, kind: str, inputs: Sequence[str], attributes: Mapping[str, Attribute]
) -> onnx.GraphProto:
    """Make a one-node subgraph for `If`; its inputs are values of the graph around it."""
    return subgraph(name, [node(kind, name, inputs, [name], attributes)])


def subgraph(name: str, nodes: Sequence[onnx.NodeProto]) -> onnx.GraphProto:
    """Make a subgraph for `If` with one output of its own name; it sees the values of the graph around it."""
    output = helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None)
    return helper.make_graph(list(nodes), name, [], [output])


def to_model(graph: Graph, initializers: Sequence[onnx.TensorProto]) -> onnx.ModelProto:
    """Assemble the protobuf; `initializers` stand for the constants, in whatever storage the caller chose."""
    body = helper.make_graph(
        graph.nodes,
        graph.name,
        graph.inputs,
        graph.outputs,
        list(initializers),
        value_info=graph.shapes,
    )
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(MICROSOFT, 1)]
    return helper.make_model(
        body, opset_imports=opsets, ir_version=IR_VERSION, producer_name="jina-onnx-server"
    )


def _value_info(name: str, dtype: npt.DTypeLike, shape: Sequence[int | str]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), shape)
