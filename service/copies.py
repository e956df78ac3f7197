"""The cache of prepacked graphs: which copy a graph has, one maker at a time, what is removed.

CACHE_DIR/<version of ONNX Runtime>-<instruction set>/<sha256 of manifest.json>/<the bundle's paths>. All
workers map a copy's files, and so share one set of weights. Opens no graph; copies are made by a process of
its own, which gives back the memory that takes, and whose crash is not the service's.
"""

from __future__ import annotations

import fcntl
import logging
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import IO

from service import cleaning, copy_records, host, logs, prepacking, providers
from service.cleaning import Owner
from service.errors import BundleError
from service.files import sha256_of
from service.manifest import MANIFEST_FILE, Manifest

# Below this a copy is not worth its files. The default model in int8, 25 MB, takes 10 MB less in each worker
# with one, for a second at the first start; 4 MB would save less than a worker's code takes.
MIN_WEIGHTS_BYTES = 4 << 20
LOCK_FILE = ".lock"
POLL_SECONDS = 0.05
PROJECT = Path(__file__).resolve().parent.parent  # where `python -m service.prepacking` finds the package
MAX_REASON = 500  # characters of what a maker says


@dataclass(frozen=True)
class Copies:
    """The copies of one bundle's graphs."""

    cache_dir: Path
    bundle: Path
    manifest: Manifest
    manifest_sha256: str
    with_hashes: bool = False  # whether the hashes of copies are checked before they are used

    @property
    def folder(self) -> Path:
        """Return where the copies of this bundle, version and instruction set are."""
        return self.cache_dir / f"{providers.RUNTIME_VERSION}-{host.instruction_set()}" / self.manifest_sha256

    @property
    def owner(self) -> Owner:
        """Return the model, and its bundle by the name that it has in the models folder."""
        return Owner(self.manifest.name, str(self.bundle.parent.resolve() / self.bundle.name))

    def find(self, file: str) -> Path | None:
        """Return the copy of a graph, making it where there is none; None: open the bundle's own.

        Raises BundleError when the bundle is not what its manifest says, or no longer what it was.
        """
        graph = self.folder / file
        if ".." in PurePath(file).parts or not self._pays(file):
            return None
        if self._is_whole(graph):
            return graph
        self.check_unchanged()
        try:
            with self._lock() as lock:
                if not self._is_whole(graph):
                    for error in cleaning.clean(self.cache_dir, self.folder, self.owner):
                        self.warn("the cache cannot be cleaned", file, str(error))
                    self._make(file, lock)
            return graph
        except OSError as error:
            reason = f"{error}; CACHE_DIR may name another folder"
            self.warn("no copy is made, the weights are not shared", file, reason)
            return None

    def discard(self, file: str, reason: str) -> None:
        """Forget a copy that cannot be opened; the next start makes another."""
        self.warn("a copy cannot be opened, the bundle's own graph is", file, reason)
        try:
            copy_records.record_of(self.folder / file).unlink(missing_ok=True)
        except OSError as error:
            self.warn("a copy cannot be discarded", file, str(error))

    def warn(self, message: str, file: str, reason: str) -> None:
        """Write a line about a graph's copy."""
        name, folder = self.manifest.name, str(self.cache_dir)
        logs.write(logging.WARNING, message, model=name, file=file, cache_dir=folder, reason=reason)

    def _pays(self, file: str) -> bool:
        parent = PurePath(file).parent
        sizes = (
            record.size for name, record in self.manifest.files.items() if PurePath(name).parent == parent
        )
        return sum(sizes) >= MIN_WEIGHTS_BYTES

    def _is_whole(self, graph: Path) -> bool:
        return copy_records.is_whole(graph, with_hashes=self.with_hashes)

    def check_unchanged(self) -> None:
        """Compare the bundle's manifest with the one that was loaded. Raises BundleError."""
        if digest_of(self.bundle) != self.manifest_sha256:
            raise BundleError(f"{self.bundle} was replaced while the service ran: restart the service")

    @contextmanager
    def _lock(self) -> Iterator[IO[str]]:
        """Hold the cache's lock. A maker inherits it: it is free only when both have ended."""
        self.cache_dir.mkdir(parents=True, exist_ok=True)
        with (self.cache_dir / LOCK_FILE).open("w") as lock:
            while True:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    _check_running()
                    time.sleep(POLL_SECONDS)
            yield lock

    def _make(self, file: str, lock: IO[str]) -> None:
        """Run a maker. Raises OSError with its reason when it fails, BundleError for a broken bundle."""
        begin = time.monotonic()
        self.folder.mkdir(parents=True, exist_ok=True)
        self.owner.write(self.folder)
        arguments = [self.owner.bundle, file, str(self.folder.resolve()), self.manifest_sha256]
        status, reason = _run_maker(arguments, lock)
        if status == prepacking.BROKEN_BUNDLE:
            raise BundleError(reason)
        if status:
            shutil.rmtree(self.folder / prepacking.STAGING, ignore_errors=True)
            raise OSError(f"{reason or 'the maker ended'} (status {status})")
        logs.write(
            logging.INFO,
            "graph copied",
            model=self.manifest.name,
            file=file,
            seconds=round(time.monotonic() - begin, 1),
            megabytes=round(copy_records.own_bytes(self.folder / file) / 1e6),
        )


def digest_of(bundle: Path) -> str:
    """Return the sha256 of a bundle's manifest; taken before it is loaded. Raises BundleError."""
    path = bundle / MANIFEST_FILE
    try:
        return sha256_of(path)
    except OSError as error:
        raise BundleError(f"{path} cannot be read: {error.strerror}; was the bundle removed?") from error


def _run_maker(arguments: list[str], lock: IO[str]) -> tuple[int, str]:
    """Run a maker to its end; return its status and the end of what it said."""
    command = [sys.executable, "-m", "service.prepacking", *arguments]
    with subprocess.Popen(
        command,
        cwd=PROJECT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        pass_fds=[lock.fileno()],
    ) as maker:
        while True:
            try:
                _, said = maker.communicate(timeout=POLL_SECONDS)
                break
            except subprocess.TimeoutExpired:
                try:
                    _check_running()
                except OSError:
                    maker.kill()
                    raise
    return maker.returncode, said.decode(errors="replace").strip()[-MAX_REASON:]


def _check_running() -> None:
    """Stop waiting when the process is ending: its last thread is the one that waits."""
    if not threading.main_thread().is_alive():
        raise OSError("the service is stopping")
