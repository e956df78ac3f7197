"""Finding and loading bundles."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from service import bundles, embedding, footprint, host, loading, providers
from service import manifest as contract
from service.bundles import check_start
from service.config import Settings
from service.copies import Copies
from service.devices import CPU, Device
from service.devices import Kind as DeviceKind
from service.embedding import EmbeddingModel
from service.errors import ConfigError, ModelNotFound, ModelUnavailable
from service.graphs import Graphs
from service.manifest import Kind, Precision
from service.placement import Placement
from service.registry import Registry, State
from service.scheduler import Scheduler
from tests import xlmr
from tests.conftest import MODEL
from tests.service.fakes import FakeSession

GPU = Device(DeviceKind.CUDA, 1)


def registry_of(models: Path, **settings: object) -> Registry:
    return Registry(Settings(models_dir=models, **settings), Scheduler(512))  # type: ignore[arg-type]


@pytest.fixture
def models(tiny_models: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_models, tmp_path / "models"))


@pytest.mark.parametrize("name", [MODEL, "sentence-transformers/all-MiniLM-L6-v2", MODEL.upper()])
def test_a_model_is_found_by_short_and_full_name(tiny_models: Path, name: str) -> None:
    registry = registry_of(tiny_models)
    with pytest.raises(ModelUnavailable, match="still loading"):
        registry.get(name)
    assert registry.state() == State.LOADING
    registry.start_loading().join()
    assert registry.get(name).manifest.name == MODEL
    assert registry.state() == State.READY


def test_an_unknown_model_names_the_loaded_ones(tiny_models: Path) -> None:
    registry = registry_of(tiny_models)
    registry.load()
    with pytest.raises(ModelNotFound, match=MODEL):
        registry.get("other")


def test_a_broken_bundle_is_remembered_with_its_reason(models: Path) -> None:
    (models / MODEL / "tokenizer.json").write_bytes(b"x" * (models / MODEL / "tokenizer.json").stat().st_size)
    registry = registry_of(models)
    registry.load()
    assert registry.state() == State.FAILED
    assert "tokenizer" in registry.failed()[MODEL]
    with pytest.raises(ModelUnavailable, match="tokenizer"):
        registry.get(MODEL)


def test_the_folders_of_bakes_are_not_bundles(models: Path) -> None:
    shutil.copytree(models / MODEL, models / f".{MODEL}.staging")
    (models / "notes").mkdir()
    registry = registry_of(models)
    registry.load()
    assert [loaded.model.manifest.name for loaded in registry.loaded()] == [MODEL]


def test_a_bundle_replaced_while_it_loads_fails(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, load = models / MODEL / contract.MANIFEST_FILE, bundles.Bundle.load

    def replace_and_load(bundle: bundles.Bundle) -> contract.Manifest:
        path.write_bytes(path.read_bytes() + b"\n")
        return load(bundle)

    monkeypatch.setattr(bundles.Bundle, "load", replace_and_load)
    registry = registry_of(models)
    registry.load()
    assert "was replaced while the service ran" in registry.failed()[MODEL]


@pytest.mark.parametrize("folder", ["missing", "."])
def test_nothing_to_serve_stops_the_start_with_the_command(tmp_path: Path, folder: str) -> None:
    with pytest.raises(ConfigError, match="python -m convert"):
        check_start(Settings(models_dir=tmp_path / folder))


def test_a_model_that_is_not_there_stops_the_start(tiny_models: Path) -> None:
    with pytest.raises(ConfigError, match=r"MODELS_TO_LOAD.*bge-m3"):
        check_start(Settings(models_dir=tiny_models, models_to_load=("bge-m3",)))


def test_a_precision_that_no_bundle_holds_stops_the_start(models: Path, tiny_checkpoint: Path) -> None:
    from convert.__main__ import main

    source = ["--source", str(tiny_checkpoint), "--out", str(models), "--force"]
    assert main([MODEL, *source, "--precision", "fp32"]) == 0
    with pytest.raises(ConfigError, match=r"PRECISION is int8.*fp32"):
        check_start(Settings(models_dir=models, precision=Precision.INT8))


def test_a_broken_bundle_does_not_stop_the_start(models: Path) -> None:
    (models / MODEL / "manifest.json").write_text("{")
    check_start(Settings(models_dir=models, precision=Precision.INT8))


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (("a",), {"a": ()}),
        (("a:x", "y", "b"), {"a": ("x", "y"), "b": ()}),
        (("b", "a:x", "a:y", "x"), {"b": (), "a": ("x", "y")}),
        (("a:x", "b", "c"), {"a": ("x",), "b": (), "c": ()}),
        (("hub/a:x", "hub/b"), {"a": ("x",), "b": ()}),
    ],
)
def test_a_word_after_a_task_is_another_task_unless_it_is_a_bundle(
    words: tuple[str, ...], wanted: dict[str, tuple[str, ...]]
) -> None:
    assert bundles._wanted(words, {"a": Path(), "b": Path()}) == wanted


def test_base_weights_beside_a_task_that_is_not_the_default_one(tmp_path: Path) -> None:
    source = xlmr.write_jina_v3(tmp_path / "checkpoint")
    xlmr.bake_tiny(tmp_path / "models", xlmr.V3, source, ("none", "retrieval.query"))
    registry = registry_of(tmp_path / "models")
    registry.load()
    assert registry.failed() == {}
    assert registry.embedding(xlmr.V3).graphs.open_tasks() == ["retrieval.query"]


def test_base_weights_alone_are_not_served(tmp_path: Path) -> None:
    source = xlmr.write_jina_v3(tmp_path / "checkpoint")
    xlmr.bake_tiny(tmp_path / "models", xlmr.V3, source, ("none",))
    registry = registry_of(tmp_path / "models")
    registry.load()
    assert "base weights alone" in registry.failed()[xlmr.V3]


# --- where models run ------------------------------------------------------------------------------------


def placed(models: Path, place: Placement, **settings: object) -> Registry:
    """Load every model at a place."""
    registry = Registry(Settings(models_dir=models, **settings), Scheduler(512), place)  # type: ignore[arg-type]
    registry.load()
    return registry


@pytest.fixture
def half_models(models: Path) -> Path:
    """The tiny bundle with fp16 and bf16 beside the others: copies of fp32, which no test here opens."""
    path = models / MODEL / contract.MANIFEST_FILE
    content = json.loads(path.read_text())
    (fp32,) = [variant for variant in content["variants"] if variant["precision"] == "fp32"]
    for precision in ("fp16", "bf16"):
        shutil.copytree(models / MODEL / "fp32", models / MODEL / precision)
        content["variants"].append(fp32 | {"precision": precision, "file": f"{precision}/model.onnx"})
        for name in ("model.onnx", "weights.data"):
            content["files"][f"{precision}/{name}"] = content["files"][f"fp32/{name}"]
    path.write_text(json.dumps(content))
    return models


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Precision, Device]]:
    """A GPU that works, but whose fp16 answers are NaN; note what is opened, on the GPU without a graph."""
    asked: list[tuple[Precision, Device]] = []
    monkeypatch.setattr(providers, "unusable", lambda device: "")
    monkeypatch.setattr(Graphs, "open", lambda self, tasks: None)

    def open_fake(graphs: Graphs, scheduler: Scheduler) -> EmbeddingModel:
        asked.append((graphs.precision, graphs.settings.device))
        value = np.nan if graphs.precision == Precision.FP16 else 1.0
        session = FakeSession(lambda ids: [value] * graphs.manifest.dimensions)
        graphs._sessions[f"{graphs.precision}/model.onnx"] = session  # type: ignore[assignment]
        return embedding.open_model(graphs, scheduler)

    monkeypatch.setitem(loading.OPENERS, Kind.EMBEDDING, open_fake)
    return asked


def test_fp16_that_is_not_finite_leads_to_bf16_with_the_reason(
    half_models: Path, opened: list[tuple[Precision, Device]]
) -> None:
    registry = placed(half_models, Placement(GPU, gpu_bytes=5))
    (loaded,) = registry.loaded()
    assert opened == [(Precision.FP16, GPU), (Precision.BF16, GPU)]
    assert (loaded.choice.precision, loaded.choice.device) == (Precision.BF16, GPU)
    assert "fp16 failed on cuda:1: Model all-minilm-l6-v2 computed a value that is not finite" in (
        loaded.choice.reason
    )
    assert loaded.model.graphs.settings.gpu_bytes == 5


def test_fp16_by_name_that_is_not_finite_fails_with_the_reason(
    half_models: Path, opened: list[tuple[Precision, Device]]
) -> None:
    registry = placed(half_models, Placement(GPU), precision=Precision.FP16)
    assert "fp16 failed on cuda:1" in registry.failed()[MODEL]
    assert opened == [(Precision.FP16, GPU)]


def test_a_gpu_that_does_not_work_leads_to_the_cpu_with_the_reason(
    tiny_models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(providers, "unusable", lambda device: "no kernel image")
    registry = placed(tiny_models, Placement(GPU, "a session runs on it"))
    assert (registry.placement.device, registry.placement.reason) == (
        CPU,
        "cuda:1 does not work: no kernel image",
    )
    assert [loaded.choice.device for loaded in registry.loaded()] == [CPU]


def test_a_gpu_that_is_named_and_does_not_work_fails_every_model(
    tiny_models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(providers, "unusable", lambda device: "no kernel image")
    registry = placed(tiny_models, Placement(GPU, is_required=True))
    assert registry.failed() == {MODEL: "cuda:1 does not work: no kernel image (DEVICE)"}


@pytest.mark.parametrize(("is_shared", "sharers"), [(True, 4), (False, 1)])
def test_workers_count_their_share_of_what_they_map_together(
    tiny_models: Path, monkeypatch: pytest.MonkeyPatch, is_shared: bool, sharers: int
) -> None:
    monkeypatch.setattr(Copies, "can_share", lambda self, file: is_shared)
    settings = Settings()
    (loaded,) = placed(tiny_models, Placement(), precision=Precision.FP32, workers=4).loaded()
    assert loaded.choice.needed_bytes == footprint.needed_bytes(
        contract.load(tiny_models / MODEL), Precision.FP32, (None,), settings.max_batch_tokens, sharers
    )


def test_models_share_the_memory_in_their_order(models: Path) -> None:
    """Room for one in fp32 and one in int8-block, by the estimates; a third one has none left."""
    for name in ("b", "c"):
        copy = shutil.copytree(models / MODEL, models / name)
        content = json.loads((copy / contract.MANIFEST_FILE).read_text())
        (copy / contract.MANIFEST_FILE).write_text(json.dumps(content | {"name": name}))
    for path in models.glob(f"*/{contract.MANIFEST_FILE}"):
        content = json.loads(path.read_text())
        kept = [variant for variant in content["variants"] if variant["precision"] != "int8"]
        speeds = {"fp32": 20.0, "int8-block": 10.0}
        for variant in kept:
            measured = {"num_threads": 1, "instruction_set": host.instruction_set()}
            variant["speed"] = measured | {"tokens_per_second": speeds[variant["precision"]]}
            variant["verified"] = True
        path.write_text(json.dumps(content | {"variants": kept}))
    manifest = contract.load(models / MODEL)
    large, small = (
        footprint.needed_bytes(manifest, precision, (None,), Settings().max_batch_tokens)
        for precision in (Precision.FP32, Precision.INT8_BLOCK)
    )
    assert small < large
    registry = placed(models, Placement(memory_bytes=large + small))
    assert [(loaded.model.manifest.name, loaded.choice.precision) for loaded in registry.loaded()] == [
        (MODEL, Precision.FP32),
        ("b", Precision.INT8_BLOCK),
    ]
    assert "c needs 0." in registry.failed()["c"] and "GB are left for it" in registry.failed()["c"]
