"""Opens one graph in a fresh process and says what that took: python -m tests.bench.open_session PATH KIND.

KIND is `own` for a bundle's graph, `copy` for a prepacked one, `tokenizer` for a tokenizer's file.
What the library does once in a process, for its first graph, is part of what is measured.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from service import host, tokenization
from service.session import Session, SessionSettings
from tests.bench import memory
from tests.bench.errors import BenchError
from tests.processes import PROJECT


@dataclass(frozen=True)
class Opened:
    """Wall-clock seconds, and the anonymous memory that is there afterwards and was not before."""

    seconds: float
    anonymous_bytes: int


def measure(path: Path, kind: str) -> Opened:
    """Open a file in a process of its own. Raises BenchError with what it said where that fails."""
    command = [sys.executable, "-m", "tests.bench.open_session", str(path.resolve()), kind]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BenchError(f"{path} could not be opened: {done.stderr[-memory.TAIL_BYTES :]}")
    return Opened(**json.loads(done.stdout))


def _open(path: Path, kind: str) -> Opened:
    settings = SessionSettings(host.num_usable_cores())
    openers: dict[str, Callable[[], object]] = {
        "own": lambda: Session(path, settings),
        "copy": lambda: Session(path, settings, is_prepacked=True),
        "tokenizer": lambda: tokenization.load(path),
    }
    before, begin = _anonymous(), time.perf_counter()
    opened = openers[kind]()
    seconds = time.perf_counter() - begin
    found = Opened(seconds, _anonymous() - before)
    del opened
    return found


def _anonymous() -> int:
    return memory.own_bytes(memory.ANONYMOUS)


if __name__ == "__main__":
    sys.stdout.write(json.dumps(asdict(_open(Path(sys.argv[1]), sys.argv[2]))))
