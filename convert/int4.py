"""Linear layers over 4-bit blocks, the small scheme. Knows no model."""

from __future__ import annotations

import hashlib
from functools import lru_cache

import numpy as np
import onnx

from convert import blocks
from convert.calibrated import LinearInput
from convert.four_bits import BLOCK_SIZE, FourBits, quantize_four_bits
from convert.graph import Constant
from convert.rewriting import Rewriting

# Activations are taken to 8 bit by token and block: nothing is lost beside 4 bits, and short texts run up to
# twice as fast as with float32 activations.
ACCURACY_LEVEL = 4
TABLE_BLOCK_SIZE = 128  # rounding of 8-bit tables is small beside that of 4-bit weights: fewer scales do


def linear(rewriting: Rewriting, node: onnx.NodeProto, weight: Constant) -> None:
    """Multiply by weights in 4-bit blocks, with a scale and a zero point each, rounded for known inputs."""
    graph, name = rewriting.graph, node.output[0]
    inputs = rewriting.inputs.get(node.input[0])
    num_inputs, num_outputs = weight.shape
    num_blocks = -(-num_inputs // BLOCK_SIZE)
    key = f"{weight.key}:int4{_told_apart(inputs)}"
    parts = [
        Constant(
            key, (num_outputs, num_blocks, BLOCK_SIZE // 2), np.dtype(np.uint8),
            lambda: _four_bits(weight, inputs).values,
        ),
        Constant(
            f"{key}.scales", (num_outputs, num_blocks), np.dtype(np.float32),
            lambda: _four_bits(weight, inputs).scales,
        ),
        Constant(
            f"{key}.zeros", (num_outputs, -(-num_blocks // 2)), np.dtype(np.uint8),
            lambda: _four_bits(weight, inputs).zeros,
        ),
    ]  # fmt: skip
    names = [
        graph.constant(f"{name}.{ending}", part)
        for ending, part in zip(("blocks", "scales", "zeros"), parts, strict=True)
    ]
    attributes = {
        "K": num_inputs, "N": num_outputs, "bits": 4, "block_size": BLOCK_SIZE,
        "accuracy_level": ACCURACY_LEVEL,
    }  # fmt: skip
    graph.op("MatMulNBits", name, [node.input[0], *names], attributes)


def table_rows(rewriting: Rewriting, node: onnx.NodeProto, table: Constant) -> None:
    """Look rows up in a table of 8-bit blocks, larger ones than where 8 bits are all the error there is."""
    blocks.table_rows(rewriting, node, table, TABLE_BLOCK_SIZE)


def _told_apart(inputs: LinearInput | None) -> str:
    """Return what tells the forms of a weight apart that are rounded for unlike inputs, of two tasks."""
    return f":{hashlib.sha256(inputs.rows.tobytes()).hexdigest()[:16]}" if inputs else ""


# The three arrays of a quantized layer are written one after the other: the result is kept for the others.
@lru_cache(maxsize=1)
def _four_bits(weight: Constant, inputs: LinearInput | None) -> FourBits:
    return quantize_four_bits(weight.read().astype(np.float32, copy=False), inputs)
