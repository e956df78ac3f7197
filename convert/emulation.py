"""Stand-ins for 16-bit graphs on hosts without CUDA: the same rounding, computed in float32. Knows no model.

A CPU has no kernels for most operators in bf16. A stand-in computes each node in float32 and rounds what
comes out to 16 bits, as a kernel does that sums in float32. What a kernel rounds inside itself is not shown,
and the speed of a stand-in says nothing.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import NamedTemporaryFile, TemporaryDirectory

import onnx

from convert.graph import node
from convert.half import FLOAT, FORMATS, NEVER_FLOAT
from service.manifest import Manifest, Precision, Variant

PREFIX = ".stand-in."
# What only moves values leaves them as rounded as they were.
MOVES = frozenset(
    {"Compress", "Gather", "Identity", "Reshape", "ScatterND", "Slice", "Split", "Squeeze", "Unsqueeze"}
)


@contextmanager
def runnable(folder: Path, manifest: Manifest, variant: Variant) -> Iterator[tuple[Manifest, Variant]]:
    """Give what to open in place of a variant: itself, or a stand-in that lies beside it for a while."""
    if variant.precision not in FORMATS:
        yield manifest, variant
        return
    graph = folder / variant.file
    model = emulated(onnx.load(str(graph), load_external_data=False), variant.precision)
    with _written(graph, model.SerializeToString()) as file:
        shown = replace(variant, precision=Precision.FP32, file=str(file.absolute()))
        yield replace(manifest, variants=(shown,)), shown


@contextmanager
def _written(graph: Path, content: bytes) -> Iterator[Path]:
    """Write a stand-in where it finds the weights of the graph, and remove it in the end.

    ONNX Runtime refuses weights outside the graph's own folder, links too: beside the graph, or, where
    nothing may be written there, in a folder with a copy of the weights.
    """
    for stale in graph.parent.glob(f"{PREFIX}*") if os.access(graph.parent, os.W_OK) else ():
        stale.unlink(missing_ok=True)  # of a check that was killed
    with ExitStack() as made:
        try:
            file = made.enter_context(NamedTemporaryFile(dir=graph.parent, prefix=PREFIX, suffix=".onnx"))
        except OSError:
            other = Path(made.enter_context(TemporaryDirectory(prefix=PREFIX)))
            for weights in graph.parent.glob("*.data"):
                shutil.copy(weights, other)
            file = made.enter_context(NamedTemporaryFile(dir=other, suffix=".onnx"))
        file.write(content)
        file.flush()
        yield Path(file.name)


def emulated(model: onnx.ModelProto, precision: Precision) -> onnx.ModelProto:
    """Return a 16-bit graph with float32 kernels only, whose values are rounded as its own would be."""
    made = onnx.ModelProto()
    made.CopyFrom(model)
    rounding = _Rounding(FORMATS[precision].tensor_type)
    nodes = rounding.widened(made.graph)
    nodes += rounding.rounded(made.graph)
    del made.graph.node[:]
    made.graph.node.extend(nodes)
    return made


class _Rounding:
    def __init__(self, tensor_type: int) -> None:
        self._type = tensor_type
        self._narrow: set[str] = set()  # values that are of 16 bits in the graph itself

    def widened(self, graph: onnx.GraphProto) -> list[onnx.NodeProto]:
        """Rename the 16-bit weights; return the casts that give their values in float32 by their names."""
        casts = []
        for tensor in graph.initializer:
            if tensor.data_type == self._type:
                self._narrow.add(tensor.name)
                stored = f"{tensor.name}.stored"
                casts.append(node("Cast", f"{tensor.name}.wide", [stored], [tensor.name], {"to": FLOAT}))
                tensor.name = stored
        return casts

    def rounded(self, graph: onnx.GraphProto) -> list[onnx.NodeProto]:
        """Return the nodes of a graph or branch, each followed by what rounds its results."""
        nodes: list[onnx.NodeProto] = []
        for old in graph.node:
            outputs = self._narrow_outputs(old)
            self._narrow |= set(outputs)
            nodes.append(old)
            if old.op_type == "If" or old.op_type in MOVES:
                continue
            for index, name in enumerate(old.output):
                if name in outputs:
                    nodes += self._rounding_of(old, index)
        return nodes

    def _narrow_outputs(self, old: onnx.NodeProto) -> list[str]:
        """List a node's 16-bit results; in its branches, they are rounded already."""
        is_narrow = any(name in self._narrow for name in old.input) and old.op_type not in NEVER_FLOAT
        for attribute in old.attribute:
            if attribute.name == "to" and old.op_type == "Cast":
                is_narrow = attribute.i == self._type
            if attribute.HasField("g"):
                is_narrow |= self._in_branch(attribute.g)
        return [name for name in old.output if name] if is_narrow else []

    def _in_branch(self, branch: onnx.GraphProto) -> bool:
        """Rewrite a branch in place; tell whether its output is of 16 bits in the graph itself."""
        nodes = self.rounded(branch)
        del branch.node[:]
        branch.node.extend(nodes)
        (output,) = branch.output
        is_narrow = bool(output.type.tensor_type.elem_type == self._type)
        if is_narrow:
            output.type.tensor_type.elem_type = FLOAT
        return is_narrow

    def _rounding_of(self, old: onnx.NodeProto, index: int) -> list[onnx.NodeProto]:
        """Rename a result; return the casts to 16 bits and back that give it rounded by its name."""
        name = old.output[index]
        exact, narrow = f"{name}.exact", f"{name}.narrow"
        old.output[index] = exact
        if old.op_type == "Cast":  # it is what rounds
            old.output[index] = narrow
            return [node("Cast", f"{name}.wide", [narrow], [name], {"to": FLOAT})]
        return [
            node("Cast", narrow, [exact], [narrow], {"to": self._type}),
            node("Cast", f"{name}.wide", [narrow], [name], {"to": FLOAT}),
        ]
