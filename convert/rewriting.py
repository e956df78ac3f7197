"""A graph being rewritten in another precision, and the type of what rewrites one node. Knows no scheme."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import onnx

from convert.calibrated import LinearInput
from convert.graph import Constant, Graph


@dataclass(frozen=True)
class Rewriting:
    """A graph being rewritten and what has been made for it so far."""

    graph: Graph
    quantized_inputs: dict[str, tuple[str, str]]  # activation -> its 8-bit rows, their scales
    # What calibration showed of an activation that enters linear layers, by the value's name.
    inputs: Mapping[str, LinearInput] = field(default_factory=dict)


Rewrite = Callable[[Rewriting, onnx.NodeProto, Constant], None]
