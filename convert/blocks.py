"""Linear layers and tables in 8-bit blocks, each with its scale: the accurate scheme. Knows no model."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import onnx

from convert.graph import Array, Constant, constant_in_parts
from convert.rewriting import Rewriting
from convert.rounding import BLOCK_SIZE, quantize_blocks

Floats = npt.NDArray[np.float32]


def linear(rewriting: Rewriting, node: onnx.NodeProto, weight: Constant) -> None:
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


def table_rows(
    rewriting: Rewriting, node: onnx.NodeProto, table: Constant, block_size: int = BLOCK_SIZE
) -> None:
    """Look rows up in a table of 8-bit blocks along its rows."""
    graph, name = rewriting.graph, node.output[0]
    num_rows, size = table.shape
    key = f"{table.key}:blocks.{block_size}"
    made: list[Floats] = []  # the scales of the parts, while the table is read for its values

    def parts() -> Iterator[Array]:
        made.clear()
        for rows in table.parts():
            values, scales = quantize_blocks(rows.astype(np.float32, copy=False), block_size)
            made.append(scales)
            yield values[:, :size]

    def read_scales() -> Array:
        if not made:
            deque(parts(), maxlen=0)
        return np.concatenate(made)

    values = constant_in_parts(key, (num_rows, size), np.uint8, parts)
    shape = (num_rows, -(-size // block_size))
    scales = Constant(f"{key}.scales", shape, np.dtype(np.float32), read_scales)
    inputs = [
        graph.constant(f"{name}.blocks", values),
        node.input[1],
        graph.constant(f"{name}.scales", scales),
    ]
    attributes = {"bits": 8, "block_size": block_size, "gather_axis": 0, "quantize_axis": 1}
    graph.op("GatherBlockQuantized", name, inputs, attributes)


# The two arrays of a quantized tensor are written one after the other: the result is kept for the second.
@lru_cache(maxsize=1)
def _column_blocks(weight: Constant) -> tuple[Array, Array]:
    values, scales = quantize_blocks(weight.read().astype(np.float32, copy=False).T)
    return values.reshape(len(values), -1, BLOCK_SIZE), scales
