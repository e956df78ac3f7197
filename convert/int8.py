"""Linear layers over 8-bit rows and columns, the fast scheme of the CPU. Knows no model."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import onnx

from convert.graph import INPUT_IDS, Array, Constant, Graph
from convert.rewriting import QuantizedRows, Rewriting, lowest_of
from convert.rounding import (
    INT8_MAX,
    SMALLEST_SCALE,
    STEPS_BELOW_ZERO,
    UINT8_MAX,
    UINT8_ZERO,
    quantize_columns,
)


def linear(rewriting: Rewriting, node: onnx.NodeProto, weight: Constant) -> None:
    """Multiply 8-bit rows by 8-bit columns: one scale per row found at run time, one per column baked in."""
    graph, name = rewriting.graph, node.output[0]
    num_inputs, num_outputs = weight.shape
    rows = _quantized_input(rewriting, node.input[0], num_inputs)
    split = rewriting.splits.get(name)
    is_whole = node.input[0] not in rewriting.narrowed
    if split is None:
        _scaled_product(graph, name, rows, _Columns(weight, 0, num_outputs), is_whole=is_whole)
        return
    # Each part from columns of its own: a split would copy all of them once more.
    size = num_outputs // len(split.output)
    for number, part in enumerate(split.output):
        _scaled_product(graph, part, rows, _Columns(weight, number * size, size), is_whole=is_whole)
    rewriting.merged.add(split.name)


@dataclass(frozen=True)
class _Columns:
    """Columns of a weight from `begin` on, in 8 bits with their scales."""

    weight: Constant
    begin: int
    size: int

    def values(self) -> Constant:
        shape = (self.weight.shape[0], self.size)
        return Constant(self._key, shape, np.dtype(np.int8), lambda: self._read(0))

    def scales(self) -> Constant:
        return Constant(f"{self._key}.scales", (self.size,), np.dtype(np.float32), lambda: self._read(1))

    @property
    def _key(self) -> str:
        key, is_all = f"{self.weight.key}:int8", self.size == self.weight.shape[1]
        return key if is_all else f"{key}[{self.begin}:{self.begin + self.size}]"

    def _read(self, place: int) -> Array:
        return _int8_columns(self.weight)[place][..., self.begin : self.begin + self.size]


def _scaled_product(
    graph: Graph, name: str, rows: QuantizedRows, columns: _Columns, *, is_whole: bool
) -> None:
    """Multiply rows by columns and by the scales of both; `is_whole`: there is a row for every token."""
    inputs = [
        rows.values,
        graph.constant(f"{name}.columns", columns.values()),
        graph.value("one.float32", 1.0, np.float32),
        graph.constant(f"{name}.scales", columns.scales()),
        rows.zero,
    ]
    product = graph.op("MatMulIntegerToFloat", f"{name}.product", inputs)
    if graph.is_flat:
        graph.op("Mul", name, [product, rows.scales])
        return
    scaled = graph.op("Mul", f"{name}.scaled", [product, rows.scales])
    graph.op("Reshape", name, [scaled, _unflattened_shape(graph, columns.size)])
    if is_whole:
        graph.shape(name, ["batch", "tokens", columns.size])


def _quantized_input(rewriting: Rewriting, value: str, size: int) -> QuantizedRows:
    """Quantize (.., size) once per token."""
    known = rewriting.quantized_inputs.get(value)
    if known:
        return known
    graph, name = rewriting.graph, f"{value}.int8"
    flat = value
    if not graph.is_flat:
        flat = graph.op("Reshape", f"{name}.flat", [value, graph.value(f"flat.{size}", [-1, size])])
        if value not in rewriting.narrowed:
            graph.shape(flat, ["rows", size])
    lowest = lowest_of(graph, value)
    if lowest is None:
        scales, zero = _centred_scales(graph, name, flat)
    else:
        scales, zero = _low_scales(graph, name, flat, lowest)
    zeros = graph.op("Expand", f"{name}.zeros", [zero, graph.op("Shape", f"{name}.rows", [scales])])
    rows = graph.op("QuantizeLinear", f"{name}.values", [flat, scales, zeros], {"axis": 0})
    columns = graph.op("Unsqueeze", f"{name}.scales", [scales, graph.value("last_axis", [1])])
    rewriting.quantized_inputs[value] = QuantizedRows(rows, columns, zero)
    return rewriting.quantized_inputs[value]


def _centred_scales(graph: Graph, name: str, flat: str) -> tuple[str, str]:
    """Scale every row so that its value farthest from 0 is 127 steps away: scales (rows), the zero."""
    last_axis = graph.value("last_axis", [1])
    highest = graph.op("ReduceMax", f"{name}.highest", [flat, last_axis], {"keepdims": 0})
    lowest = graph.op("ReduceMin", f"{name}.lowest", [flat, last_axis], {"keepdims": 0})
    smallest = graph.value("smallest_scale", SMALLEST_SCALE, np.float32)
    largest = graph.op(
        "Max", f"{name}.largest", [highest, graph.op("Neg", f"{name}.mirrored", [lowest]), smallest]
    )
    per_step = graph.value("per_step", 1 / INT8_MAX, np.float32)
    zero = graph.value("zero.uint8", UINT8_ZERO, np.uint8)
    return graph.op("Mul", f"{name}.scale", [largest, per_step]), zero


def _low_scales(graph: Graph, name: str, flat: str, lowest: float) -> tuple[str, str]:
    """Scale every row so that neither its highest value nor one as low as any can be is clipped."""
    steps_above = UINT8_MAX - STEPS_BELOW_ZERO
    highest = graph.op("ReduceMax", f"{name}.highest", [flat, graph.value("last_axis", [1])], {"keepdims": 0})
    least = graph.value(f"least.{lowest}", -lowest / STEPS_BELOW_ZERO * steps_above, np.float32)
    largest = graph.op("Max", f"{name}.largest", [highest, least])
    per_step = graph.value("per_step.low", 1 / steps_above, np.float32)
    zero = graph.value("zero.low", STEPS_BELOW_ZERO, np.uint8)
    return graph.op("Mul", f"{name}.scale", [largest, per_step]), zero


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
