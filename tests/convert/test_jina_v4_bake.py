"""Bakes of jina-embeddings-v4 through the command: files of the bundle, the manifest, tasks, layouts."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from safetensors.numpy import load_file

from convert import quality, running
from convert.__main__ import main
from convert.catalog import RECIPES
from convert.recipe import DEFAULT_PRECISIONS
from service import files, multimodal, tokenization
from service import manifest as contract
from service.embedding import EmbeddingModel
from service.errors import BundleError
from service.manifest import Manifest, Output, Precision, Task
from service.options import EmbedOptions
from service.session import Session, SessionSettings
from service.vision import IMAGE_VECTORS
from service.windows import Patches, tower_inputs
from tests import qwen, qwen_vl, qwen_vl_reference, xlmr
from tests.qwen_vl import ADAPTERS, JINA_V4, NEWER, PUBLISHED, SIZES
from tests.qwen_vl_reference import Picture, Prompt, unit
from tests.xlmr import F32

TEXTS = [" ".join(xlmr.WORDS[: 3 + number % 11]) + f" {number}" for number in range(16)]
QUERY, PASSAGE = "Query: ", "Passage: "
TASKS = {
    "retrieval.query": ("retrieval", QUERY),
    "retrieval.passage": ("retrieval", PASSAGE),
    "text-matching": ("text-matching", QUERY),
    "code.query": ("code", QUERY),
    "code.passage": ("code", PASSAGE),
}
SIDES = {"retrieval": ("query", "passage"), "text-matching": (), "code": ("query", "passage")}
TOLERANCE = 5e-6
LOWEST_COSINE = {Precision.FP32: 0.999999, Precision.INT8: 0.7, Precision.INT8_BLOCK: 0.99}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return qwen_vl.write_jina_v4(tmp_path_factory.mktemp("v4") / "checkpoint")


@pytest.fixture(scope="module")
def measured(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A bundle of every precision and task, its figures measured."""
    out = tmp_path_factory.mktemp("models")
    with pytest.MonkeyPatch.context() as patch:
        for kind in ("search", "evaluation"):
            patch.setattr(f"convert.texts.{kind}", lambda: TEXTS)
        command(source, out, "--precision", "fp32,int8,int8-block", "--verify", "require")
    yield out / JINA_V4


def command(source: Path, out: Path, *options: str) -> None:
    assert main([JINA_V4, "--source", str(source), "--out", str(out), *options]) == 0


def baked(source: Path, out: Path, *options: str) -> Manifest:
    """Bake in fp32, unmeasured, as the command does; return the manifest."""
    command(source, out, "--precision", "fp32", "--verify", "skip", *options)
    return contract.load(out / JINA_V4)


