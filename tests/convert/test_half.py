"""Graphs in fp16 and bf16: their weights and types, and what they compute by a stand-in."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, shape_inference
from safetensors.numpy import load_file, save_file

from convert import emulation, half, texts, verify
from convert.bake import BakeRequest, Verification, bake
from convert.bundle import write_graphs
from convert.catalog import RECIPES
from convert.graph import Constant, Graph, constant_in_parts, constant_of
from convert.quantize import quantize
from service import manifest as contract
from service.errors import BakeError
from service.manifest import Output, Precision, Variant
from service.session import Session, SessionSettings, pad
from tests import tiny, xlmr
from tests.tiny import MINILM, WRITERS

HALVES = (Precision.FP16, Precision.BF16)
TYPES = {Precision.FP16: onnx.TensorProto.FLOAT16, Precision.BF16: onnx.TensorProto.BFLOAT16}
STEPS = {Precision.FP16: 2.0**-11, Precision.BF16: 2.0**-8}  # of a value: the largest error of rounding it
LOWEST_COSINE = {Precision.FP16: 0.99999, Precision.BF16: 0.9995}
TEXTS = [" ".join(xlmr.WORDS[: 3 + number % 7]) + f" {number}" for number in range(14)]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A models folder with every kind of model in fp32 and the 16-bit formats, unmeasured."""
    out = tmp_path_factory.mktemp("half")
    for model in WRITERS:
        tiny.write_and_bake(out, model, (Precision.FP32, *HALVES))
    return out


def test_the_tiny_models_are_of_every_kind_of_the_catalog() -> None:
    def kind(name: str) -> object:
        recipe = RECIPES[name]
        return recipe.architecture, recipe.manifest.scoring, recipe.manifest.outputs, recipe.has_adapters

    assert {kind(name) for name in RECIPES} == {kind(name) for name in WRITERS}


def graphs_of(folder: Path, precision: Precision) -> Iterator[tuple[Variant, onnx.ModelProto]]:
    for variant in contract.load(folder).variants:
        if variant.precision == precision:
            yield variant, onnx.load(str(folder / variant.file))


@pytest.mark.parametrize("precision", HALVES)
@pytest.mark.parametrize("model", WRITERS)
def test_weights_are_of_16_bits_and_outputs_of_32(models: Path, model: str, precision: Precision) -> None:
    exact = {variant.task: graph for variant, graph in graphs_of(models / model, Precision.FP32)}
    for variant, graph in graphs_of(models / model, precision):
        floats = [value for value in graph.graph.initializer if value.data_type in (1, TYPES[precision])]
        narrow = {value.name for value in floats if value.data_type == TYPES[precision]}
        heads = ("classifier", "projector", "multi_vector", "sparse", "colbert", "answer", "frequencies")
        wide = {value.name for value in floats} - narrow
        assert all(name.startswith((*heads, "words.adapter.columns")) for name in wide), wide
        outputs, known = graph.graph.output, exact[variant.task].graph.output
        assert [value.name for value in outputs] == [value.name for value in known]
        assert {value.type.tensor_type.elem_type for value in outputs} == {onnx.TensorProto.FLOAT}
        assert list(graph.graph.input) == list(exact[variant.task].graph.input)


@pytest.mark.parametrize("precision", HALVES)
def test_weights_are_those_of_fp32_rounded_to_the_nearest(models: Path, precision: Precision) -> None:
    (_, exact), (_, near) = (next(graphs_of(models / MINILM, kind)) for kind in (Precision.FP32, precision))
    expected = {value.name: numpy_helper.to_array(value) for value in exact.graph.initializer}
    compared = 0
    for value in near.graph.initializer:
        if value.data_type == TYPES[precision]:
            original = expected[value.name.removesuffix(f".{precision}")]
            error = np.abs(numpy_helper.to_array(value).astype(np.float32) - original)
            assert (error <= np.abs(original) * STEPS[precision] + 2.0**-25).all()
            compared += 1
    assert compared > 20


@pytest.mark.parametrize("precision", HALVES)
@pytest.mark.parametrize("model", WRITERS)
def test_types_fit_together(models: Path, model: str, precision: Precision) -> None:
    """Casts stand where they must: ONNX's own inference finds no node that mixes types."""
    for _, graph in graphs_of(models / model, precision):
        shape_inference.infer_shapes(graph, check_type=True, strict_mode=False)


def test_tasks_share_what_they_share(models: Path) -> None:
    sizes = {
        precision: (models / tiny.JINA_V3 / precision / "weights.data").stat().st_size
        for precision in (Precision.FP32, *HALVES)
    }
    num_tasks = len(contract.load(models / tiny.JINA_V3).task_variants)
    assert all(sizes[precision] < 0.7 * sizes[Precision.FP32] for precision in HALVES)
    (_, graph) = next(graphs_of(models / tiny.JINA_V3, Precision.FP16))
    own = sum(len(value.raw_data) for value in graph.graph.initializer)
    assert sizes[Precision.FP16] < 0.8 * num_tasks * own


