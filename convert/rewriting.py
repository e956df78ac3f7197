"""A graph being rewritten in another precision, and the type of what rewrites one node. Knows no scheme."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import onnx

from convert.graph import Constant, Graph


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
    splits: Mapping[str, onnx.NodeProto] = field(default_factory=dict)  # by what they, and no other, read
    merged: set[str] = field(default_factory=set)  # nodes whose results others give already


Rewrite = Callable[[Rewriting, onnx.NodeProto, Constant], None]
