"""Moves what makes activations hard to round into the weights that read them. The function computed stays.

A channel far larger than the others takes the scale of its whole row. Divided by a factor of its own, with
the weights' rows multiplied by it, it no longer does. The division is free where it can go into what makes
the value: a norm that only linear layers read, the projection of what heads see, one side of a gated product.
Elsewhere it costs one Mul, and is done only where it pays. Factors as in SmoothQuant (arXiv:2211.10438),
max|x|^alpha / max|w|^(1 - alpha), alpha chosen for each value by the rounding error of sampled rows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import onnx

from convert.calibrated import LinearInput
from convert.graph import Array, Columns, Constant, Graph, constant_of, node
from convert.rewriting import inputs_of, linear_layers, lowest_of
from convert.rounding import quantize_columns, quantize_rows

ALPHAS = (0.35, 0.5, 0.65, 0.8)
WORTH_A_MULTIPLICATION = 0.9  # of the error without: what is left must be below
MAX_ROWS, MAX_COLUMNS = 128, 1024  # of a layer, to estimate its error by
SMALLEST = 1e-5  # of a channel's magnitude: dead channels have none
# A channel that the texts hardly woke may be as large as any other in a text to come: it is taken to be at
# least this share of the median, so that no factor makes it the largest of its row then.
RARE_SHARE = 0.1

Floats = npt.NDArray[np.float32]
Calibration = Mapping[str, LinearInput]


@dataclass(frozen=True)
class Reading:
    """A value that enters linear layers, and the weights of these."""

    value: str
    weights: tuple[tuple[str, Constant], ...]  # by the names of the constants
    columns: tuple[Columns, ...]  # what can take the division; none: it costs a Mul


def smoothed(graph: Graph, inputs: Calibration) -> tuple[Graph, dict[str, LinearInput]]:
    """Return a graph that computes the same with smoother values, and what calibration would see in it."""
    target = replace(
        graph, nodes=list(graph.nodes), constants=dict(graph.constants), scaled_by=dict(graph.scaled_by)
    )
    seen = dict(inputs)
    for reading in list(_readings(graph, inputs)):
        factors = _factors(target, reading, seen[reading.value])
        if factors is None:
            continue
        for name, _ in reading.weights:
            target.constants[name] = _multiplied(target.constants[name], factors)
        divided = seen[reading.value].divided(factors)
        if reading.columns:
            for columns in reading.columns:
                target.constants[columns.constant] = _divided(target, columns, factors)
            seen[reading.value] = divided
        else:
            seen[_multiply(target, reading, factors)] = divided
    return target, seen


def _readings(graph: Graph, inputs: Calibration) -> Iterator[Reading]:
    """List the values that linear layers read; a division is free where nothing else reads them."""
    readers: dict[str, list[onnx.NodeProto]] = {}
    for reader in graph.nodes:
        for name in inputs_of(reader):
            readers.setdefault(name, []).append(reader)
    outputs = {output.name for output in graph.outputs}
    layers: dict[str, list[tuple[str, Constant]]] = {}
    for layer, weight in linear_layers(graph):
        layers.setdefault(layer.input[0], []).append((layer.input[1], weight))
    for value, weights in layers.items():
        if value not in inputs:
            continue
        is_free = len(readers[value]) == len(weights) and value not in outputs
        columns = graph.scaled_by.get(value, ()) if is_free else ()
        yield Reading(value, tuple(weights), columns)


def _factors(graph: Graph, reading: Reading, seen: LinearInput) -> Floats | None:
    """Choose the factors (size,) with the least rounding error; None where the value is best as it is."""
    weights = [np.asarray(graph.constants[name].read(), np.float32) for name, _ in reading.weights]
    highest = np.maximum(seen.highest, max(SMALLEST, RARE_SHARE * float(np.median(seen.highest))))
    widest = np.maximum(np.max([np.abs(weight).max(axis=1) for weight in weights], axis=0), SMALLEST)
    if reading.columns:
        highest, widest = (_shared(values, reading.columns[0]) for values in (highest, widest))
    stride = max(1, sum(weight.shape[1] for weight in weights) // MAX_COLUMNS)
    sampled = [weight[:, ::stride] for weight in weights]
    rows = seen.rows[:MAX_ROWS]
    least, best = _error(rows, sampled, lowest_of(graph, reading.value)), None
    if not reading.columns:
        least *= WORTH_A_MULTIPLICATION
    for alpha in ALPHAS:
        factors = (highest**alpha / widest ** (1 - alpha)).astype(np.float32)
        error = _error(rows / factors, [weight * factors[:, None] for weight in sampled])
        if error < least:
            least, best = error, factors
    return best


def _shared(values: Floats, columns: Columns) -> Floats:
    """Give channels that the same columns stand for the same value, the largest of theirs."""
    if columns.repeats == 1:
        return values
    groups = values.reshape(-1, columns.repeats, columns.width)
    return np.broadcast_to(groups.max(axis=1, keepdims=True), groups.shape).reshape(-1)


def _error(rows: Floats, weights: Sequence[Floats], lowest: float | None = None) -> float:
    """Return the share of the layers' output that rounding rows and weights to 8 bits changes, squared."""
    rounded, total = quantize_rows(rows, lowest), 0.0
    for weight in weights:
        values, scales = quantize_columns(weight)
        exact = rows @ weight
        difference = rounded @ (values.astype(np.float32) * scales) - exact
        total += float(np.square(difference).sum() / max(float(np.square(exact).sum()), SMALLEST**2))
    return total


def _multiplied(weight: Constant, factors: Floats) -> Constant:
    def read() -> Array:
        return np.asarray(weight.read(), np.float32) * factors[:, None]

    return Constant(f"{weight.key}*{_digest(factors)}", weight.shape, weight.dtype, read)


def _divided(graph: Graph, columns: Columns, factors: Floats) -> Constant:
    """Divide the columns of a constant (.., columns), or the values of one (columns,)."""
    constant = graph.constants[columns.constant]
    if columns.repeats > 1:
        factors = factors.reshape(-1, columns.repeats, columns.width)[:, 0].reshape(-1)
    divisors = np.ones(constant.shape[-1], dtype=np.float32)
    divisors[columns.begin : columns.begin + columns.count] = factors

    def read() -> Array:
        return np.asarray(constant.read(), np.float32) / divisors

    return Constant(f"{constant.key}/{_digest(divisors)}", constant.shape, constant.dtype, read)


def _multiply(graph: Graph, reading: Reading, factors: Floats) -> str:
    """Put a Mul before the layers that read the value; return the name of its result."""
    value, result = reading.value, f"{reading.value}.smoothed"
    inverse = np.float32(1) / factors
    graph.constants[f"{value}.smoothing"] = replace(
        constant_of(f"smoothing:{_digest(inverse)}", inverse), shape=factors.shape
    )
    names = {name for name, _ in reading.weights}
    reads = [
        index
        for index, reader in enumerate(graph.nodes)
        if len(reader.input) > 1 and reader.input[0] == value and reader.input[1] in names
    ]
    for index in reads:
        changed = onnx.NodeProto()
        changed.CopyFrom(graph.nodes[index])
        changed.input[0] = result
        graph.nodes[index] = changed
    graph.nodes.insert(reads[0], node("Mul", result, [value, f"{value}.smoothing"], [result]))
    return result


def _digest(values: Floats) -> str:
    return hashlib.sha256(np.ascontiguousarray(values).tobytes()).hexdigest()[:16]