def files_of(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


# --- the bundle -------------------------------------------------------------------------------------------


def test_every_precision_has_its_graphs_and_the_tower_is_there_once(measured: Path) -> None:
    expected = {"manifest.json", "tokenizer.json", "vision/model.onnx", "vision/weights.data"}
    for precision in DEFAULT_PRECISIONS:
        expected |= {f"{precision}/{task}.onnx" for task in ADAPTERS} | {f"{precision}/weights.data"}
    assert files_of(measured) == expected
    manifest = contract.load(measured)
    assert set(manifest.files) == expected - {"manifest.json"}
    files.check_hashes(measured, manifest.files)
    assert [path for path in measured.parent.iterdir() if path.name != JINA_V4] == [
        measured.parent / f".{JINA_V4}.lock"
    ]


def test_the_manifest_says_what_is_known_and_what_is_read(source: Path, measured: Path) -> None:
    manifest = contract.load(measured)
    assert manifest.tasks == tuple(
        Task(name=name, prefix=prefix, graph=None if graph == name else graph)
        for name, (graph, prefix) in TASKS.items()
    )
    assert manifest.task_variants == ADAPTERS
    assert manifest.default_task == "text-matching"
    assert manifest.outputs == (Output.POOLED, Output.TOKEN_EMBEDDINGS, Output.MULTIVECTOR)
    assert manifest.dimensions == manifest.default_dimensions == SIZES.text.hidden
    assert (manifest.vocabulary_size, manifest.max_tokens) == (SIZES.text.rows, SIZES.text.positions)
    assert manifest.truncatable
    assert manifest.late_chunking
    assert manifest.has_prompt_names
    assert set(manifest.source.sha256) == {
        "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", qwen_vl.ADAPTER_WEIGHTS,
    }  # fmt: skip
    for name, digest in manifest.source.sha256.items():
        assert files.sha256_of(source / name) == digest
    assert manifest.vision is not None
    assert manifest.vision.file == "vision/model.onnx"
    assert (manifest.vision.window_size, manifest.vision.merge_size, manifest.vision.patch_size) == (4, 2, 14)


def test_every_variant_is_measured(measured: Path) -> None:
    variants = contract.load(measured).variants
    assert [(each.precision, each.task, each.file) for each in variants] == [
        (precision, task, f"{precision}/{task}.onnx") for precision in DEFAULT_PRECISIONS for task in ADAPTERS
    ]
    for variant in variants:
        assert variant.quality is not None
        assert variant.speed is not None
        assert variant.speed.tokens_per_second > 0
        assert variant.quality.num_texts == len(TEXTS)
        is_exact = variant.precision == Precision.FP32
        assert variant.verified or not is_exact
        assert LOWEST_COSINE[variant.precision] < variant.quality.mean_cosine <= 1 + 1e-6
        assert (variant.quality.mean_cosine > 1 - 1e-6) == is_exact
        shown = variant.image_quality
        assert shown is not None
        assert (shown.num_texts, shown.top10_overlap) == (16, None)
        assert (shown.mean_cosine > 1 - 1e-6) == is_exact
        are_good = [quality.is_good(found, variant.precision) for found in (variant.quality, shown)]
        assert variant.verified == (is_exact or all(are_good))


def test_the_tower_stays_float32_in_every_precision(measured: Path) -> None:
    files = {precision: measured / precision / "code.onnx" for precision in DEFAULT_PRECISIONS}
    kinds = {
        folder: {node.op_type for node in onnx.load(str(file), load_external_data=False).graph.node}
        for folder, file in [("vision", measured / "vision" / "model.onnx"), *files.items()]
    }
    quantized = {"MatMulIntegerToFloat", "MatMulNBits", "GatherBlockQuantized"}
    assert not quantized & kinds["vision"]
    assert not quantized & kinds[Precision.FP32]
    assert quantized & kinds[Precision.INT8] == {"MatMulIntegerToFloat", "GatherBlockQuantized"}
    assert quantized & kinds[Precision.INT8_BLOCK] == {"MatMulNBits", "GatherBlockQuantized"}


@pytest.mark.parametrize("precision", [Precision.INT8, Precision.INT8_BLOCK])
def test_angles_and_the_projector_are_not_quantized(measured: Path, precision: Precision) -> None:
    graph = onnx.load(str(measured / precision / "code.onnx"), load_external_data=False).graph
    products = {node.name for node in graph.node if node.op_type == "MatMul"}
    assert products == {"angles", "pool.weighted", qwen_vl.PROJECTOR}


@pytest.mark.parametrize("precision", DEFAULT_PRECISIONS)
def test_an_image_is_near_the_reference_in_every_precision(
    source: Path, measured: Path, precision: Precision
) -> None:
    """The whole way: the tower, the prompt, a task's graph."""
    manifest = contract.load(measured)
    assert manifest.vision is not None
    grid, settings = (6, 10), SessionSettings(num_threads=2)
    patches = np.random.default_rng(3).standard_normal((60, SIZES.patch_values)).astype(np.float32)
    inputs, rows = tower_inputs([Patches(patches, grid)], manifest.vision)
    (vectors,) = Session(measured / manifest.vision.file, settings).run(inputs, [IMAGE_VECTORS])
    template = multimodal.template(tokenization.load(measured / "tokenizer.json"), manifest.vision)
    image = template.prompt(vectors[rows], (3, 5))
    graph = Session(measured / precision / "code.onnx", settings)
    (vector,) = graph.run(multimodal.stack([image], SIZES.text.hidden), ["pooled"])[0]
    reference = qwen_vl_reference.read(source, "code")
    (exact,) = reference.image_vectors([Picture(patches, grid)])
    states = reference.states(Prompt(image.ids, exact, (3, 5), image.begin))
    expected = states[image.begin - 1 : image.begin + 16].mean(0)
    assert unit(vector) @ unit(expected) > LOWEST_COSINE[precision]
    if precision == Precision.FP32:
        assert np.abs(unit(vector) - unit(expected)).max() < TOLERANCE


@pytest.mark.parametrize("task", TASKS)
def test_a_text_has_the_prefix_and_the_adapter_of_its_task(source: Path, measured: Path, task: str) -> None:
    graph, prefix = TASKS[task]
    manifest = contract.load(measured)
    (variant,) = (
        each for each in manifest.variants if (each.task, each.precision) == (graph, Precision.FP32)
    )
    model = running.open_variant(measured, manifest, variant)
    assert isinstance(model, EmbeddingModel)
    ids = np.array(qwen.tokenizer().encode(f"{prefix}the cat").ids)
    expected = unit(qwen_vl_reference.read(source, graph).states(Prompt(ids)).mean(0))
    (vector,) = model.embed(["the cat"], EmbedOptions(task=task)).vectors
    assert np.abs(vector - expected).max() < TOLERANCE


def test_a_bundle_without_its_tower_is_refused(measured: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(measured, tmp_path / JINA_V4))
    (folder / "vision" / "model.onnx").unlink()
    with pytest.raises(BundleError, match="vision/model.onnx"):
        contract.load(folder)


def test_a_manifest_that_does_not_list_its_tower_is_refused(measured: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(measured, tmp_path / JINA_V4))
    manifest = contract.load(folder)
    listed = {name: record for name, record in manifest.files.items() if name != "vision/model.onnx"}
    (folder / "manifest.json").write_bytes(contract.encode(replace(manifest, files=listed)))
    with pytest.raises(BundleError, match="vision/model.onnx"):
        contract.load(folder)


# --- tasks ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_one_adapter_keeps_its_tasks(source: Path, tmp_path: Path, adapter: str) -> None:
    manifest = baked(source, tmp_path, "--task", adapter)
    names = tuple(f"{adapter}.{side}" for side in SIDES[adapter]) or (adapter,)
    assert manifest.task_names == names
    assert manifest.default_task == ("text-matching" if adapter == "text-matching" else None)
    assert [variant.task for variant in manifest.variants] == [adapter]
    assert manifest.vision is not None
    assert files_of(tmp_path / JINA_V4) == {
        "manifest.json", "tokenizer.json", f"fp32/{adapter}.onnx", "fp32/weights.data", "vision/model.onnx",
        "vision/weights.data",
    }  # fmt: skip


def test_adapters_come_in_the_order_of_the_recipe(source: Path, tmp_path: Path) -> None:
    manifest = baked(source, tmp_path, "--task", "none,code,retrieval")
    assert [variant.task for variant in manifest.variants] == ["retrieval", "code", "none"]
    assert manifest.task_names == ("retrieval.query", "retrieval.passage", "code.query", "code.passage")


@pytest.mark.parametrize("task", ["retrieval.query", "separation", "text_matching", "code,query"])
def test_a_task_that_has_no_graph_of_its_own_is_refused(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], task: str
) -> None:
    assert main([JINA_V4, "--source", str(source), "--out", str(tmp_path), "--task", task]) == 1
    assert "choose from retrieval, text-matching, code, none" in capsys.readouterr().err
    assert not (tmp_path / JINA_V4).exists()


