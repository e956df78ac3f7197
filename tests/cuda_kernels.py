"""Which nodes of a graph CUDA has kernels for, by ONNX Runtime's published list. Runs nothing.

Types of values are propagated by the list itself: ONNX's own inference knows no operator of com.microsoft.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx

FILE = Path(__file__).parent / "data" / "cuda_kernels.json"
NAMES = {  # of element types, as the list spells them
    number: name.lower() for name, number in onnx.TensorProto.DataType.items()
}
DOMAINS = {"": "ai.onnx"}
# What ONNX Runtime computes on the CPU, because it is small and a kernel or a shape needs it there. On values
# that are whole numbers only.
SHAPE_OPERATORS = frozenset(
    {
        "Add",
        "Cast",
        "Concat",
        "Gather",
        "Identity",
        "Mul",
        "Range",
        "Reshape",
        "Shape",
        "Size",
        "Slice",
        "Squeeze",
    }
    | {"Sub", "Unsqueeze"}
)
WHOLE_NUMBERS = frozenset({"int32", "int64"})


@dataclass(frozen=True)
class Kernels:
    """The published list by domain and operator, and the version of ai.onnx that graphs are of."""

    rows: Mapping[str, Mapping[str, Mapping[str, Any]]]
    opset: int

    def row(self, node: onnx.NodeProto) -> Mapping[str, Any] | None:
        """Return the row of a node's operator; None where the list has none."""
        domain = DOMAINS.get(node.domain, node.domain)
        row = self.rows[domain].get(node.op_type)
        is_standard = domain == DOMAINS[""] and row is not None
        if is_standard and not row["since"] <= self.opset <= (row["until"] or self.opset):  # type: ignore[index]
            return None
        return row


def read() -> dict[str, dict[str, dict[str, Any]]]:
    """Read the published list: domain, operator, row."""
    rows: dict[str, dict[str, dict[str, Any]]] = json.loads(FILE.read_text(encoding="utf-8"))["kernels"]
    return rows


def without_kernel(model: onnx.ModelProto) -> list[str]:
    """Describe the nodes that would be placed on the CPU for want of a kernel."""
    opset = next(entry.version for entry in model.opset_import if not entry.domain)
    kernels = Kernels(read(), opset)
    types = {value.name: NAMES[value.data_type] for value in model.graph.initializer}
    types |= {value.name: NAMES[value.type.tensor_type.elem_type] for value in model.graph.input}
    placing = _Placing(kernels, types)
    placing.visit(model.graph.node)
    return placing.missing


def may_be_on_cpu(operator: str, types: Iterable[str]) -> bool:
    """Tell whether a node computes a shape or the like."""
    return operator in SHAPE_OPERATORS and set(types) <= WHOLE_NUMBERS


@dataclass
class _Placing:
    kernels: Kernels
    types: dict[str, str]  # of values
    missing: list[str] = field(default_factory=list)

    def visit(self, nodes: Sequence[onnx.NodeProto]) -> None:
        for node in nodes:
            inner = [attribute.g for attribute in node.attribute if attribute.HasField("g")]
            for branch in inner:
                self.visit(branch.node)
            outputs = self._outputs(node, [self.types[branch.output[0].name] for branch in inner])
            self.types |= dict(zip(node.output, outputs, strict=False))

    def _outputs(self, node: onnx.NodeProto, branches: list[str]) -> list[str]:
        """Check a node, note it where no kernel takes its types; return the types of its outputs."""
        given = [self.types[name] if name else "" for name in node.input]
        row = self.kernels.row(node)
        if row is None:
            self._miss(node, given)
            return [given[0]] * len(node.output)
        bound: dict[str, str] = {}
        fits = True
        for index, kind in enumerate(given):
            parameter = _of(row["inputs"], index)
            if kind:
                fits &= bound.setdefault(parameter, kind) == kind
        if branches:
            bound[row["outputs"][0]] = branches[0]
            fits &= len(set(branches)) == 1
        made = [self._output(node, row, bound, index) for index in range(len(node.output))]
        fits &= all(_takes(row, parameter, kind) for parameter, kind in bound.items())
        if not fits:
            self._miss(node, given)
        return made

    def _output(self, node: onnx.NodeProto, row: Mapping[str, Any], bound: dict[str, str], index: int) -> str:
        if not node.output[index]:
            return ""
        parameter = _of(row["outputs"], index)
        if parameter not in bound:
            allowed = row["types"].get(parameter, [parameter])
            to = [NAMES[attribute.i] for attribute in node.attribute if attribute.name == "to"]
            # A parameter that no input has: what Cast asks for, a cache of the type of the values, or the
            # one type there is.
            found = to or [kind for kind in bound.values() if kind in allowed] or allowed
            bound[parameter] = found[0]
        return bound[parameter]

    def _miss(self, node: onnx.NodeProto, given: list[str]) -> None:
        self.missing.append(f"{node.op_type} {node.name} of {', '.join(filter(None, given))}")


def _takes(row: Mapping[str, Any], parameter: str, kind: str) -> bool:
    """Tell whether a parameter may be of a type; one that the list does not restrict, of any."""
    if parameter in NAMES.values():
        return parameter == kind
    return kind in row["types"].get(parameter, [kind])


def _of(parameters: Sequence[str], index: int) -> str:
    return parameters[min(index, len(parameters) - 1)]
