"""Quantized forms of a float32 graph. Each scheme rewrites one node from one tensor and knows no model.

A linear layer is a MatMul whose second input is a constant; a table is a large constant that a Gather reads.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import onnx

from convert.graph import INPUT_IDS, Array, Constant, Graph, constant_in_parts
from convert.rounding import (
    BLOCK_SIZE,
    INT8_MAX,
    SMALLEST_SCALE,
    UINT8_ZERO,
    quantize_blocks,
    quantize_columns,
)
from service.manifest import Precision

TABLE_MIN_VALUES = 1 << 16  # smaller tables stay float32: nothing to gain

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Rewriting:
    """A graph being rewritten and what has been made for it so far."""

    graph: Graph
    quantized_inputs: dict[str, tuple[str, str]]  # activation -> its 8-bit rows, their scales


Rewrite = Callable[[Rewriting, onnx.NodeProto, Constant], None]


def quantize(graph: Graph, precision: Precision) -> Graph:
    """Return the graph with its linear layers and tables in another precision; fp32 is the graph itself."""
    if precision not in LINEAR_SCHEMES:
        return graph
    target = Graph(graph.name, graph.is_flat, inputs=graph.inputs, outputs=graph.outputs)
    rewriting = Rewriting(target, {})
    for node in graph.nodes:
        rewrite, constant = _rewrite_for(graph, node, precision)
        if rewrite is not None and constant is not None:
            rewrite(rewriting, node, constant)
        else:
            target.nodes.append(node)
    used = {name for node in target.nodes for name in _inputs_of(node)}
    target.constants |= {name: constant for name, constant in graph.constants.items() if name in used}
    return target


def _rewrite_for(
    graph: Graph, node: onnx.NodeProto, precision: Precision
) -> tuple[Rewrite | None, Constant | None]:
    if node.name in graph.exact:
        return None, None
    if node.op_type == "MatMul" and node.input[1] in graph.constants:
        return LINEAR_SCHEMES[precision], graph.constants[node.input[1]]
    if node.op_type == "Gather" and node.input[0] in graph.constants:
        table = graph.constants[node.input[0]]
        if table.dtype == np.float32 and np.prod(table.shape) >= TABLE_MIN_VALUES:
            return _table_in_blocks, table
    return None, None


def _inputs_of(node: onnx.NodeProto) -> list[str]:
    """List a node's inputs, those of its subgraphs included."""
    inner = [name for attribute in node.attribute for part in attribute.g.node for name in _inputs_of(part)]
    return [*node.input, *inner]


def _linear_int8(rewriting: Rewriting, node: onnx.NodeProto, weight: Constant) -> None:
    """Multiply 8-bit rows by 8-bit columns: one scale per row found at run time, one per column baked in."""
    graph, name = rewriting.graph, node.output[0]
    num_inputs, num_outputs = weight.shape
    rows, row_scales = _quantized_input(rewriting, node.input[0], num_inputs)
    key = f"{weight.key}:int8"
    shape = (num_inputs, num_outputs)
    columns = graph.constant(
        f"{name}.columns", Constant(key, shape, np.dtype(np.int8), lambda: _int8_columns(weight)[0])
    )
    scales = graph.constant(
        f"{name}.scales",
        Constant(f"{key}.scales", (num_outputs,), np.dtype(np.float32), lambda: _int8_columns(weight)[1]),
    )
    one = graph.value("one.float32", 1.0, np.float32)
    zero = graph.value("zero.uint8", UINT8_ZERO, np.uint8)
    product = graph.op("MatMulIntegerToFloat", f"{name}.product", [rows, columns, one, scales, zero])
    if graph.is_flat:
        graph.op("Mul", name, [product, row_scales])
        return
    scaled = graph.op("Mul", f"{name}.scaled", [product, row_scales])
    graph.op("Reshape", name, [scaled, _unflattened_shape(graph, num_outputs)])


