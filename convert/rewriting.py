"""A graph being rewritten in another precision, what a linear layer is, and the type of what rewrites one.

Knows no scheme.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import onnx

from convert.calibrated import LinearInput
from convert.graph import Constant, Graph

# Operators whose results never go below a value: 8 bits that end there are finer above it.
LOWEST = {"BiasGelu": -0.17}


@dataclass(frozen=True)
class QuantizedRows:
    """An activation in 8-bit rows: their names, that of their scales (rows, 1) and of the zero among them."""

    values: str
    scales: str
    zero: str


@dataclass(frozen=True)
class Rewriting:
    """A graph being rewritten and what has been made for it so far."""

    graph: Graph
    quantized_inputs: dict[str, QuantizedRows]  # by activation
    inputs: Mapping[str, LinearInput] = field(default_factory=dict)  # activation -> what calibration saw
    splits: Mapping[str, onnx.NodeProto] = field(default_factory=dict)  # by what they, and no other, read
    narrowed: frozenset[str] = frozenset()  # values that no longer have a row for every token
    merged: set[str] = field(default_factory=set)  # nodes whose results others give already


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


def lowest_of(graph: Graph, value: str) -> float | None:
    """Return what a value never goes below by what makes it; None where nothing is known."""
    return next((LOWEST.get(node.op_type) for node in graph.nodes if value in node.output), None)


def inputs_of(node: onnx.NodeProto) -> list[str]:
    """List a node's inputs, those of its subgraphs included."""
    inner = [name for attribute in node.attribute for part in attribute.g.node for name in inputs_of(part)]
    return [*node.input, *inner]
