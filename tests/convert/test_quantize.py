"""Quantized tensors and graphs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from convert.rounding import BLOCK_SIZE, quantize_blocks, quantize_columns
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


@pytest.mark.parametrize(
    ("precision", "operator"),
    [(Precision.INT8, "MatMulIntegerToFloat"), (Precision.INT8_BLOCK, "MatMulNBits")],
)
def test_every_linear_layer_and_the_word_table_are_rewritten(
    tiny_models: Path, precision: Precision, operator: str
) -> None:
    model = onnx.load(str(tiny_models / MODEL / precision / "model.onnx"), load_external_data=False)
    kinds = [node.op_type for node in model.graph.node]
    assert kinds.count(operator) == 2 * 4  # layers x (QKV, output, up, down)
    assert kinds.count("MatMul") == 1  # the mean
    assert "GatherBlockQuantized" in kinds


def test_equal_inputs_are_quantized_once(tiny_models: Path) -> None:
    model = onnx.load(str(tiny_models / MODEL / "int8" / "model.onnx"), load_external_data=False)
    assert [node.op_type for node in model.graph.node].count("QuantizeLinear") == 2 * 4


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
