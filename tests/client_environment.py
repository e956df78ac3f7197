"""The environment of the client libraries: made once beside the project's own, from pinned versions."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.processes import PROJECT

SCRIPTS = PROJECT / "tests" / "clients"
LOCK = SCRIPTS / "requirements.txt"
FOLDER = PROJECT / ".venv-clients"
INSTALL_SECONDS = 600
PROBE = ("index", "versions", "openai", "--retries", "0", "--timeout", "15")


def pins() -> dict[str, str]:
    """Return the packages that are tested, with their versions."""
    written = (SCRIPTS / "requirements.in").read_text(encoding="utf-8")
    return dict(re.findall(r"^([\w-]+)==(\S+)$", written, re.MULTILINE))


def interpreter(folder: Path = FOLDER) -> Path:
    """Return the interpreter that has the clients; install them where they are not, or are others."""
    python, stamp = folder / "bin" / "python", folder / "installed.txt"
    wanted = f"{sys.version}\n{LOCK.read_text(encoding='utf-8')}"
    if not stamp.is_file() or stamp.read_text(encoding="utf-8") != wanted:
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        install(python)
        stamp.write_text(wanted, encoding="utf-8")
    return python


def install(python: Path) -> None:
    """Install the clients; skip the test where no package index answers, else fail it."""
    # The lock names all there is to install: nothing to resolve, and most of it is never imported.
    options = ["--quiet", "--no-deps", "--no-compile", "--requirement", str(LOCK)]
    ended = run_pip(python, "install", *options)
    if ended.returncode:
        if not is_index_reachable(python):
            pytest.skip(
                f"the client libraries are not installed, and no package index answers: {ended.stdout}"
            )
        pytest.fail(f"the client libraries cannot be installed:\n{ended.stdout}")


def is_index_reachable(python: Path, **settings: str) -> bool:
    """Tell whether pip, with its own settings, gets an answer from a package index."""
    return run_pip(python, *PROBE, **settings).returncode == 0


def run_pip(python: Path, *words: str, **settings: str) -> subprocess.CompletedProcess[str]:
    """Run pip; its output is whole in `stdout`."""
    return subprocess.run(
        [python, "-m", "pip", "--disable-pip-version-check", "--no-input", *words],
        env=os.environ | settings, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        timeout=INSTALL_SECONDS,
    )  # fmt: skip
