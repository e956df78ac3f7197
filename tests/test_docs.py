"""Every command and program of README and docs/ is run as it stands, or says in its fence what it needs."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from tests.conftest import MODEL, START_SECONDS, Live, wait_until_ready
from tests.processes import LOCALHOST, PROJECT, environment, free_port

PAGES = [PROJECT / "README.md", *sorted((PROJECT / "docs").glob("*.md"))]
FENCE = re.compile(r"^```(\S*) ?([^\n]*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
NOT_RUN = {"yaml", "json", "text", "promql"}
PRINTS = re.compile(r"```python\n(.*?)```\n\nprints[^\n]*\n\n```text\n(.*?)```", re.DOTALL)
NUMBER = re.compile(r"\d+\.\d+")
HUNDREDTHS = 0.02  # by which precisions differ
NEEDS = {
    "weights",
    "a GPU",
    "a container engine",
    "a cluster",
    "packages of 2 GB",
}  # what is not everywhere: such blocks are not run
BY_CI = {"make check", "make test", "make test-full"}
HERE = "http://localhost:8080"
PID_FILE = "--pid serve.pid"  # as docs/settings.md says
CURLRC = "silent\nshow-error\nfail-with-body\n"  # an error status fails the command
SECONDS = 240
LINK = re.compile(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]+))?\)")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """One fence of commands, or a program."""

    page: str
    language: str
    needs: str
    text: str


def blocks() -> list[Block]:
    found = []
    for page in PAGES:
        for language, words, text in FENCE.findall(page.read_text(encoding="utf-8")):
            if language not in NOT_RUN:
                known = language in ("sh", "python")
                assert known, f"{page.name}: a fence of {language or 'no language'}"
                found.append(Block(page.name, language, words, text))
    return found


BLOCKS = blocks()
RUN = [block for block in BLOCKS if block.language == "sh" and not block.needs]
PROGRAMS = [block for block in BLOCKS if block.language == "python"]


def test_every_fence_is_run_or_says_what_it_needs() -> None:
    assert {"README.md", "api.md", "models.md"} <= {block.page for block in RUN}
    for block in BLOCKS:
        assert not block.needs or block.needs.removeprefix("needs ") in NEEDS, block
        assert block.language == "sh" or not block.needs, block


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page: Path) -> None:
    for file, anchor in LINK.findall(FENCE.sub("", page.read_text(encoding="utf-8"))):
        target = page.parent / file if file else page
        assert target.exists(), file
        assert not anchor or anchor in anchors(target), f"{file}#{anchor}"


def anchors(page: Path) -> set[str]:
    """Return the names that GitHub gives to a page's headings."""
    headings = HEADING.findall(FENCE.sub("", page.read_text(encoding="utf-8")))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.fixture(scope="module")
def copy(all_kinds_models: Path, real_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project beside the environment that runs the tests, with bundles of the kinds named."""
    folder = tmp_path_factory.mktemp("docs") / "project"
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=PROJECT, check=True, capture_output=True, text=True,
    )  # fmt: skip
    for name in filter(None, listed.stdout.split("\0")):
        if (PROJECT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(PROJECT / name, folder / name)
    (folder / ".venv").symlink_to(sys.prefix)
    shutil.copytree(all_kinds_models, folder / "onnx_models", dirs_exist_ok=True, ignore=_default_model)
    shutil.copytree(real_models / MODEL, folder / "onnx_models" / MODEL)
    return folder


def _default_model(_: str, names: list[str]) -> set[str]:
    return {MODEL, ".checkpoints"} & set(names)


@pytest.fixture(scope="module")
def served(copy: Path) -> Iterator[Live]:
    """The service, started in the copy by the README's own command and stopped by Ctrl-C."""
    port, log = free_port(), copy.parent / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            # The environment is there: it must not be installed again, over that of the tests.
            ["make", "--old-file", ".venv/.serve", "serve"],
            cwd=copy,
            env=environment(
                HOST=LOCALHOST, PORT=str(port), CACHE_DIR=str(copy / "cache"), GUNICORN_CMD_ARGS=PID_FILE
            ),
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    live = Live(f"http://{LOCALHOST}:{port}", process, log)
    try:
        wait_until_ready(live)
        yield live
        os.killpg(process.pid, signal.SIGINT)  # as a terminal sends Ctrl-C: to make and to the service
        assert process.wait(START_SECONDS) in (-signal.SIGINT, 2), log.read_text()  # of make
        assert "Traceback" not in log.read_text()
        with pytest.raises(httpx.TransportError):
            live.client().get("/livez")
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)


@pytest.mark.full
@pytest.mark.parametrize("block", RUN, ids=lambda block: f"{block.page}: {block.text[:60]}")
def test_the_commands_of_a_block_succeed(block: Block, copy: Path, served: Live) -> None:
    lines = [line for line in block.text.splitlines() if line not in BY_CI and line != "make serve"]
    (copy.parent / ".curlrc").write_text(CURLRC)
    ended = subprocess.run(
        ["bash", "-e", "-c", "\n".join(lines).replace(HERE, served.url)],
        cwd=copy, env=environment(CURL_HOME=str(copy.parent)) | {"PIP_NO_INPUT": "1"},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=SECONDS,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stdout


@pytest.mark.full
@pytest.mark.parametrize("block", PROGRAMS, ids=lambda block: f"{block.page}: {block.text[:60]}")
def test_a_program_prints_what_stands_below_it(block: Block, served: Live) -> None:
    """By the standard library alone (-I -S): what is installed beside it does not help."""
    ended = subprocess.run(
        [sys.executable, "-I", "-S", "-c", block.text.replace(HERE, served.url)],
        capture_output=True, text=True, timeout=SECONDS,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    pages = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    (expected,) = (output for program, output in PRINTS.findall(pages) if program == block.text)
    assert NUMBER.sub("", ended.stdout) == NUMBER.sub("", expected)
    printed, shown = ([float(found) for found in NUMBER.findall(text)] for text in (ended.stdout, expected))
    assert printed == pytest.approx(shown, abs=HUNDREDTHS)