def run(folder: Path, precision: Precision, output: Output) -> np.ndarray:
    manifest = contract.load(folder)
    variant = next(one for one in manifest.variants if one.precision == precision)
    with emulation.runnable(folder, manifest, variant) as (_, shown):
        session = Session(folder / shown.file, SessionSettings(num_threads=1))
        (found,) = session.run(pad([np.arange(5, 45), np.arange(50, 60)]), [output])
    return np.asarray(found)


@pytest.mark.parametrize("precision", HALVES)
def test_a_stand_in_rounds_every_step_and_stays_near(models: Path, precision: Precision) -> None:
    exact, near = (
        run(models / MINILM, kind, Output.POOLED).astype(np.float64) for kind in (Precision.FP32, precision)
    )
    lengths = np.linalg.norm(exact, axis=1) * np.linalg.norm(near, axis=1)
    cosines = np.einsum("nd,nd->n", exact, near) / lengths
    assert (cosines >= LOWEST_COSINE[precision]).all()
    assert (cosines <= 1 - STEPS[precision] ** 2 / 100).all()
    states = run(models / MINILM, precision, Output.TOKEN_EMBEDDINGS)
    dtype = half.FORMATS[precision].dtype
    assert np.array_equal(states, states.astype(dtype).astype(np.float32))


@pytest.mark.parametrize("precision", HALVES)
def test_a_stand_in_rounds_between_two_nodes(tmp_path: Path, precision: Precision) -> None:
    """(1 + step)^2 - (1 + 2 step) is step^2, which no product of 16 bits holds beside 1: it is 0."""
    step = np.float32(4 * STEPS[precision])
    graph = Graph("one", is_flat=True)
    graph.input("x", np.float32, ("rows", 1))
    factor = graph.constant("factor", constant_of("factor", np.array([[1 + step]], np.float32)))
    less = graph.constant("less", constant_of("less", np.array([-1 - 2 * step], np.float32)))
    graph.op("Add", Output.POOLED, [graph.op("MatMul", "product", ["x", factor]), less])
    graph.output(Output.POOLED, ("rows", 1))
    found = {}
    for kind in (Precision.FP32, precision):
        write_graphs(tmp_path, kind, {"model": quantize(graph, kind)}, lambda count: None)
        variant = Variant(precision=kind, file=f"{kind}/model.onnx")
        manifest = replace(RECIPES[MINILM].manifest, variants=(variant,))
        with emulation.runnable(tmp_path, manifest, variant) as (_, shown):
            session = Session(tmp_path / shown.file, SessionSettings(num_threads=1))
            (values,) = session.run({"x": np.array([[1 + step]], np.float32)}, [Output.POOLED])
        found[kind] = values.item()
    assert found == {Precision.FP32: pytest.approx(step**2), precision: 0.0}


def test_nothing_of_a_stand_in_stays(models: Path) -> None:
    folder = models / MINILM
    manifest = contract.load(folder)
    before = sorted(path.name for path in folder.rglob("*"))
    with (
        pytest.raises(RuntimeError, match="stopped"),
        emulation.runnable(folder, manifest, manifest.variants[-1]),
    ):
        assert sorted(path.name for path in folder.rglob("*")) != before
        raise RuntimeError("stopped")
    assert sorted(path.name for path in folder.rglob("*")) == before


