"""What Qwen-family graphs compute and store: late layers, the word table, quantized forms, weights."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper
from safetensors.numpy import load_file

from convert.bake import BakeRequest, Verification, bake
from convert.catalog import RECIPES
from convert.recipe import DEFAULT_PRECISIONS
from service import host
from service.manifest import Precision
from service.session import Session, SessionSettings, pad
from tests import qwen, xlmr
from tests.qwen import JINA_CODE, JINA_RERANKER, QWEN3_EMBEDDING, QWEN3_RERANKER, SIZES

NAMES = (JINA_CODE, QWEN3_EMBEDDING, QWEN3_RERANKER, JINA_RERANKER)
QUANTIZED = (Precision.INT8, Precision.INT8_BLOCK)
OUTPUTS = {
    JINA_CODE: "pooled", QWEN3_EMBEDDING: "pooled", QWEN3_RERANKER: "scores", JINA_RERANKER: "projected",
}  # fmt: skip
HEADS = {QWEN3_RERANKER: ("answer",), JINA_RERANKER: ("projector.0.weight", "projector.2.weight")}
LINEAR_OPERATORS = {Precision.INT8: "MatMulIntegerToFloat", Precision.INT8_BLOCK: "MatMulNBits"}
LINEAR_LAYERS = 7  # of a decoder's layer: queries, keys, values, output, gate, up, down
LATE_LINEARS = 4  # of the last of them: output, gate, up, down
INPUTS_OF_LINEARS = 4  # of a decoder's layer: normed, context, normed again, gated
INLINE_BYTES = 1024  # what a constant in the graph file may have at most
ROWS, TOKENS, DOCUMENTS = 3, 37, 4  # sizes that nothing else in a graph has
# int8: without VNNI the kernel adds pairs of products in 16 bits, which random weights overflow at times.
LOWEST_COSINE = {
    Precision.INT8: 0.98 if host.instruction_set() in host.FAST_INT8 else 0.7,
    Precision.INT8_BLOCK: 0.99,
}


@pytest.fixture(scope="module")
def models(qwen_sources: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("models")
    for name in NAMES:
        request = BakeRequest(out=out, source=str(qwen_sources / name), verification=Verification.SKIP)
        bake(RECIPES[name], request)
    return out


def texts_of(qwen_sources: Path, name: str) -> list[np.ndarray]:
    """Draw texts of one length, each with as many markers where the model reads markers."""
    texts = np.random.default_rng(5).integers(0, 300, (ROWS, TOKENS))
    if name == JINA_RERANKER:
        made = qwen.tokenizer((qwen.SCORE_MARKER, qwen.DOCUMENT_MARKER, qwen.QUERY_MARKER))
        texts[:, 5 : 5 + 3 * DOCUMENTS : 3] = qwen.token_id(made, qwen.DOCUMENT_MARKER)
        texts[:, -2] = qwen.token_id(made, qwen.QUERY_MARKER)
    return list(texts)


def graph_of(models: Path, name: str, precision: Precision = Precision.FP32) -> onnx.GraphProto:
    model = onnx.load(str(models / name / precision / "model.onnx"), load_external_data=False)
    return model.graph


def shapes_of(models: Path, name: str, texts: list[np.ndarray]) -> dict[str, tuple[int, ...]]:
    """Run the fp32 graph with every value as an output; return their shapes."""
    model = onnx.load(str(models / name / "fp32" / "model.onnx"))
    names = [value for node in model.graph.node for value in node.output if value]
    known = {output.name for output in model.graph.output}
    model.graph.output.extend(onnx.ValueInfoProto(name=value) for value in names if value not in known)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    computed = session.run(names, dict(pad(texts)))
    return {value: np.shape(array) for value, array in zip(names, computed, strict=True)}


def linear_layers(graph: onnx.GraphProto) -> dict[str, str]:
    """Return the output of every linear layer by the name of its weight."""
    constants = {tensor.name for tensor in graph.initializer}
    return {
        node.input[1]: node.output[0]
        for node in graph.node
        if node.op_type == "MatMul" and node.input[1] in constants
    }


@pytest.mark.parametrize("name", NAMES)
def test_the_last_layer_ends_with_the_tokens_that_are_read(
    qwen_sources: Path, models: Path, name: str
) -> None:
    """Queries, keys and values are of all tokens; what follows attention in the last layer is not."""
    shapes = shapes_of(models, name, texts_of(qwen_sources, name))
    num_kept = ROWS * (DOCUMENTS + 1 if name == JINA_RERANKER else 1)
    last = f"layers.{SIZES[name].layers - 1}."
    late = (f"{last}self_attn.o_proj", f"{last}mlp.")
    layers = linear_layers(graph_of(models, name))
    assert sum(weight.startswith(late) for weight in layers) == LATE_LINEARS
    for weight, output in layers.items():
        is_late = weight.startswith(late) or weight in HEADS.get(name, ())
        assert shapes[output][0] == (num_kept if is_late else ROWS * TOKENS), weight


@pytest.mark.parametrize("name", NAMES)
def test_no_value_behind_the_last_attention_has_the_size_of_a_text(
    qwen_sources: Path, models: Path, name: str
) -> None:
    shapes = shapes_of(models, name, texts_of(qwen_sources, name))
    nodes = list(graph_of(models, name).node)
    (attention,) = [node for node in nodes if node.op_type == "GroupQueryAttention"][-1:]
    reached = {attention.output[0]}
    for node in nodes:
        if reached & {*node.input}:
            reached |= {*node.output} - {""}
    behind = {
        value for node in nodes if reached & {*node.input} and node.op_type != "Reshape"
        for value in node.output if value
    }  # fmt: skip
    assert LATE_LINEARS < len(behind) < len(nodes) / 2
    assert not [value for value in behind if {TOKENS, ROWS * TOKENS} & {*shapes[value]}]


@pytest.mark.parametrize("name", NAMES)
def test_attention_asks_for_keys_and_values_too(models: Path, name: str) -> None:
    """Without these outputs ONNX Runtime takes a kernel that needs tokens x tokens memory."""
    nodes = [node for node in graph_of(models, name).node if node.op_type == "GroupQueryAttention"]
    assert len(nodes) == SIZES[name].layers
    assert all(len([value for value in node.output if value]) == 3 for node in nodes)


@pytest.mark.parametrize("name", NAMES)
def test_what_attention_caches_is_read_in_its_layer(models: Path, name: str) -> None:
    """A value that is on nobody's way to the result stays in memory until the end of the run."""
    nodes = list(graph_of(models, name).node)
    for attention in (node for node in nodes if node.op_type == "GroupQueryAttention"):
        context, *caches = attention.output
        (reshape,) = [node for node in nodes if context in node.input]
        reached = {reshape.input[1]}  # all that the shape of the context is made of
        for node in reversed(nodes):
            if reached & {*node.output}:
                reached |= {*node.input}
        assert reached >= {*caches}


