"""Commands as this installation is given them, for messages that name a remedy. Knows no model."""

from __future__ import annotations

import difflib
import os
import shlex
import sys
from collections.abc import Iterable
from pathlib import Path


def convert(*words: object) -> str:
    """Return the line for a shell that runs the converter with the interpreter that runs this."""
    return shlex.join([_interpreter(), "-m", "convert", *map(str, words)])


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return the question whether a known word that is nearly the same was meant; empty where none is."""
    near = difflib.get_close_matches(word.lower(), list(known), n=1, cutoff=0.7)
    return f" Did you mean {near[0]}?" if near else ""


def _interpreter() -> str:
    """Return the interpreter's path, as short as it is found from the current folder."""
    python = Path(sys.executable or "python3")
    try:
        return os.fspath(python.relative_to(Path.cwd()))
    except (ValueError, OSError):  # elsewhere, or the folder is gone
        return os.fspath(python)
