"""The command line."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from convert import quality, texts
from convert.__main__ import main
from convert.catalog import RECIPES
from convert.recipe import DEFAULT_PRECISIONS
from service import manifest as contract
from service.manifest import MANIFEST_FILE, Precision
from tests.conftest import MODEL


def test_list_prints_every_recipe(capsys: pytest.CaptureFixture[str], tiny_models: Path) -> None:
    assert main(["--list", "--out", str(tiny_models)]) == 0
    header, *lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(RECIPES)
    assert "Apache-2.0" in lines[0]
    assert lines[0][header.index("baked") :].startswith("fp32, int8, int8-block (0.00 GB)")
    assert lines[1][header.index("baked") :] == "no"


def test_list_prints_other_bundles_too(
    tiny_models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own_manifest = shutil.copytree(tiny_models / MODEL, tmp_path / "my-own") / MANIFEST_FILE
    own_manifest.write_text(own_manifest.read_text().replace(f'"name": "{MODEL}"', '"name": "my-own"'))
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / MANIFEST_FILE).write_text("{")
    assert main(["--list", "--out", str(tmp_path)]) == 0
    *_, broken, own = capsys.readouterr().out.splitlines()
    assert own.split()[:2] == ["my-own", "Apache-2.0"] and "fp32, int8, int8-block (" in own
    assert broken.split()[0] == "broken" and "broken: " in broken


def test_an_existing_bundle_is_kept_without_force(
    tiny_models: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([MODEL, "--out", str(tiny_models)]) == 0
    assert "--force" in capsys.readouterr().out


def test_what_an_existing_bundle_lacks_is_baked_with_what_it_has(
    tiny_models: Path, tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = Path(shutil.copytree(tiny_models, tmp_path / "models"))
    command = [MODEL, "--out", str(out), "--verify", "skip", "--precision", "int8,int4"]
    assert main(command) == 1
    assert "has no int4 and was baked from tiny: name that again" in capsys.readouterr().err
    assert main([*command, "--source", str(tiny_checkpoint)]) == 0
    assert "without int4: baking it again with what it has" in capsys.readouterr().out
    assert contract.load(out / MODEL).precisions == (*DEFAULT_PRECISIONS, Precision.INT4)
    assert main(command) == 0
    assert "is there already" in capsys.readouterr().out


def test_a_bundle_of_another_model_is_baked_again_by_its_name(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As the service says when a file of it is broken."""
    out = ["--out", str(tmp_path), "--verify", "skip", "--precision", "fp32"]
    assert main(["--source", str(tiny_checkpoint), "--name", "own", *out]) == 0
    assert main(["own", *out, "--force"]) == 1
    assert "--source DIR --name own and no MODEL" in capsys.readouterr().err
    assert main(["own", *out, "--force", "--source", str(tiny_checkpoint)]) == 0
    manifest = tmp_path / "own" / MANIFEST_FILE
    manifest.write_text(manifest.read_text().replace('"id": "tiny"', '"id": "somebody/tiny"'))
    assert main(["own", *out, "--force", "--offline"]) == 1
    assert "somebody/tiny is not in the local cache" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ([], "name a model"),
        (["gpt-2"], "not in the catalog. It has"),
        (["bge-m4"], "Did you mean bge-m3?"),
        (["BAAI/bge-m3", "--offline"], "1_Pooling/*"),
        ([MODEL, "--source", "nowhere"], "neither a folder that is there nor a hub id"),
        ([MODEL, "--source", "./nowhere"], "neither a folder that is there nor a hub id"),
        (["--source", "./nowhere", "--task", "a"], "leave it out"),
        ([MODEL, "--task", "retrieval.query"], "leave --task out"),
        (["jina-embeddings-v3", "--task", "code.query"], "choose from retrieval.query"),
        (["verify", MODEL], f"{MODEL} is not baked"),
        (["verify", "nonsense"], "holds none"),
        (["verify"], "name a baked model"),
    ],
)
def test_a_failure_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], reason: str
) -> None:
    assert main([*arguments, "--out", str(tmp_path)]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    assert reason in lines[0]


@pytest.mark.parametrize(
    "arguments", [["--precision", "int5"], ["--verify", "maybe"], ["--task", " , "]], ids=str
)
def test_a_wrong_option_is_refused(arguments: list[str]) -> None:
    with pytest.raises(SystemExit):
        main([MODEL, *arguments])


def test_verify_prints_figures_and_sees_damage(
    tiny_models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = Path(shutil.copytree(tiny_models, tmp_path / "models"))
    assert main(["verify", MODEL, "--out", str(out)]) == 0
    assert "mean cosine" in capsys.readouterr().out
    path = out / MODEL / "int8" / "weights.data"
    content = bytearray(path.read_bytes())
    content[0] ^= 0xFF
    path.write_bytes(content)
    assert main(["verify", MODEL, "--out", str(out)]) == 1
    assert "sha256" in capsys.readouterr().err


def test_verify_fails_when_a_precision_falls_below_its_floor(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(quality, "FLOORS", quality.Floors(mean_cosine=0.5, top10_overlap=0))
    assert main([MODEL, "--source", str(tiny_checkpoint), "--out", str(tmp_path)]) == 0
    monkeypatch.setattr(quality, "FLOORS", quality.Floors(mean_cosine=1.1))
    assert main(["verify", MODEL, "--out", str(tmp_path)]) == 1
    assert "no longer verified: int8/model.onnx" in capsys.readouterr().err


def test_the_built_in_texts_are_varied() -> None:
    found, searched = texts.evaluation(), texts.search()
    assert (len(found), len(searched)) == (400, 200)
    assert len({*found, *searched}) == 600
    for lines in (found, searched):
        check_variety(lines)


def check_variety(texts: list[str]) -> None:
    assert any(len(text.split()) == 1 for text in texts)
    assert any(len(text) > 1000 for text in texts)
    assert sum(not text.isascii() for text in texts) > 50
    assert any(text.startswith("def ") for text in texts)


def test_what_is_broken_is_baked_again_with_all_that_it_held(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [MODEL, "--source", str(tiny_checkpoint), "--out", str(tmp_path), "--verify", "skip"]
    assert main([*command, "--precision", "fp32,int4"]) == 0
    weights = tmp_path / MODEL / "int4" / "weights.data"
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 1
    weights.write_bytes(content)
    assert main(command) == 0
    assert "int4/weights.data does not have its recorded sha256" in capsys.readouterr().out
    baked = contract.load(tmp_path / MODEL)
    assert baked.precisions == (*DEFAULT_PRECISIONS, Precision.INT4)
    assert main(command) == 0
    assert "is there already" in capsys.readouterr().out


def test_a_plot_goes_with_verify(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([MODEL, "--out", str(tmp_path), "--plot"]) == 1
    assert "--plot goes with verify" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