@pytest.mark.parametrize("name", NAMES)
def test_no_value_has_the_size_of_the_vocabulary(qwen_sources: Path, models: Path, name: str) -> None:
    shapes = shapes_of(models, name, texts_of(qwen_sources, name))
    assert not [value for value, shape in shapes.items() if SIZES[name].rows in shape]
    graph = graph_of(models, name)
    tables = {tensor.name for tensor in graph.initializer if SIZES[name].rows in tensor.dims}
    readers = [(node.op_type, node.input[0]) for node in graph.node if tables & {*node.input}]
    assert len(tables) == 1
    assert readers == [("Gather", *tables)]


@pytest.mark.parametrize("tied", [True, False])
def test_the_head_of_a_reranker_is_one_column(tmp_path: Path, tied: bool) -> None:
    source = qwen.write_qwen3_reranker(tmp_path / "checkpoint", tied=tied)
    bundle = xlmr.bake_tiny(tmp_path / "models", QWEN3_RERANKER, source)
    stored = load_file(source / "model.safetensors")
    table = stored["model.embed_tokens.weight" if tied else "lm_head.weight"].astype(np.float32)
    yes, no = (qwen.token_id(qwen.tokenizer(), word) for word in ("yes", "no"))
    column = constant_of(bundle.parent, QWEN3_RERANKER, Precision.FP32, "answer")
    assert np.array_equal(column, (table[yes] - table[no])[:, None])
    sizes = [tensor.dims for tensor in graph_of(bundle.parent, QWEN3_RERANKER).initializer]
    assert [*table.shape] in sizes
    assert sum(len(table) in size for size in sizes) == 1


