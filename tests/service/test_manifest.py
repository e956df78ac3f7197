"""Reading bundles, whole and broken."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from service import commands, files
from service import manifest as contract
from service.errors import BundleError
from tests.conftest import MODEL


@pytest.fixture
def bundle(tiny_models: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_models / MODEL, tmp_path / MODEL))


def edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = folder / contract.MANIFEST_FILE
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_a_manifest_survives_writing_and_reading(bundle: Path) -> None:
    manifest = contract.load(bundle)
    (bundle / contract.MANIFEST_FILE).write_bytes(contract.encode(manifest))
    assert contract.load(bundle) == manifest
    files.check_hashes(bundle, manifest.files)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda content: content.update(format_version=99), "format_version 99.*update the service"),
        (lambda content: content.update(format_version=1), r"reads \d+: bake it again, .+ -m convert"),
        (lambda content: content.pop("format_version"), "format_version None"),
        (lambda content: content.pop("kind"), "kind"),
        (lambda content: content.update(max_tokens="many"), "max_tokens"),
        (lambda content: content.update(dimensions=-1), "dimensions"),
        (lambda content: content.update(variants=[]), "incomplete"),
        (lambda content: content.update(name="other"), "name"),
        (lambda content: content["files"].pop("fp32/model.onnx"), "fp32/model.onnx"),
        (
            lambda content: content["variants"][0].update(file="/a.onnx"),
            "names /a.onnx, outside of the bundle",
        ),
        (lambda content: content["variants"][0].update(file="fp32/../../a.onnx"), "outside of the bundle"),
        (
            lambda content: content["files"].update({"../a": {"size": 1, "sha256": ""}}),
            "outside of the bundle",
        ),
        (lambda content: content.update(files={}), "lists no size and hash"),
        (lambda content: content["files"].update({"a\0b": {"size": 1, "sha256": ""}}), "cannot be read"),
    ],
)
def test_a_wrong_manifest_is_refused(
    bundle: Path, change: Callable[[dict[str, Any]], object], reason: str
) -> None:
    edit(bundle, change)
    with pytest.raises(BundleError, match=reason):
        contract.load(bundle)


@pytest.mark.parametrize("content", ["", "{", "[]", "\x00"])
def test_what_is_no_manifest_is_refused(bundle: Path, content: str) -> None:
    (bundle / contract.MANIFEST_FILE).write_text(content)
    with pytest.raises(BundleError, match=r"manifest\.json"):
        contract.load(bundle)


def test_a_missing_file_is_named(bundle: Path) -> None:
    (bundle / "int8" / "model.onnx").unlink()
    with pytest.raises(BundleError, match=r"int8/model\.onnx"):
        contract.load(bundle)


def test_a_truncated_file_is_named(bundle: Path) -> None:
    with (bundle / "fp32" / "weights.data").open("r+b") as file:
        file.truncate(100)
    command = f"bake it again, {commands.convert(MODEL, '--out', bundle.parent, '--force')}"
    with pytest.raises(BundleError, match=rf"fp32/weights\.data has 100 bytes.*; {re.escape(command)}"):
        contract.load(bundle)


def test_the_usual_folder_is_not_part_of_the_command() -> None:
    command = f"bake it again, {commands.convert(MODEL, '--force')}"
    assert files.bake_again(files.BUNDLES / MODEL) == command
    assert files.bake_again((files.BUNDLES / MODEL).absolute()) == command


def test_a_flipped_byte_is_seen_by_the_hash_alone(bundle: Path) -> None:
    path = bundle / "fp32" / "weights.data"
    content = bytearray(path.read_bytes())
    content[50] ^= 1
    path.write_bytes(content)
    manifest = contract.load(bundle)
    with pytest.raises(BundleError, match=r"fp32/weights\.data.*sha256"):
        files.check_hashes(bundle, manifest.files)
