"""Graphs in 16-bit floats, fp16 or bf16, which CUDA has kernels for. Knows no model.

A value stays float32 where 16 bits cost more than they save: what an exact MatMul computes (small heads, and
angles of rotary positions, which grow with the text), what is cast to float32 from integers (the shares of a
mean), and what follows from those. A node computes in the width of the first value it takes; other values,
constants and inputs of the graph are cast to it. Norms keep their sums in float32 by themselves; every output
is float32.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import ml_dtypes
import numpy as np
import onnx

from convert.graph import Array, Constant, Graph, node
from service.errors import BakeError
from service.manifest import Precision

FLOAT = onnx.TensorProto.FLOAT
NEVER_FLOAT = frozenset({"Shape", "Size", "NonZero", "Equal", "Less", "GreaterOrEqual"})  # whatever they take


@dataclass(frozen=True)
class Format:
    """A 16-bit float: its number in ONNX, its type in numpy, and what to take where it overflows."""

    tensor_type: int
    dtype: np.dtype[np.generic]
    wider: Precision


FORMATS = {
    Precision.FP16: Format(onnx.TensorProto.FLOAT16, np.dtype(np.float16), Precision.BF16),
    Precision.BF16: Format(onnx.TensorProto.BFLOAT16, np.dtype(ml_dtypes.bfloat16), Precision.FP32),
}


@dataclass(frozen=True)
class _Scope:
    """The nodes of a graph or of one branch of it, and the casts that they can read."""

    nodes: list[onnx.NodeProto]
    casts: dict[tuple[str, int], str] = field(default_factory=dict)  # value, type -> its name in that type
    prefix: str = ""


def rewritten(graph: Graph, precision: Precision) -> Graph:
    """Return the float32 graph in 16-bit floats, its constants rounded when they are written.

    Writing raises BakeError for a weight that the format cannot hold.
    """
    target = Graph(graph.name, graph.is_flat, inputs=graph.inputs, outputs=graph.outputs)
    _Rewriter(graph, target, precision).run()
    return target


class _Rewriter:
    def __init__(self, graph: Graph, target: Graph, precision: Precision) -> None:
        self._graph, self._target, self._precision = graph, target, precision
        self._format = FORMATS[precision]
        inputs = [(value.name, value.type.tensor_type.elem_type) for value in graph.inputs]
        self._inputs = {name for name, kind in inputs if kind == FLOAT}
        self._types = dict.fromkeys(self._inputs, FLOAT)  # of float values alone
        self._outputs = {value.name for value in graph.outputs}

    def run(self) -> None:
        scope = _Scope(self._target.nodes)
        for old in self._graph.nodes:
            self._append(scope, old)

    def _append(self, scope: _Scope, old: onnx.NodeProto) -> None:
        """Append a node with its inputs in one width; note the types of its outputs."""
        width = self._width(old)
        made = onnx.NodeProto()
        made.CopyFrom(old)
        made.input[:] = [self._input(scope, name, width) for name in old.input]
        result = width
        for attribute in made.attribute:
            if attribute.HasField("g"):
                result = self._branch(scope, attribute.g)
        scope.nodes.append(made)
        if result and old.op_type not in NEVER_FLOAT:
            self._types |= {name: result for name in old.output if name}
            self._widen_outputs(scope, made)

    def _width(self, old: onnx.NodeProto) -> int | None:
        """Return the type that a node's floats are computed in; None where it has none."""
        if old.op_type == "Cast":
            to = next(attribute.i for attribute in old.attribute if attribute.name == "to")
            return FLOAT if to == FLOAT else None
        if old.op_type == "MatMul" and old.name in self._graph.exact:
            return FLOAT
        values = [self._types[name] for name in old.input if name in self._types.keys() - self._inputs]
        if values:
            return values[0]
        has_floats = any(name in self._inputs or self._is_float_constant(name) for name in old.input)
        return self._format.tensor_type if has_floats else None

    def _is_float_constant(self, name: str) -> bool:
        constant = self._graph.constants.get(name)
        return constant is not None and constant.dtype == np.float32

    def _input(self, scope: _Scope, name: str, width: int | None) -> str:
        """Name a node's input in the type that it is needed in."""
        if constant := self._graph.constants.get(name):
            if not self._is_float_constant(name) or width == FLOAT:
                return self._target.constant(name, constant)
            return self._target.constant(f"{name}.{self._precision}", rounded(constant, self._precision))
        known = self._types.get(name)
        if known is None or width is None or known == width:
            return name
        if (name, width) not in scope.casts:
            ending = Precision.FP32 if width == FLOAT else self._precision
            cast = f"{scope.prefix}{name}.{ending}"
            scope.nodes.append(node("Cast", cast, [name], [cast], {"to": width}))
            scope.casts[name, width] = cast
        return scope.casts[name, width]

    def _branch(self, outer: _Scope, graph: onnx.GraphProto) -> int | None:
        """Rewrite a branch in place; return the type of its one output."""
        scope = _Scope([], dict(outer.casts), f"{graph.name}.")
        for old in graph.node:
            self._append(scope, old)
        del graph.node[:]
        graph.node.extend(scope.nodes)
        (output,) = graph.output
        if result := self._types.get(output.name):
            output.type.tensor_type.elem_type = result
        return result

    def _widen_outputs(self, scope: _Scope, made: onnx.NodeProto) -> None:
        """Turn an output of the graph to float32, under the name that it has."""
        for index, name in enumerate(made.output):
            if name in self._outputs and self._types[name] != FLOAT:
                narrow = f"{name}.{self._precision}"
                made.output[index] = narrow
                scope.nodes.append(node("Cast", f"{name}.fp32", [narrow], [name], {"to": FLOAT}))
                self._types |= {narrow: self._types[name], name: FLOAT}


def rounded(constant: Constant, precision: Precision) -> Constant:
    """Make a constant that is rounded when written, in parts where it is read in parts."""
    parts = None

    def read() -> Array:
        return _round(constant.read(), constant.key, precision)

    if constant.read_parts:

        def parts() -> Iterator[Array]:
            return (_round(part, constant.key, precision) for part in constant.parts())

    dtype = FORMATS[precision].dtype
    return Constant(f"{constant.key}:{precision}", constant.shape, dtype, read, parts)


def _round(values: Array, key: str, precision: Precision) -> Array:
    """Round to the nearest. Raises BakeError where a finite value becomes infinite."""
    with np.errstate(over="ignore"):
        made = values.astype(FORMATS[precision].dtype)
    overflows = np.isfinite(values) & ~np.isfinite(made)
    if overflows.any():
        raise BakeError(
            f"{key} has the value {values[overflows].flat[0]:g}, which {precision} cannot hold: "
            f"leave {precision} out of --precision and take {FORMATS[precision].wider}"
        )
    return made