@pytest.mark.parametrize("precision", QUANTIZED)
@pytest.mark.parametrize("name", NAMES)
def test_every_linear_layer_of_the_decoder_is_quantized_and_the_head_is_not(
    models: Path, name: str, precision: Precision
) -> None:
    graph, exact = graph_of(models, name, precision), graph_of(models, name)
    kinds, before = (Counter(node.op_type for node in part.node) for part in (graph, exact))
    heads = HEADS.get(name, ())
    assert kinds[LINEAR_OPERATORS[precision]] == SIZES[name].layers * LINEAR_LAYERS
    assert [node.input[1] for node in graph.node if node.op_type == "MatMul"] == [*heads]
    assert (kinds["GatherBlockQuantized"], kinds["Reshape"]) == (1, before["Reshape"])
    if precision == Precision.INT8:
        assert kinds["QuantizeLinear"] == SIZES[name].layers * INPUTS_OF_LINEARS
    for head in heads:
        stored, expected = (constant_of(models, name, each, head) for each in (precision, Precision.FP32))
        assert stored.dtype == np.float32
        assert np.array_equal(stored, expected)


def constant_of(models: Path, name: str, precision: Precision, constant: str) -> np.ndarray:
    folder = models / name / precision
    graph = onnx.load(str(folder / "model.onnx"), load_external_data=False).graph
    (tensor,) = (tensor for tensor in graph.initializer if tensor.name == constant)
    found: np.ndarray = numpy_helper.to_array(tensor, base_dir=str(folder))
    return found


@pytest.mark.parametrize("precision", QUANTIZED)
@pytest.mark.parametrize("name", NAMES)
def test_a_quantized_graph_is_near_fp32(
    qwen_sources: Path, models: Path, name: str, precision: Precision
) -> None:
    inputs, settings = pad(texts_of(qwen_sources, name)), SessionSettings(num_threads=1)
    exact, near = (
        Session(models / name / each / "model.onnx", settings).run(inputs, [OUTPUTS[name]])[0].ravel()
        for each in (Precision.FP32, precision)
    )
    cosine = float(exact @ near / np.linalg.norm(exact) / np.linalg.norm(near))
    assert LOWEST_COSINE[precision] < cosine < 1.0
    assert not np.array_equal(exact, near)


@pytest.mark.parametrize("precision", DEFAULT_PRECISIONS)
@pytest.mark.parametrize("name", NAMES)
def test_weights_are_outside_the_graph_file(models: Path, name: str, precision: Precision) -> None:
    folder = models / name / precision
    size = (folder / "weights.data").stat().st_size
    places = []
    for tensor in graph_of(models, name, precision).initializer:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            record = {entry.key: entry.value for entry in tensor.external_data}
            places.append((int(record["offset"]), int(record["offset"]) + int(record["length"])))
        else:
            assert numpy_helper.to_array(tensor).nbytes <= INLINE_BYTES, tensor.name
    assert len(places) > SIZES[name].layers * LINEAR_LAYERS
    assert all(begin < end <= size for begin, end in places)
    assert (folder / "model.onnx").stat().st_size < 100_000
