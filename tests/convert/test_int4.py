"""Graphs in 4 bits: run by ONNX Runtime, near fp32 on real weights, for every kind of model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest

from convert import build, bundle, quality, running, texts
from convert.bake import BakeRequest, Verification, bake
from convert.calibrated import LinearInput
from convert.catalog import RECIPES
from convert.checkpoint import Checkpoint
from convert.four_bits import BLOCK_SIZE, quantize_four_bits
from convert.graph import Graph, constant_of
from convert.quantize import quantize
from convert.source import locate
from service.manifest import Manifest, Precision
from service.session import Session, SessionSettings, pad
from service.tokenization import load
from tests import qwen, qwen_vl, xlmr
from tests.conftest import MODEL
from tests.convert.test_four_bits import activations, restored, seen, weights

SETTINGS = SessionSettings(num_threads=2)
LOWEST_MEAN_COSINE, LOWEST_OVERLAP = 0.96, 0.85  # what 4 bits must keep
WRITERS: dict[str, Callable[..., Path]] = {
    xlmr.V3: xlmr.write_jina_v3,
    xlmr.BGE_M3: xlmr.write_bge_m3,
    xlmr.BGE_RERANKER: xlmr.write_bge_reranker,
    qwen_vl.JINA_V4: qwen_vl.write_jina_v4,
    **qwen.WRITERS,
}
TEXTS = [" ".join(xlmr.WORDS[: 3 + number % 11]) + f" {number}" for number in range(16)]


# --- one layer --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_inputs", [64, 150, 384])
@pytest.mark.parametrize("num_rows", [1, 5])
def test_onnx_runtime_multiplies_by_the_weights_as_packed(
    tmp_path: Path, num_inputs: int, num_rows: int
) -> None:
    weight, tokens = weights(num_inputs), activations(num_inputs)
    graph = Graph("layer")
    graph.input("hidden", np.float32, ("rows", num_inputs))
    graph.op("MatMul", "product", ["hidden", graph.constant("weight", constant_of("weight", weight))])
    graph.output("product", ("rows", weight.shape[1]))
    rewritten = quantize(graph, Precision.INT4, {"hidden": seen(tokens)})
    assert [node.op_type for node in rewritten.nodes] == ["MatMulNBits"]
    bundle.write_graphs(tmp_path, "int4", {"model": rewritten}, lambda count: None)
    hidden = tokens[:num_rows]
    (product,) = Session(tmp_path / "int4" / "model.onnx", SETTINGS).run({"hidden": hidden}, ["product"])
    expected = hidden @ restored(quantize_four_bits(weight, seen(tokens)), num_inputs)
    # 8 bits of the activations: half a step of a block's largest value, times every weight.
    assert np.abs(product - expected).max() < 0.01 * np.abs(hidden).max() * np.abs(weight).sum(axis=0).max()
    cosines = (product * expected).sum() / np.linalg.norm(product) / np.linalg.norm(expected)
    assert cosines > 0.9999


def test_what_calibration_showed_is_found_by_the_name_of_the_value(tmp_path: Path) -> None:
    weight, tokens = weights(64), activations(64)
    graph = Graph("layer")
    graph.input("hidden", np.float32, ("rows", 64))
    graph.op("MatMul", "product", ["hidden", graph.constant("weight", constant_of("weight", weight))])
    blocks = [
        quantize(graph, Precision.INT4, inputs).constants["product.blocks"].read()
        for inputs in ({"hidden": seen(tokens)}, {"other": seen(tokens)}, {})
    ]
    assert not np.array_equal(blocks[0], blocks[1])
    assert np.array_equal(blocks[1], blocks[2])


# --- the default model ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Real:
    """The default model in float32 and texts: to learn its activations from, and others to measure on."""

    folder: Path
    graph: Graph
    learned: list[np.ndarray]
    measured: list[np.ndarray]

    def vectors(self, graph: Graph, name: str) -> np.ndarray:
        bundle.write_graphs(self.folder, name, {"model": graph}, lambda count: None)
        session = Session(self.folder / name / "model.onnx", SETTINGS)
        rows = np.concatenate([session.run(pad([ids]), ["pooled"])[0] for ids in self.measured])
        return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True))

    def inputs(self) -> dict[str, LinearInput]:
        """Run the texts to learn from; keep what enters each linear layer."""
        names = {
            node.input[0]
            for node in self.graph.nodes
            if node.op_type == "MatMul" and node.input[1] in self.graph.constants
        }
        shown = Graph(self.graph.name, nodes=self.graph.nodes, constants=self.graph.constants)
        shown.inputs = self.graph.inputs
        for name in names:
            shown.output(name, ("batch", "tokens", "size"))
        bundle.write_graphs(self.folder, "shown", {"model": shown}, lambda count: None)
        session = Session(self.folder / "shown" / "model.onnx", SETTINGS)
        tokens: dict[str, list[np.ndarray]] = {name: [] for name in names}
        for ids in self.learned:
            for name, values in zip(names, session.run(pad([ids]), list(names)), strict=True):
                tokens[name].append(values[0])
        return {name: sampled(np.concatenate(values)) for name, values in tokens.items()}


def sampled(tokens: np.ndarray) -> LinearInput:
    order = np.random.default_rng(0).permutation(len(tokens))
    return seen(tokens[order])


@pytest.fixture(scope="module")
def real(real_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Real:
    recipe = RECIPES[MODEL]
    folder, _ = locate(recipe, None, offline=True)
    (graph,) = build.build(recipe, Checkpoint(folder, ()), (None,)).values()
    tokenizer, limit = load(real_models / MODEL / "tokenizer.json"), recipe.manifest.max_tokens
    learned, judged = (
        [text.ids for text in tokenizer.encode(found, limit)]
        for found in (texts.search(), texts.evaluation())
    )
    return Real(tmp_path_factory.mktemp("int4"), graph, learned, judged)


def test_the_default_model_keeps_what_4_bits_must_keep(real: Real) -> None:
    exact = real.vectors(real.graph, "fp32")
    inputs = real.inputs()
    graph = quantize(real.graph, Precision.INT4, inputs)
    found = quality.of_vectors(real.vectors(graph, "int4"), exact)
    assert found.mean_cosine >= LOWEST_MEAN_COSINE + 0.01
    assert found.top10_overlap is not None
    assert found.top10_overlap >= LOWEST_OVERLAP + 0.03
    blind = quality.of_vectors(real.vectors(quantize(real.graph, Precision.INT4), "blind"), exact)
    assert found.mean_cosine > blind.mean_cosine
    linear = [name for name in graph.constants if name.endswith((".blocks", ".scales", ".zeros"))]
    # 4 bits, and a scale of 32 and a zero point of 4 bits for every 32.
    num_bytes = sum(graph.constants[name].num_bytes for name in linear if "word" not in name)
    assert num_bytes * 8 == 6 * 12 * 384 * 384 * (4 + 36 / BLOCK_SIZE)


# --- every kind of model ----------------------------------------------------------------------------------


def bake_int4(model: str, source: Path, out: Path) -> Manifest:
    request = BakeRequest(
        out=out, source=str(source), precisions=(Precision.INT4,), verification=Verification.SKIP
    )
    return bake(RECIPES[model], request)


@pytest.mark.parametrize("model", WRITERS)
def test_every_kind_of_model_bakes_to_the_same_bytes_and_answers(model: str, tmp_path: Path) -> None:
    source = WRITERS[model](tmp_path / "checkpoint")
    manifest = bake_int4(model, source, tmp_path / "models")
    assert manifest.files == bake_int4(model, source, tmp_path / "again").files
    for variant in manifest.variants:
        folder = tmp_path / "models" / model
        kinds = [
            node.op_type for node in onnx.load(folder / variant.file, load_external_data=False).graph.node
        ]
        assert "MatMulNBits" in kinds
        opened = running.open_variant(folder, manifest, variant)
        answers = running.answers(opened, variant, TEXTS, lambda count: None)
        assert np.isfinite(answers).all()
        assert np.ptp(answers, axis=0).max() > 0  # texts are told apart