@pytest.mark.parametrize(
    ("words", "tasks", "variants"),
    [
        (["retrieval"], ["retrieval.query", "retrieval.passage"], {"retrieval"}),
        (["retrieval.query"], ["retrieval.query"], {"retrieval"}),
        (["text-matching"], ["text-matching"], {"text-matching"}),
        (["code.passage", "retrieval"], ["retrieval.query", "retrieval.passage", "code.passage"],
         {"retrieval", "code"}),
        (["none"], [], set()),
        ([], [], set()),
    ],
    ids=str,
)  # fmt: skip
def test_a_manifest_is_limited_by_tasks_or_graphs(
    measured: Path, words: list[str], tasks: list[str], variants: set[str]
) -> None:
    """The default task may be gone, and what several tasks share stays for the one that is left."""
    manifest = contract.load(measured)
    limited = manifest.limited_to(words)
    assert [*limited.task_names] == tasks == [task.name for task in manifest.tasks_of(words)]
    assert {variant.task for variant in limited.variants} == variants
    assert len(limited.variants) == len(variants) * len(DEFAULT_PRECISIONS)
    assert limited.default_task == ("text-matching" if "text-matching" in tasks else None)
    assert limited.task_variants == tuple(task for task in ADAPTERS if task in variants)


# --- layouts ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "layout",
    [
        NEWER,
        replace(PUBLISHED, shards=1),
        replace(PUBLISHED, shards=3, dtype=F32),
        replace(PUBLISHED, text_prefix="base_model.model.model.", vision_prefix="base_model.model.visual."),
    ],
    ids=["newer", "one file", "float32", "of PEFT"],
)
def test_every_layout_gives_the_same_bundle(source: Path, tmp_path: Path, layout: qwen_vl.Layout) -> None:
    plain = baked(source, tmp_path / "plain")
    other = baked(qwen_vl.write_jina_v4(tmp_path / "other", layout=layout), tmp_path / "models")
    assert other.files == plain.files
    assert other.vision == plain.vision
    assert len(other.source.sha256) == layout.shards + 1


def test_a_config_of_a_newer_release_gives_the_same_bundle(source: Path, tmp_path: Path) -> None:
    """transformers 5: text sizes only in a part of their own, the base of angles beside their sections."""
    folder = Path(shutil.copytree(source, tmp_path / "copy"))
    text = {key: value for key, value in SIZES.text_config.items() if not key.startswith("rope")}
    text["rope_parameters"] = {
        "rope_theta": qwen_vl.THETA, "mrope_section": [*SIZES.sections], "rope_type": "default",
    }  # fmt: skip
    config = {"architectures": ["JinaEmbeddingsV4Model"], "model_type": "qwen2_5_vl", "text_config": text}
    xlmr.write_json(folder / "config.json", config | {"vision_config": SIZES.vision_config})
    plain, other = (baked(each, tmp_path / each.name / "models") for each in (source, folder))
    assert other.files == plain.files
    assert (other.vision, other.dimensions, other.max_tokens) == (
        plain.vision, plain.dimensions, plain.max_tokens,
    )  # fmt: skip


