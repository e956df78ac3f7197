"""Quantized tensors and graphs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from convert.bundle import write_graphs
from convert.graph import Graph, constant_of
from convert.quantize import quantize
from convert.rewriting import LOWEST
from convert.rounding import BLOCK_SIZE, STEPS_BELOW_ZERO, quantize_blocks, quantize_columns
from service import manifest as contract
from service.manifest import Precision
from service.session import Session, SessionSettings, pad
from tests.conftest import MODEL

WEIGHT = np.random.default_rng(3).normal(size=(70, 9)).astype(np.float32)


def test_columns_are_within_half_a_step() -> None:
    values, scales = quantize_columns(WEIGHT)
    assert values.dtype == np.int8
    assert (np.abs(values * scales - WEIGHT) <= scales * 0.5001).all()
    assert np.abs(values).max(axis=0).tolist() == [127] * 9


def test_blocks_are_no_worse_than_plain_rounding_and_the_last_is_filled_up() -> None:
    rows = WEIGHT.T
    values, scales = quantize_blocks(rows)
    assert values.dtype == np.uint8
    assert values.shape == (9, 3 * BLOCK_SIZE)
    restored = ((values.reshape(9, 3, -1).astype(np.float32) - 128) * scales[:, :, None]).reshape(9, -1)
    blocks = np.pad(rows, ((0, 0), (0, 26))).reshape(9, 3, -1)
    widest = np.abs(blocks).max(axis=2, keepdims=True) / 127
    plain = np.square(np.rint(blocks / widest) * widest - blocks).sum(axis=2)
    ours = np.square(restored.reshape(9, 3, -1) - blocks).sum(axis=2)
    assert (ours <= plain * 1.0001).all()
    assert (ours < plain * 0.95).any()
    assert not restored[:, 70:].any()


@pytest.mark.parametrize("quantizer", [quantize_columns, quantize_blocks])
def test_zeros_stay_zeros(quantizer: object) -> None:
    values, scales = quantizer(np.zeros((32, 2), dtype=np.float32))  # type: ignore[operator]
    assert np.isfinite(scales).all()
    assert set(np.unique(values)) <= {0, 128}


@pytest.mark.parametrize("precision", [Precision.INT8, Precision.INT8_BLOCK])
def test_every_linear_layer_and_the_word_table_are_rewritten(tiny_models: Path, precision: Precision) -> None:
    model = onnx.load(str(tiny_models / MODEL / precision / "model.onnx"), load_external_data=False)
    kinds = [node.op_type for node in model.graph.node]
    mixture = contract.load(tiny_models / MODEL).mixture
    in_blocks, split = len(mixture), sum("qkv" in name for name in mixture)
    if precision == Precision.INT8_BLOCK:
        in_blocks, split = 2 * 4, 2  # layers x (QKV, output, up, down); one product and a split
    assert kinds.count("MatMulNBits") == in_blocks
    assert kinds.count("Split") == split
    # In int8, query, key and value are products of their own.
    assert kinds.count("MatMulIntegerToFloat") == 2 * 4 - in_blocks + 2 * (2 - split)
    assert kinds.count("MatMul") == 1  # the mean
    assert "GatherBlockQuantized" in kinds


def test_equal_inputs_are_quantized_once(tiny_models: Path) -> None:
    model = onnx.load(str(tiny_models / MODEL / "int8" / "model.onnx"), load_external_data=False)
    num_rounded = 2 * 4 - len(contract.load(tiny_models / MODEL).mixture)
    assert [node.op_type for node in model.graph.node].count("QuantizeLinear") == num_rounded


@pytest.mark.parametrize("spread", [0.2, 2.0, 20.0])
def test_rows_of_a_gelu_use_the_steps_that_it_never_reaches_below_zero(tmp_path: Path, spread: float) -> None:
    """The twin hides the operator behind an Identity, so that its rows are centred."""
    rows = np.random.default_rng(5).normal(size=(64, 256)).astype(np.float32) * np.float32(spread)
    errors = []
    for kind in ("BiasGelu", "Identity"):
        graph = Graph(kind, is_flat=True)
        graph.input("rows", np.float32, ("rows", 256))
        bias = graph.constant("bias", constant_of("bias", np.zeros(256, np.float32)))
        last = activated = graph.op("BiasGelu", "gelu", ["rows", bias])
        if kind == "Identity":
            last = graph.op(kind, "hidden", [activated])
        weight = graph.constant("weight", constant_of("weight", np.eye(256, dtype=np.float32)))
        graph.op("MatMul", "product", [last, weight])
        for name in (activated, "product"):
            graph.output(name, ("rows", 256))
        (tmp_path / kind).mkdir()
        write_graphs(tmp_path / kind, "int8", {"model": quantize(graph, Precision.INT8)}, lambda _: None)
        session = Session(tmp_path / kind / "int8" / "model.onnx", SessionSettings(num_threads=1))
        exact, near = session.run({"rows": rows}, [activated, "product"])
        assert exact.min() > min(LOWEST.values())
        errors.append(np.abs(near - exact).max(axis=1))
    ours, centred = (float(np.mean(error)) for error in errors)
    coarsest = -LOWEST["BiasGelu"] / STEPS_BELOW_ZERO  # the step of rows that hold only small values
    assert ours < max(centred * 0.7, coarsest * 0.51)


# int8: without VNNI the kernel adds pairs of products in 16 bits, which random weights overflow at times.
@pytest.mark.parametrize(("precision", "lowest"), [(Precision.INT8, 0.95), (Precision.INT8_BLOCK, 0.999)])
def test_a_quantized_graph_is_near_fp32(tiny_models: Path, precision: Precision, lowest: float) -> None:
    inputs = pad([np.arange(5, 45)])
    settings = SessionSettings(num_threads=1)
    exact, near = (
        Session(tiny_models / MODEL / name / "model.onnx", settings).run(inputs, ["pooled"])[0][0]
        for name in (Precision.FP32, precision)
    )
    cosine = float(exact @ near / np.linalg.norm(exact) / np.linalg.norm(near))
    assert lowest < cosine < 1.0
    assert not np.array_equal(exact, near)


def test_a_row_of_zeros_survives_int8(tiny_models: Path) -> None:
    """The run-time scale of a row is its largest value: an all-zero row must not become NaN."""
    session = Session(tiny_models / MODEL / "int8" / "model.onnx", SessionSettings(num_threads=1))
    (pooled,) = session.run(pad([np.array([0])]), ["pooled"])
    assert np.isfinite(pooled).all()


def test_flattened_values_have_a_shape(tiny_models: Path) -> None:
    """Without one ONNX Runtime compares them with every dead value while it plans memory: slow to open."""
    graph = onnx.load(tiny_models / MODEL / "int8" / "model.onnx", load_external_data=False).graph
    known = {value.name: value.type.tensor_type.shape.dim for value in graph.value_info}
    reshaped = [node.output[0] for node in graph.node if node.op_type == "Reshape"]
    assert reshaped
    for name in reshaped:
        *leading, size = known[name]
        assert [dim.dim_param for dim in leading] in (["rows"], ["batch", "tokens"])
        assert size.dim_value > 0
