"""Quantized forms of a float32 graph. Each scheme rewrites one node from one tensor and knows no model.

A linear layer is a MatMul whose second input is a constant; a table is a large constant that a Gather reads.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np
import onnx

from convert import blocks, int4, int8
from convert.calibrated import LinearInput
from convert.graph import Constant, Graph
from convert.rewriting import Rewrite, Rewriting
from service.manifest import Precision

TABLE_MIN_VALUES = 1 << 16  # smaller tables stay float32: nothing to gain
LINEAR_SCHEMES: dict[Precision, Rewrite] = {
    Precision.INT8: int8.linear,
    Precision.INT8_BLOCK: blocks.linear,
    Precision.INT4: int4.linear,
}
TABLE_SCHEMES: dict[Precision, Rewrite] = {
    Precision.INT8: blocks.table_rows,
    Precision.INT8_BLOCK: blocks.table_rows,
    Precision.INT4: int4.table_rows,
}
NOTHING_KNOWN: Mapping[str, LinearInput] = MappingProxyType({})


def quantize(graph: Graph, precision: Precision, inputs: Mapping[str, LinearInput] = NOTHING_KNOWN) -> Graph:
    """Return the graph with its linear layers and tables in another precision; fp32 is the graph itself.

    `inputs` tells what calibration showed of the values that enter linear layers, by their names.
    """
    if precision not in LINEAR_SCHEMES:
        return graph
    target = Graph(graph.name, graph.is_flat, inputs=graph.inputs, outputs=graph.outputs)
    rewriting = Rewriting(target, {}, inputs)
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
            return TABLE_SCHEMES[precision], table
    return None, None


def _inputs_of(node: onnx.NodeProto) -> list[str]:
    """List a node's inputs, those of its subgraphs included."""
    inner = [name for attribute in node.attribute for part in attribute.g.node for name in _inputs_of(part)]
    return [*node.input, *inner]
