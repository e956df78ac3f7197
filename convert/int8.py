"""Linear layers over 8-bit rows and columns, the fast scheme of the CPU. Knows no model."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import onnx

from convert.graph import INPUT_IDS, Array, Constant, Graph
from convert.rewriting import Rewriting
from convert.rounding import INT8_MAX, SMALLEST_SCALE, UINT8_ZERO, quantize_columns


def linear(rewriting: Rewriting, node: onnx.NodeProto, weight: Constant) -> None:
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
    graph.shape(name, ["batch", "tokens", num_outputs])


def _quantized_input(rewriting: Rewriting, value: str, size: int) -> tuple[str, str]:
    """Quantize (.., size) once per token: return the 8-bit rows and their scales (rows, 1)."""
    known = rewriting.quantized_inputs.get(value)
    if known:
        return known
    graph, name = rewriting.graph, f"{value}.int8"
    flat = value
    if not graph.is_flat:
        flat = graph.op("Reshape", f"{name}.flat", [value, graph.value(f"flat.{size}", [-1, size])])
        graph.shape(flat, ["rows", size])  # batch x tokens: what heads do to fewer rows is never rounded
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


# The two arrays of a quantized tensor are written one after the other: the result is kept for the second.
@lru_cache(maxsize=1)
def _int8_columns(weight: Constant) -> tuple[Array, Array]:
    return quantize_columns(weight.read().astype(np.float32, copy=False))
