"""The lock of a cache: one process at a time makes copies, and those that wait learn how that ended."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from service.errors import BundleError

LOCK_FILE = ".lock"
POLL_SECONDS = 0.05
PATIENCE_SECONDS = 1.0  # a wait for longer is worth a line
MEMORY_SECONDS = 3600  # failures are of use to those that wait, not to later starts


@dataclass(frozen=True)
class Lock:
    """A lock that is held. What failed under it is in its file: graph -> (unix time, reason)."""

    file: BinaryIO
    asked: float  # unix time of the begin of the wait

    def failure_of(self, graph: Path) -> str:
        """Return the reason for which the graph's copy failed while this lock was waited for, or nothing."""
        when, reason = self._failures().get(str(graph), (0.0, ""))
        return reason if when >= self.asked else ""

    def record_failure(self, graph: Path, reason: str) -> None:
        """Tell those that wait; where that cannot be written, they try for themselves."""
        now = time.time()
        failures = {name: each for name, each in self._failures().items() if each[0] > now - MEMORY_SECONDS}
        with contextlib.suppress(OSError):
            self.file.seek(0)
            self.file.truncate()
            self.file.write(json.dumps({**failures, str(graph): (now, reason)}).encode())

    def _failures(self) -> dict[str, tuple[float, str]]:
        self.file.seek(0)
        try:
            return {str(name): (float(when), str(why)) for name, (when, why) in json.load(self.file).items()}
        except (ValueError, TypeError, AttributeError):
            return {}


@contextmanager
def held(cache_dir: Path, on_wait: Callable[[], None]) -> Iterator[Lock]:
    """Hold the cache's lock; `on_wait` is called once where that takes long.

    A process that inherits the file holds it too. Raises OSError where it cannot be opened, BundleError
    at the end of the service.
    """
    cache_dir.mkdir(parents=True, exist_ok=True)
    # A link there may lead to anybody's file.
    descriptor = os.open(cache_dir / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    with os.fdopen(descriptor, "r+b", buffering=0) as file:
        asked, begin, is_told = time.time(), time.monotonic(), False
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                check_running()
                if not is_told and time.monotonic() - begin > PATIENCE_SECONDS:
                    is_told = True
                    on_wait()
                time.sleep(POLL_SECONDS)
        yield Lock(file, asked)


def check_running() -> None:
    """Stop waiting when the process is ending: its last thread is the one that waits. Raises BundleError."""
    if not threading.main_thread().is_alive():
        raise BundleError("the service is stopping")