def test_other_weights_give_another_bundle(source: Path, tmp_path: Path) -> None:
    plain = baked(source, tmp_path / "plain")
    other = baked(qwen_vl.write_jina_v4(tmp_path / "other", seed=1), tmp_path / "models")
    changed = {name for name in plain.files if plain.files[name] != other.files[name]}
    assert changed >= {"fp32/weights.data", "vision/weights.data"}


def test_a_model_without_projector_has_no_multivectors(tmp_path: Path) -> None:
    folder = qwen_vl.write_jina_v4(tmp_path / "checkpoint", layout=replace(PUBLISHED, has_projector=False))
    assert not [name for name in load_file(folder / qwen_vl.ADAPTER_WEIGHTS) if "projector" in name]
    manifest = baked(folder, tmp_path / "models")
    assert manifest.outputs == (Output.POOLED, Output.TOKEN_EMBEDDINGS)
    for task in ADAPTERS:
        graph = Session(
            tmp_path / "models" / JINA_V4 / "fp32" / f"{task}.onnx", SessionSettings(num_threads=1)
        )
        assert graph.output_names == ("pooled", "token_embeddings")


def test_adapters_of_a_projector_that_is_not_there_are_refused(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(source, tmp_path / "copy"))
    qwen_vl.change_tensors(folder, f"{qwen_vl.PROJECTOR}.weight", f"{qwen_vl.PROJECTOR}.bias")
    assert main([JINA_V4, "--source", str(folder), "--out", str(tmp_path), "--verify", "skip"]) == 1
    assert f"no tensor '{qwen_vl.PROJECTOR}.weight'" in capsys.readouterr().err


def test_large_vectors_are_baked_too(tmp_path: Path) -> None:
    """The published size, of which the service can give any smaller one."""
    folder = qwen_vl.write_jina_v4(tmp_path / "checkpoint", qwen_vl.wide(2048))
    manifest = baked(folder, tmp_path / "models", "--task", "code")
    assert manifest.dimensions == manifest.default_dimensions == 2048
    ids = np.arange(20)
    (pooled,) = Session(
        tmp_path / "models" / JINA_V4 / "fp32" / "code.onnx", SessionSettings(num_threads=2)
    ).run(multimodal.stack([ids], 2048), ["pooled"])
    reference = qwen_vl_reference.read(folder, "code", qwen_vl.wide(2048))
    assert np.abs(unit(pooled[0]) - unit(reference.states(Prompt(ids)).mean(0))).max() < TOLERANCE


def test_a_large_model_is_baked_in_blocks_alone_unless_asked_otherwise(source: Path, tmp_path: Path) -> None:
    command(source, tmp_path, "--verify", "skip")
    assert contract.load(tmp_path / JINA_V4).precisions == (Precision.INT8_BLOCK,)
    assert RECIPES[JINA_V4].precisions == (Precision.INT8_BLOCK,)


def test_what_was_written_only_to_compare_with_is_dropped_but_the_tower_is_not(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for kind in ("search", "evaluation"):
        monkeypatch.setattr(f"convert.texts.{kind}", lambda: TEXTS)
    command(source, tmp_path, "--verify", "require", "--task", "code")
    folder = tmp_path / JINA_V4
    assert sorted(path.name for path in folder.iterdir() if path.is_dir()) == ["int8-block", "vision"]
    (variant,) = contract.load(folder).variants
    assert variant.quality is not None
    assert variant.quality.mean_cosine < 1


@pytest.mark.parametrize("file", ["model-00002-of-00002.safetensors", "config.json", "tokenizer.json"])
def test_a_failed_bake_publishes_nothing(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], file: str
) -> None:
    folder = Path(shutil.copytree(source, tmp_path / "copy"))
    (folder / file).unlink()
    out = tmp_path / "models"
    assert main([JINA_V4, "--source", str(folder), "--out", str(out), "--verify", "skip"]) == 1
    assert file in capsys.readouterr().err
    assert not (out / JINA_V4).exists()


def test_verify_reads_the_bundle_again(
    measured: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for kind in ("search", "evaluation"):
        monkeypatch.setattr(f"convert.texts.{kind}", lambda: TEXTS)
    assert main(["verify", JINA_V4, "--out", str(measured.parent)]) == 0
    out = capsys.readouterr().out
    for task in ADAPTERS:
        assert f"{JINA_V4} {task} int8-block: " in out
