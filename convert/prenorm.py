"""Parts of pre-norm layers: RMS norms that add a residual, linear layers, gated feed-forward.

Values are flat, (rows, size). Knows no model; every name is that of the tensors that a part is made of.
"""

from __future__ import annotations

from dataclasses import dataclass

from convert.graph import Columns, Graph, node
from convert.weights import Weights

SILU = {"alpha": 1.0}  # QuickGelu(x) = x * sigmoid(alpha * x)


@dataclass(frozen=True)
class Parts:
    """A graph and the weights from which parts are appended to it."""

    graph: Graph
    weights: Weights
    norm_eps: float

    def linear(self, name: str, value: str, shape: tuple[int, int], *, has_bias: bool = False) -> str:
        """Append a linear layer of (out, in); return the name of its result."""
        weight = self.graph.constant(f"{name}.weight", self.weights.joined([f"{name}.weight"], shape))
        product = self.graph.op("MatMul", name, [value, weight])
        if not has_bias:
            return product
        bias = self.graph.constant(f"{name}.bias", self.weights.constant(f"{name}.bias", shape[:1]))
        return self.graph.op("Add", f"{name}.biased", [product, bias])

    def norm(self, name: str, value: str, size: int, result: str | None = None) -> str:
        """Append an RMS norm, computed in float32; return the name of its result, by default the norm's."""
        attributes = {"epsilon": self.norm_eps, "axis": -1, "stash_type": 1}
        inputs = [value, self._scale(name, size)]
        self.graph.scaled_by[result or name] = (Columns(inputs[1], 0, size),)
        return self.graph.op("SimplifiedLayerNormalization", result or name, inputs, attributes)

    def add_norm(self, name: str, values: tuple[str, str], size: int) -> tuple[str, str]:
        """Add the residual, then normalise; return the names of the normalised values and of the sum."""
        outputs = [name, "", "", f"{name}.sum"]
        inputs = [*values, self._scale(name, size)]
        attributes = {"epsilon": self.norm_eps}
        self.graph.scaled_by[name] = (Columns(inputs[-1], 0, size),)
        self.graph.nodes.append(node("SkipSimplifiedLayerNormalization", name, inputs, outputs, attributes))
        return name, outputs[-1]

    def feed_forward(self, name: str, normed: str, sizes: tuple[int, int], *, has_bias: bool = False) -> str:
        """Append down(silu(gate) * up) of `sizes` (narrow, wide); return the name of its result."""
        narrow, wide = sizes
        gate = self.linear(f"{name}.gate_proj", normed, (wide, narrow), has_bias=has_bias)
        up = self.linear(f"{name}.up_proj", normed, (wide, narrow), has_bias=has_bias)
        activated = self.graph.op("QuickGelu", f"{name}.silu", [gate], SILU)
        gated = self.graph.op("Mul", f"{name}.gated", [activated, up])
        self.graph.scaled_by[gated] = self.columns(f"{name}.up_proj", wide, has_bias=has_bias)
        return self.linear(f"{name}.down_proj", gated, (narrow, wide), has_bias=has_bias)

    def columns(
        self, name: str, count: int, *, has_bias: bool = False, width: int = 1, repeats: int = 1
    ) -> tuple[Columns, ...]:
        """Name the constants of a linear layer that scale its result."""
        constants = [f"{name}.weight", *([f"{name}.bias"] if has_bias else [])]
        return tuple(Columns(constant, 0, count, width, repeats) for constant in constants)

    def _scale(self, name: str, size: int) -> str:
        return self.graph.constant(f"{name}.weight", self.weights.constant(f"{name}.weight", (size,)))
