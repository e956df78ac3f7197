"""A process of another interpreter that answers questions, a line of JSON each. Knows no package, no model.

It stays open beside what it is compared with, idle until it is asked, so that both can be timed in turns.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from tests.bench.errors import BenchError
from tests.processes import PROJECT

STOP_SECONDS = 30


class Child:
    """An open process; `greeting` is what it said once it was ready."""

    def __init__(self, name: str, process: subprocess.Popen[str], log: IO[bytes]) -> None:
        """Wait until it is ready. Raises BenchError where it ends instead."""
        self._name, self._process, self._log = name, process, log
        self.greeting = self._read()

    def ask(self, question: dict[str, Any]) -> dict[str, Any]:
        """Return the answer to a question. Raises BenchError where the process has ended."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(question) + "\n")
            self._process.stdin.flush()
        except OSError as error:
            raise self._ended() from error
        return self._read()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise self._ended()
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _ended(self) -> BenchError:
        status = self._process.wait(STOP_SECONDS)
        self._log.seek(0)
        lines = self._log.read().decode(errors="replace").strip()
        return BenchError(f"the process of {self._name} ended with status {status}:\n{lines}")


def check_packages(python: Path, option: str, packages: Sequence[str]) -> Path:
    """Return the interpreter's absolute path: its process has another working folder.

    Raises BenchError where it cannot import the packages.
    """
    python = python.absolute()
    try:
        subprocess.run([str(python), "-c", f"import {', '.join(packages)}"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise BenchError(f"{option} {python} cannot import {' and '.join(packages)}: {error}") from error
    return python


@contextmanager
def opened(name: str, command: Sequence[str]) -> Iterator[Child]:
    """Hold a process open until the block ends."""
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            command,
            cwd=PROJECT,
            env=os.environ | {"HF_HUB_OFFLINE": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
        with process:
            try:
                yield Child(name, process, log)
            finally:
                process.kill()  # it holds nothing that could be lost
