"""Finding and loading bundles."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from service import bundles
from service.bundles import check_start
from service.config import Settings
from service.errors import ConfigError, ModelNotFound, ModelUnavailable
from service.manifest import Precision
from service.registry import Registry, State
from service.scheduler import Scheduler
from tests import xlmr
from tests.conftest import MODEL


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
