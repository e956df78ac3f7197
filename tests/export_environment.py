"""The environment of the exporter: made once beside the project's own, from the extra `export`."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.client_environment import is_index_reachable, run_pip
from tests.processes import PROJECT

FOLDER = PROJECT / ".venv-export"
COMPARED = "sentence-transformers==5.7.0"


def interpreter() -> Path:
    """Return the interpreter that has the exporter; install it where it is not, or is another."""
    python, stamp = FOLDER / "bin" / "python", FOLDER / "installed.txt"
    wanted = f"{sys.version}\n{COMPARED}\n{(PROJECT / 'pyproject.toml').read_text(encoding='utf-8')}"
    if not stamp.is_file() or stamp.read_text(encoding="utf-8") != wanted:
        shutil.rmtree(FOLDER, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", FOLDER], check=True)
        ended = run_pip(
            python, "install", "--quiet", "--no-compile", "--editable", f"{PROJECT}[export]", COMPARED
        )
        if ended.returncode and not is_index_reachable(python):
            pytest.skip(f"the exporter is not installed, and no package index answers: {ended.stdout}")
        if ended.returncode:
            pytest.fail(f"the exporter cannot be installed:\n{ended.stdout}")
        stamp.write_text(wanted, encoding="utf-8")
    return python
