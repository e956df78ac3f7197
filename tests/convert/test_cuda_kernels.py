"""Every node of the graphs that CUDA may run has a CUDA kernel for its types."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

from convert.catalog import RECIPES
from convert.graph import Graph, constant_of, node, to_model
from convert.recipe import Architecture
from service import manifest as contract
from service.manifest import Precision
from tests import cuda_kernels, qwen, qwen_vl, tiny
from tests.cuda_kernels import may_be_on_cpu, without_kernel
from tests.tiny import WRITERS

HALVES = (Precision.FP16, Precision.BF16)
ENCODERS = [
    name
    for name in WRITERS
    if RECIPES[name].architecture in (Architecture.BERT, Architecture.XLM_ROBERTA, Architecture.JINA_V3)
]
BAKED = (Precision.FP32, Precision.INT8, Precision.INT8_BLOCK, *HALVES)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("cuda")
    for model in WRITERS:
        tiny.write_and_bake(out, model, BAKED)
    return out


def graphs(models: Path, model: str, precision: Precision) -> list[onnx.ModelProto]:
    manifest = contract.load(models / model)
    files = [variant.file for variant in manifest.variants if variant.precision == precision]
    assert files
    return [onnx.load(str(models / model / file), load_external_data=False) for file in files]


@pytest.mark.parametrize("precision", HALVES)
@pytest.mark.parametrize("model", WRITERS)
def test_every_node_of_16_bits_has_a_kernel(models: Path, model: str, precision: Precision) -> None:
    for graph in graphs(models, model, precision):
        assert without_kernel(graph) == []


@pytest.mark.parametrize("precision", [Precision.FP32, Precision.INT8_BLOCK])
@pytest.mark.parametrize("model", ENCODERS)
def test_encoders_have_kernels_in_fp32_and_8_bit_blocks(
    models: Path, model: str, precision: Precision
) -> None:
    for graph in graphs(models, model, precision):
        assert without_kernel(graph) == []


def test_the_vision_tower_has_kernels(models: Path) -> None:
    """One file in float32 for all precisions."""
    graph = onnx.load(str(models / qwen_vl.JINA_V4 / "vision" / "model.onnx"), load_external_data=False)
    assert without_kernel(graph) == []


@pytest.mark.parametrize("precision", [Precision.FP32, Precision.INT8_BLOCK])
def test_a_decoder_of_32_bits_lacks_attention_alone(models: Path, precision: Precision) -> None:
    (graph,) = graphs(models, qwen.QWEN3_EMBEDDING, precision)
    missing = without_kernel(graph)
    assert len(missing) == qwen.EMBEDDING_SIZES.layers
    assert all(line.startswith("GroupQueryAttention") for line in missing)


def test_plain_int8_has_no_kernels(models: Path) -> None:
    (graph,) = graphs(models, tiny.MINILM, Precision.INT8)
    assert any(line.startswith("MatMulIntegerToFloat") for line in without_kernel(graph))


def one_node(kind: str, dtype: onnx.TensorProto.DataType, *others: str) -> onnx.ModelProto:
    graph = Graph("one")
    graph.inputs.append(helper.make_tensor_value_info("x", dtype, ["rows"]))
    graph.nodes.append(node(kind, "y", ["x", *others], ["y"]))
    graph.outputs.append(helper.make_tensor_value_info("y", dtype, ["rows"]))
    return to_model(graph, [])


@pytest.mark.parametrize(
    ("kind", "dtype", "others", "is_missing"),
    [
        ("Cos", onnx.TensorProto.FLOAT16, (), False),
        ("Cos", onnx.TensorProto.BFLOAT16, (), True),
        ("QuickGelu", onnx.TensorProto.BFLOAT16, (), False),
        ("MatMul", onnx.TensorProto.INT32, ("x",), True),
        ("Erfc", onnx.TensorProto.FLOAT, (), True),
    ],
    ids=lambda value: str(value),
)
def test_an_operator_without_a_kernel_is_found(
    kind: str, dtype: onnx.TensorProto.DataType, others: tuple[str, ...], is_missing: bool
) -> None:
    assert bool(without_kernel(one_node(kind, dtype, *others))) == is_missing


def test_mixed_types_are_found() -> None:
    graph = Graph("one")
    graph.input("x", np.float32, ("rows", 2))
    weight = graph.constant("weight", constant_of("weight", np.zeros((2, 2), np.float16)))
    graph.op("MatMul", "y", ["x", weight])
    graph.output("y", ("rows", 2))
    stored = [onnx.numpy_helper.from_array(np.zeros((2, 2), np.float16), "weight")]
    assert without_kernel(to_model(graph, stored)) == ["MatMul y of float, float16"]


def test_only_shapes_may_be_on_the_cpu() -> None:
    assert may_be_on_cpu("Concat", ["int64", "int64"])
    assert not may_be_on_cpu("Concat", ["float16"])
    assert not may_be_on_cpu("MatMul", ["int64"])


def test_what_the_optimizer_fuses_on_cuda_has_kernels_too() -> None:
    """Add and LayerNormalization become one node of the same type."""
    rows = cuda_kernels.Kernels(cuda_kernels.read(), 21).rows["com.microsoft"]
    assert {"float16", "bfloat16", "float"} <= set(rows["SkipLayerNormalization"]["types"]["T"])
