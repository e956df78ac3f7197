"""Anonymous memory of a process and all its descendants, sampled. Knows /proc, no command and no service.

Anonymous memory is what a process has made itself: pages of mapped files, weights among them, are the page
cache's and can be dropped. A page that a fork shares with its parent counts for both; a peak shorter than
the interval between two samples can be missed. Linux only.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TypeVar

from tests.bench.errors import BenchError

PROC = Path("/proc")
CHILDREN = PROC / "thread-self" / "children"
SAMPLE_SECONDS = 0.05
TAIL_BYTES = 4000
ANONYMOUS, RESIDENT = "RssAnon", "VmRSS"
KIBIBYTE = 1024

Result = TypeVar("Result")


@dataclass(frozen=True)
class Measured:
    """What became of a command."""

    returncode: int
    seconds: float
    peak_anonymous_bytes: int
    output_tail: str  # of standard output and standard error


def run_measured(
    command: Sequence[str], environment: Mapping[str, str], folder: Path | None = None
) -> Measured:
    """Run a command in `folder` until it ends; an exception, Ctrl-C included, kills it."""
    with tempfile.TemporaryFile() as output:
        begin = time.perf_counter()
        process = subprocess.Popen(
            command, cwd=folder, env=dict(environment), stdout=output, stderr=subprocess.STDOUT
        )
        try:
            returncode, peak = peak_while(process.pid, process.wait)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
        return Measured(returncode, time.perf_counter() - begin, peak, _tail(output))


def anonymous_bytes(pid: int) -> int:
    """Return the anonymous memory of a process and its descendants; 0 where there is no such process."""
    return _tree_bytes(pid, ANONYMOUS)


def resident_bytes(pid: int) -> int:
    """Return the resident memory of a process and its descendants, what they share counted for each."""
    return _tree_bytes(pid, RESIDENT)


def own_bytes(field: str) -> int:
    """Return a figure of this process alone."""
    return _status_bytes(os.getpid(), field)


def peak_while(pid: int, action: Callable[[], Result]) -> tuple[Result, int]:
    """Run `action` here; return its result and the most anonymous bytes the process tree had meanwhile.

    Samples are taken by a thread, the first before `action` begins and the last after it has ended.
    """
    samples = [anonymous_bytes(pid)]
    is_over = threading.Event()

    def sample() -> None:
        while not is_over.wait(SAMPLE_SECONDS):
            samples[0] = max(samples[0], anonymous_bytes(pid))

    sampler = threading.Thread(target=sample, daemon=True)
    sampler.start()
    try:
        result = action()
    finally:
        is_over.set()
        sampler.join()
    return result, max(samples[0], anonymous_bytes(pid))


def _tree_bytes(pid: int, field: str) -> int:
    if not CHILDREN.exists():
        raise BenchError(f"memory is measured through {CHILDREN}, which this system does not have")
    return sum(_status_bytes(member, field) for member in tree(pid))


def tree(pid: int) -> list[int]:
    """Return a process and its descendants."""
    members = [pid]
    for member in members:  # grows while it is read
        with suppress(OSError):  # a thread or the process has ended meanwhile
            for thread in (PROC / str(member) / "task").iterdir():
                members += map(int, (thread / "children").read_bytes().split())
    return members


def _status_bytes(pid: int, field: str) -> int:
    """Read one figure of a process; 0 where it has ended."""
    try:
        lines = (PROC / str(pid) / "status").read_text(errors="replace").splitlines()
    except OSError:
        return 0
    kibibytes = next((line.split()[1] for line in lines if line.startswith(f"{field}:")), "0")
    return int(kibibytes) * KIBIBYTE


def _tail(output: IO[bytes]) -> str:
    size = output.seek(0, 2)
    output.seek(max(0, size - TAIL_BYTES))
    return output.read().decode(errors="replace").strip()
