"""A graph being rewritten in another precision, what a linear layer is, and the type of what rewrites one.

Knows no scheme.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import onnx

from convert.calibrated import LinearInput
from convert.graph import Constant, Graph


@dataclass(frozen=True)
class Rewriting:
    """A graph being rewritten and what has been made for it so far."""

    graph: Graph
    quantized_inputs: dict[str, tuple[str, str]]  # activation -> its 8-bit rows, their scales
    inputs: Mapping[str, LinearInput] = field(default_factory=dict)  # activation -> what calibration saw


Rewrite = Callable[[Rewriting, onnx.NodeProto, Constant], None]


def linear_weight(graph: Graph, node: onnx.NodeProto) -> Constant | None:
    """Return the weight of a node that is a linear layer and may be rounded; None of any other node."""
    if node.op_type != "MatMul" or node.name in graph.exact:
        return None
    return graph.constants.get(node.input[1])


def linear_layers(graph: Graph) -> Iterator[tuple[onnx.NodeProto, Constant]]:
    """List the linear layers that may be rounded, with their weights (in, out), in the graph's order."""
    for node in graph.nodes:
        weight = linear_weight(graph, node)
        if weight is not None:
            yield node, weight


def inputs_of(node: onnx.NodeProto) -> list[str]:
    """List a node's inputs, those of its subgraphs included."""
    inner = [name for attribute in node.attribute for part in attribute.g.node for name in inputs_of(part)]
    return [*node.input, *inner]
