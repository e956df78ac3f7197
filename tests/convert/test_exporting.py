"""What the exporter needs, without it: nothing here imports torch."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from convert import custom, exporting
from convert.bake import Prepared
from service.errors import BakeError
from service.manifest import Source
from tests import checkpoints
from tests.processes import PROJECT


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that is the one place to import from, with all that the exporter needs, empty."""
    for module in exporting.PACKAGES:
        names = module.split(".")
        for depth in range(1, len(names) + 1):
            part = tmp_path.joinpath(*names[:depth])
            part.mkdir(exist_ok=True)
            (part / "__init__.py").touch()
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    for loaded in _loaded():
        monkeypatch.delitem(sys.modules, loaded)
    yield tmp_path
    for loaded in _loaded():
        del sys.modules[loaded]


def _loaded() -> list[str]:
    roots = {module.partition(".")[0] for module in exporting.PACKAGES}
    return [name for name in sys.modules if name.partition(".")[0] in roots]


def test_nothing_is_missing_where_all_is_installed(installed: Path) -> None:
    exporting.check_installed("a model")


@pytest.mark.parametrize("module", exporting.PACKAGES)
def test_what_is_missing_is_named_with_the_command(installed: Path, module: str) -> None:
    folder = installed.joinpath(*module.split("."))
    folder.rename(folder.with_name("elsewhere"))
    with pytest.raises(BakeError) as raised:
        exporting.check_installed("a model")
    message = str(raised.value)
    assert exporting.INSTALL in message
    assert exporting.PACKAGES[module] in message.partition("not installed: ")[2].partition(".")[0].split(", ")


def test_the_extra_pins_what_it_is_told_to_install() -> None:
    text = (PROJECT / "pyproject.toml").read_text(encoding="utf-8")
    extra = text.partition("\nexport = ")[2].partition("]\n")[0]
    packages = set(exporting.PACKAGES.values()) - {"optimum", "protobuf"}  # with onnxruntime; of onnx
    assert {package for package in packages if f'"{package}==' in extra} == packages
    assert '"optimum[onnxruntime-gpu]==' in extra


def test_a_model_without_positions_must_say_its_limit(tmp_path: Path) -> None:
    source = checkpoints.write_bert(tmp_path / "some-model")
    path = source / "config.json"
    sizes = {"d_model": 32, "vocab_size": 2100, "n_positions": 512}
    path.write_text(json.dumps({"model_type": "t5", **sizes}))
    for name in ("sentence_bert_config.json", "tokenizer_config.json"):
        (source / name).unlink(missing_ok=True)
    described = custom.described(source, Source(id="us/some-model"), "some-model")
    with pytest.raises(BakeError, match="nothing says how many tokens .* put max_seq_length into"):
        exporting.export(described.recipe, Prepared(source, Source(id="us/some-model"), b""))


def test_a_library_that_cannot_be_imported_is_told_from_a_model_that_cannot_be_exported() -> None:
    with (
        pytest.raises(BakeError, match="cannot be exported: no such class; .*pip install"),
        exporting._readable("it"),
    ):
        raise ImportError("no such class")
