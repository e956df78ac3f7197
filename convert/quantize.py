"""Quantized forms of a float32 graph. Each scheme rewrites one node from one tensor and knows no model.

A linear layer is a MatMul whose second input is a constant; a table is a large constant that a Gather reads.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx

from convert import blocks, int8
from convert.graph import Constant, Graph
from convert.rewriting import Rewrite, Rewriting
from service.manifest import Precision

TABLE_MIN_VALUES = 1 << 16  # smaller tables stay float32: nothing to gain
LINEAR_SCHEMES: dict[Precision, Rewrite] = {
    Precision.INT8: int8.linear,
    Precision.INT8_BLOCK: blocks.linear,
}


def quantize(graph: Graph, precision: Precision) -> Graph:
    """Return the graph with its linear layers and tables in another precision; fp32 is the graph itself."""
    if precision not in LINEAR_SCHEMES:
        return graph
    target = Graph(graph.name, graph.is_flat, inputs=graph.inputs, outputs=graph.outputs)
    rewriting = Rewriting(target, {}, _splits(graph))
    for node in graph.nodes:
        if node.name in rewriting.merged:
            continue
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
            return blocks.table_rows, table
    return None, None


def _splits(graph: Graph) -> dict[str, onnx.NodeProto]:
    """Find the nodes that cut a value's last axis into equal parts where nothing else reads the value."""
    readers = Counter(name for node in graph.nodes for name in _inputs_of(node))
    readers.update(output.name for output in graph.outputs)
    return {
        node.input[0]: node
        for node in graph.nodes
        if node.op_type == "Split" and len(node.input) == 1 and readers[node.input[0]] == 1
    }


def _inputs_of(node: onnx.NodeProto) -> list[str]:
    """List a node's inputs, those of its subgraphs included."""
    inner = [name for attribute in node.attribute for part in attribute.g.node for name in _inputs_of(part)]
    return [*node.input, *inner]