def _quantized_input(rewriting: Rewriting, value: str, size: int) -> tuple[str, str]:
    """Quantize (.., size) once per token: return the 8-bit rows and their scales (rows, 1)."""
    known = rewriting.quantized_inputs.get(value)
    if known:
        return known
    graph, name = rewriting.graph, f"{value}.int8"
    flat = value
    if not graph.is_flat:
        flat = graph.op("Reshape", f"{name}.flat", [value, graph.value(f"flat.{size}", [-1, size])])
    last_axis = graph.value("last_axis", [1])
    highest = graph.op("ReduceMax", f"{name}.highest", [flat, last_axis], {"keepdims": 0})
    lowest = graph.op("ReduceMin", f"{name}.lowest", [flat, last_axis], {"keepdims": 0})
    smallest = graph.value("smallest_scale", SMALLEST_SCALE, np.float32)
    largest = graph.op(
        "Max", f"{name}.largest", [highest, graph.op("Neg", f"{name}.mirrored", [lowest]), smallest]
    )
    per_step = graph.value("per_step", 1 / INT8_MAX, np.float32)
    scales = graph.op("Mul", f"{name}.scale", [largest, per_step])  # (rows,)
    zeros = graph.op(
        "Expand", f"{name}.zeros",
        [graph.value("zero.uint8", UINT8_ZERO, np.uint8), graph.op("Shape", f"{name}.rows", [scales])],
    )  # fmt: skip
    rows = graph.op("QuantizeLinear", f"{name}.values", [flat, scales, zeros], {"axis": 0})
    columns = graph.op("Unsqueeze", f"{name}.scales", [scales, last_axis])
    rewriting.quantized_inputs[value] = (rows, columns)
    return rows, columns


def _unflattened_shape(graph: Graph, size: int) -> str:
    """Return the name of the shape (batch, -1, size), made once per graph."""
    name = f"unflattened_shape.{size}"
    if not any(node.name == name for node in graph.nodes):
        batch = graph.op("Shape", f"{name}.batch", [INPUT_IDS], {"start": 0, "end": 1})
        graph.op("Concat", name, [batch, graph.value(f"{name}.rest", [-1, size])], {"axis": 0})
    return name


def _linear_in_blocks(rewriting: Rewriting, node: onnx.NodeProto, weight: Constant) -> None:
    """Multiply by weights in 8-bit blocks, each with its scale, accumulated over 8-bit activations."""
    graph, name = rewriting.graph, node.output[0]
    num_inputs, num_outputs = weight.shape
    num_blocks = -(-num_inputs // BLOCK_SIZE)
    key = f"{weight.key}:blocks"
    values = Constant(
        key, (num_outputs, num_blocks, BLOCK_SIZE), np.dtype(np.uint8), lambda: _column_blocks(weight)[0]
    )
    scales = Constant(
        f"{key}.scales", (num_outputs, num_blocks), np.dtype(np.float32), lambda: _column_blocks(weight)[1]
    )
    inputs = [
        node.input[0],
        graph.constant(f"{name}.blocks", values),
        graph.constant(f"{name}.scales", scales),
    ]
    attributes = {
        "K": num_inputs, "N": num_outputs, "bits": 8, "block_size": BLOCK_SIZE, "accuracy_level": 4,
    }  # fmt: skip
    graph.op("MatMulNBits", name, inputs, attributes)


def _table_in_blocks(rewriting: Rewriting, node: onnx.NodeProto, table: Constant) -> None:
    """Look rows up in a table of 8-bit blocks along its rows."""
    graph, name = rewriting.graph, node.output[0]
    num_rows, size = table.shape
    key = f"{table.key}:blocks"
    made: list[Floats] = []  # the scales of the parts, while the table is read for its values

    def parts() -> Iterator[Array]:
        made.clear()
        for rows in table.parts():
            values, scales = quantize_blocks(rows.astype(np.float32, copy=False))
            made.append(scales)
            yield values[:, :size]

    def read_scales() -> Array:
        if not made:
            deque(parts(), maxlen=0)
        return np.concatenate(made)

    values = constant_in_parts(key, (num_rows, size), np.uint8, parts)
    shape = (num_rows, -(-size // BLOCK_SIZE))
    scales = Constant(f"{key}.scales", shape, np.dtype(np.float32), read_scales)
    inputs = [
        graph.constant(f"{name}.blocks", values),
        node.input[1],
        graph.constant(f"{name}.scales", scales),
    ]
    attributes = {"bits": 8, "block_size": BLOCK_SIZE, "gather_axis": 0, "quantize_axis": 1}
    graph.op("GatherBlockQuantized", name, inputs, attributes)


# The two arrays of a quantized tensor are written one after the other: the result is kept for the second.
@lru_cache(maxsize=1)
def _int8_columns(weight: Constant) -> tuple[Array, Array]:
    return quantize_columns(weight.read().astype(np.float32, copy=False))


@lru_cache(maxsize=1)
def _column_blocks(weight: Constant) -> tuple[Array, Array]:
    values, scales = quantize_blocks(weight.read().astype(np.float32, copy=False).T)
    return values.reshape(len(values), -1, BLOCK_SIZE), scales


LINEAR_SCHEMES: dict[Precision, Rewrite] = {
    Precision.INT8: _linear_int8,
    Precision.INT8_BLOCK: _linear_in_blocks,
}
