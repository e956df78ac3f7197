"""Other forms of a float32 graph: the schemes by precision. Each knows no model.

Those of 8 bits rewrite one node from one tensor, those of 16 bits the whole graph.

A linear layer is a MatMul whose second input is a constant; a table is a large constant that a Gather reads.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import numpy as np
import onnx

from convert import blocks, half, int4, int8
from convert.calibrated import LinearInput
from convert.graph import Constant, Graph
from convert.rewriting import Rewrite, Rewriting, inputs_of, linear_weight
from service.errors import BakeError
from service.manifest import Precision

TABLE_MIN_VALUES = 1 << 16  # smaller tables stay float32: nothing to gain
SWITCHES = "switches"
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


def quantize(
    graph: Graph,
    precision: Precision,
    inputs: Mapping[str, LinearInput] | None = None,
    mixture: Mapping[str, Precision] | None = None,
) -> Graph:
    """Return the graph with its linear layers and tables in another precision; fp32 is the graph itself.

    `inputs` is what calibration saw, by the values that enter linear layers; `mixture` names the layers that
    have another precision than the rest.
    """
    if precision in half.FORMATS:
        return half.rewritten(graph, precision)
    if precision == Precision.FP32:
        return graph
    if precision not in LINEAR_SCHEMES:
        raise BakeError(f"no graph can be made in {precision}")
    target = Graph(graph.name, graph.is_flat, inputs=graph.inputs, outputs=graph.outputs)
    rewriting = Rewriting(target, {}, inputs or {}, _splits(graph), _narrowed(graph))
    for node in graph.nodes:
        if node.name in rewriting.merged:
            continue
        own = (mixture or {}).get(node.name, precision)
        rewrite, constant = _rewrite_for(graph, node, own)
        if rewrite is not None and constant is not None:
            rewrite(rewriting, node, constant)
        else:
            target.nodes.append(node)
    used = {name for node in target.nodes for name in inputs_of(node)}
    target.constants |= {name: constant for name, constant in graph.constants.items() if name in used}
    return target


def _rewrite_for(
    graph: Graph, node: onnx.NodeProto, precision: Precision
) -> tuple[Rewrite | None, Constant | None]:
    weight = linear_weight(graph, node)
    if weight is not None:
        return LINEAR_SCHEMES.get(precision), weight
    if node.op_type == "Gather" and node.input[0] in graph.constants and node.name not in graph.exact:
        table = graph.constants[node.input[0]]
        if table.dtype == np.float32 and np.prod(table.shape) >= TABLE_MIN_VALUES:
            return TABLE_SCHEMES[precision], table
    return None, None


def switchable(graph: Graph, precision: Precision) -> tuple[Graph, list[str]]:
    """Return a graph that computes every linear layer both as it is and rounded, and the layers' names.

    Its input `SWITCHES` (layers,) says of each which one counts. Tables are rounded.
    """
    target = Graph(graph.name, graph.is_flat, inputs=list(graph.inputs), outputs=graph.outputs)
    target.constants |= graph.constants
    names: list[str] = []
    rewriting = Rewriting(target, {}, narrowed=_narrowed(graph))
    for node in graph.nodes:
        rewrite, constant = _rewrite_for(graph, node, precision)
        if rewrite is None or constant is None:
            target.nodes.append(node)
        elif linear_weight(graph, node) is None:
            rewrite(rewriting, node, constant)
        else:
            rounded, exact = (_renamed(node, f"{node.name}.{end}") for end in ("rounded", "exact"))
            rewrite(rewriting, rounded, constant)
            target.nodes.append(exact)
            place = target.value(f"{node.name}.place", len(names))
            switch = target.op("Gather", f"{node.name}.switch", [SWITCHES, place])
            target.op("Where", node.output[0], [switch, rounded.output[0], exact.output[0]])
            names.append(node.name)
    target.input(SWITCHES, np.bool_, (len(names),))
    return target, names


def _renamed(node: onnx.NodeProto, name: str) -> onnx.NodeProto:
    renamed = onnx.NodeProto()
    renamed.CopyFrom(node)
    renamed.name, renamed.output[0] = name, name
    return renamed


def _narrowed(graph: Graph) -> frozenset[str]:
    """List the values made of some rows of a computed value."""
    found: set[str] = set()
    for node in graph.nodes:
        is_choice = node.op_type == "Gather" and node.input[0] not in graph.constants
        if is_choice or not found.isdisjoint(inputs_of(node)):
            found.update(node.output)
    return frozenset(found)


def _splits(graph: Graph) -> dict[str, onnx.NodeProto]:
    """Find the nodes that cut a value's last axis into equal parts where nothing else reads the value."""
    readers = Counter(name for node in graph.nodes for name in inputs_of(node))
    readers.update(output.name for output in graph.outputs)
    return {
        node.input[0]: node
        for node in graph.nodes
        if node.op_type == "Split" and len(node.input) == 1 and readers[node.input[0]] == 1
    }