@pytest.mark.parametrize("model", WRITERS)
def test_every_model_is_measured_and_its_speed_is_not(
    tmp_path: Path, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for kind in ("search", "evaluation"):
        monkeypatch.setattr(f"convert.texts.{kind}", lambda: TEXTS)
    manifest = tiny.write_and_bake(tmp_path, model, (Precision.FP32, *HALVES), Verification.REQUIRE)
    for variant in manifest.variants:
        if variant.precision not in HALVES:
            continue
        assert variant.speed is None
        if variant.quality:
            assert LOWEST_COSINE[variant.precision] <= variant.quality.mean_cosine
        else:
            assert variant.rank_quality
            assert variant.rank_quality.worst_score_error < 0.03


def test_the_real_model_passes_its_floors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few = texts.evaluation()[:60]
    monkeypatch.setattr("convert.texts.evaluation", lambda: few)
    request = BakeRequest(
        out=tmp_path, precisions=(Precision.FP32, *HALVES), verification=Verification.REQUIRE
    )
    found = {variant.precision: variant for variant in bake(RECIPES[MINILM], request).variants}
    for precision, lowest in ((Precision.FP16, 0.9999), (Precision.BF16, 0.999)):
        assert found[precision].verified
        assert (quality := found[precision].quality) is not None
        assert quality.mean_cosine > lowest


@pytest.mark.parametrize("precision", HALVES)
def test_constants_are_rounded_in_parts_and_keep_their_shape(precision: Precision) -> None:
    values = np.random.default_rng(1).normal(size=(9, 4)).astype(np.float32)
    parts = constant_in_parts("table", (9, 4), np.float32, lambda: iter([values[:5], values[5:]]))
    made = half.rounded(parts, precision)
    assert [len(part) for part in made.parts()] == [5, 4]
    assert np.array_equal(made.read(), values.astype(made.dtype))
    assert made.key == f"table:{precision}"
    assert made.num_bytes == 72


def one_layer(weight: np.ndarray) -> Graph:
    graph = Graph("one", is_flat=True)
    graph.input("x", np.float32, ("rows", len(weight)))
    product = graph.op("MatMul", "product", ["x", graph.constant("weight", constant_of("weight", weight))])
    graph.op("Identity", Output.POOLED, [product])
    graph.output(Output.POOLED, ("rows", weight.shape[1]))
    return graph


@pytest.mark.parametrize(
    ("precision", "value", "named"),
    [(Precision.FP16, 70_000.0, "take bf16"), (Precision.BF16, 3.4e38, "take fp32")],
)
def test_a_weight_that_overflows_is_named_with_the_remedy(
    precision: Precision, value: float, named: str
) -> None:
    graph = quantize(one_layer(np.array([[1.0], [value]], dtype=np.float32)), precision)
    constant: Constant = next(iter(graph.constants.values()))
    with pytest.raises(BakeError, match=rf"^weight has the value .*{precision} cannot hold.*{named}"):
        constant.read()


def test_65504_fits_fp16() -> None:
    made = half.rounded(constant_of("weight", np.array([65504.0], dtype=np.float32)), Precision.FP16)
    assert made.read().tolist() == [65504.0]


def test_activations_that_overflow_fp16_are_not_verified(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each weight fits, a sum of products does not: the bake goes on, bf16 is verified."""
    for kind in ("search", "evaluation"):
        monkeypatch.setattr(f"convert.texts.{kind}", lambda: TEXTS)
    source = tmp_path / ".checkpoints" / MINILM
    tiny.WRITERS[MINILM](source)
    fill(source, "encoder.layer.1.output.dense.bias", 60_000.0)
    fill(source, "encoder.layer.1.attention.output.LayerNorm.bias", 9_000.0)
    manifest = tiny.write_and_bake(tmp_path, MINILM, (Precision.FP32, *HALVES), Verification.REQUIRE)
    found = {variant.precision: variant for variant in manifest.variants}
    assert not found[Precision.FP16].verified
    assert found[Precision.FP16].quality is None
    assert found[Precision.BF16].quality is not None
    assert "fp16: NOT VERIFIED: computes values that are not finite" in "\n".join(verify.report(manifest))


def fill(folder: Path, name: str, value: float) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors[name] = np.full_like(tensors[name], value)
    save_file(tensors, folder / "model.safetensors")


def test_where_nothing_may_be_written_a_stand_in_finds_a_copy_of_the_weights(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = tempfile.NamedTemporaryFile

    def refusing(*, dir: Path, **others: Any) -> Any:
        if dir.is_relative_to(models):
            raise OSError(30, "Read-only file system")
        return original(dir=dir, **others)

    folder = models / MINILM
    manifest = contract.load(folder)
    variant = next(each for each in manifest.variants if each.precision == Precision.BF16)
    inputs = pad([np.arange(3, 20)])
    with emulation.runnable(folder, manifest, variant) as (_, shown):
        (expected,) = Session(folder / shown.file, SessionSettings(1)).run(inputs, [Output.POOLED])
    monkeypatch.setattr(emulation, "NamedTemporaryFile", refusing)
    with emulation.runnable(folder, manifest, variant) as (_, shown):
        assert not Path(shown.file).is_relative_to(models)
        (found,) = Session(folder / shown.file, SessionSettings(1)).run(inputs, [Output.POOLED])
    assert np.array_equal(found, expected)


def test_a_stand_in_that_a_killed_check_has_left_is_removed(models: Path) -> None:
    folder = models / MINILM
    manifest = contract.load(folder)
    variant = next(each for each in manifest.variants if each.precision == Precision.FP16)
    stale = folder / "fp16" / f"{emulation.PREFIX}stale.onnx"
    stale.write_bytes(b"")
    with emulation.runnable(folder, manifest, variant):
        assert not stale.exists()
