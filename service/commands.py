"""What was likely meant, and commands as this installation is given them: for messages that name a remedy."""

from __future__ import annotations

import difflib
import os
import shlex
import sys
from collections.abc import Collection, Iterable
from pathlib import Path

NEAR = 0.9  # of 1: how like a variable's name must be to be taken for a slip


def convert(*words: object) -> str:
    """Return the line for a shell that runs the converter with the interpreter that runs this."""
    return shlex.join([_interpreter(), "-m", "convert", *map(str, words)])


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return the question whether a known word that is nearly the same was meant; empty where none is."""
    near = difflib.get_close_matches(word.lower(), list(known), n=1, cutoff=0.7)
    return f" Did you mean {near[0]}?" if near else ""


def misspelt(environ: Collection[str], settings: Collection[str]) -> dict[str, str]:
    """Return variables that are no settings, but nearly, by name, with the unset settings likely meant.

    `API_KEY` for `API_KEYS` would start a service that is open to all.
    """
    unset = [name for name in settings if name not in environ]
    near = {name: difflib.get_close_matches(name, unset, 1, NEAR) for name in environ if name not in settings}
    return {name: found[0] for name, found in near.items() if found}


def _interpreter() -> str:
    """Return the interpreter's path, as short as it is found from the current folder."""
    python = Path(sys.executable or "python3")
    try:
        return os.fspath(python.relative_to(Path.cwd()))
    except (ValueError, OSError):  # elsewhere, or the folder is gone
        return os.fspath(python)
