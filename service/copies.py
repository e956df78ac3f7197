"""The cache of prepacked graphs: which copy a graph has, one maker at a time, what is removed.

CACHE_DIR/<version of ONNX Runtime>-<instruction set>/<sha256 of manifest.json>/<the bundle's paths>. All
workers map a copy's files, and so share one set of weights. Opens no graph; copies are made by a process of
its own, which gives back the memory that takes, and whose crash is not the service's.
"""

from __future__ import annotations

import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path, PurePath

from service import cache_lock, cleaning, copy_records, footprint, host, logs, prepacking, providers
from service.cache_lock import Lock
from service.cleaning import Owner
from service.errors import BundleError
from service.files import check_hashes, sha256_of
from service.manifest import MANIFEST_FILE, Manifest

# Below this a copy is not worth its files. The default model in int8, 25 MB, takes 10 MB less in each worker
# with one, for a second at the first start; 4 MB would save less than a worker's code takes.
MIN_WEIGHTS_BYTES = 4 << 20
MAKER_BYTES = 256 << 20  # of memory, beside the weights that a maker packs
MAKER = (sys.executable, "-m", "service.prepacking")
PROJECT = Path(__file__).resolve().parent.parent  # where `python -m service.prepacking` finds the package
MAX_REASON = 500  # characters of what a maker says


class NoCopy(Exception):
    """A copy is not made; the message says why."""


@dataclass(frozen=True)
class Copies:
    """The copies of one bundle's graphs."""

    cache_dir: Path
    bundle: Path
    manifest: Manifest
    manifest_sha256: str
    with_hashes: bool = False  # whether the hashes of copies are checked before they are used
    _checked: set[str] = field(default_factory=set)  # files of the bundle

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
        if not self._pays(file):
            return None
        if self._is_whole(graph):
            return graph
        self.check_unchanged()
        try:
            with cache_lock.held(self.cache_dir, lambda: self._tell_of_wait(file)) as lock:
                if not self._is_whole(graph):
                    self._make_once(file, lock)
            return graph
        except (OSError, NoCopy) as error:
            self.warn("no copy is made, the weights are not shared", file, _reason(error))
            return None

    def check_own(self, file: str) -> None:
        """Compare a bundle's own graph and its weights with their hashes, each once. Raises BundleError.

        A maker does so before it copies. This is for the CPU where no copy is made; VERIFY_HASHES covers all.
        """
        if self.with_hashes:
            return
        parent = PurePath(file).parent
        records = {
            name: record
            for name, record in self.manifest.files.items()
            if name not in self._checked
            and (name == file or (PurePath(name).parent == parent and not name.endswith(".onnx")))
        }
        check_hashes(self.bundle, records)
        self._checked.update(records)

    def can_share(self, file: str) -> bool:
        """Tell whether a graph's copy is there, or looks as if it could be made. Writes nothing."""
        graph = self.folder / file
        if not self._pays(file):
            return False
        if copy_records.is_whole(graph, with_hashes=False):
            return True
        folder = next(parent for parent in graph.absolute().parents if parent.exists())
        weights = footprint.weights_bytes(self.manifest, file)
        try:
            needed = prepacking.disk_bytes(weights, self.bundle / file, folder)
            has_room = needed <= shutil.disk_usage(folder).free
        except OSError:
            return False
        return has_room and os.access(folder, os.W_OK | os.X_OK) and not self._lack_of_memory(file)

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
        if ".." in parent.parts or parent.is_absolute():
            return False
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

    def _make_once(self, file: str, lock: Lock) -> None:
        """Make a copy, unless another process has failed to since this one began to wait."""
        graph = self.folder / file
        if reason := lock.failure_of(graph) or self._lack_of_memory(file):
            raise NoCopy(reason)
        for error in cleaning.clean(self.cache_dir, self.folder, self.owner):
            self.warn("the cache cannot be cleaned", file, str(error))
        try:
            self._make(file, lock)
        except (OSError, NoCopy) as failure:
            lock.record_failure(graph, _reason(failure))
            raise

    def _lack_of_memory(self, file: str) -> str:
        """Say why a maker would not have enough memory; nothing where it has, or where that is not known."""
        needed, room = footprint.weights_bytes(self.manifest, file) + MAKER_BYTES, host.available_memory()
        if room is None or needed <= room:
            return ""
        return f"making one takes {needed / 1e9:.2f} GB of memory, {room / 1e9:.2f} GB are free"

    def _tell_of_wait(self, file: str) -> None:
        name, folder = self.manifest.name, str(self.cache_dir)
        message = "waiting for another process that makes copies"
        logs.write(logging.INFO, message, model=name, file=file, cache_dir=folder)

    def _make(self, file: str, lock: Lock) -> None:
        """Run a maker. Raises BundleError for a broken bundle, OSError for the cache, NoCopy for all else."""
        begin = time.monotonic()
        self.folder.mkdir(parents=True, exist_ok=True)
        self.owner.write(self.folder)
        arguments = [self.owner.bundle, file, str(self.folder.resolve()), self.manifest_sha256]
        status, reason = _run_maker(arguments, lock)
        if status == prepacking.BROKEN_BUNDLE:
            raise BundleError(reason)
        if status:
            shutil.rmtree(self.folder / prepacking.STAGING, ignore_errors=True)
        if status == prepacking.NO_CACHE:
            raise OSError(reason)
        if status == -signal.SIGKILL:
            raise NoCopy("the maker was killed, perhaps out of memory")
        if status:
            raise NoCopy(f"{reason or 'the maker ended'} (status {status})")
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


def _reason(error: Exception) -> str:
    return f"{error}; CACHE_DIR may name another folder" if isinstance(error, OSError) else str(error)


def _run_maker(arguments: list[str], lock: Lock) -> tuple[int, str]:
    """Run a maker to its end; return its status and the end of what it said."""
    with subprocess.Popen(
        [*MAKER, *arguments],
        cwd=PROJECT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        pass_fds=[lock.file.fileno()],
    ) as maker:
        while True:
            try:
                _, said = maker.communicate(timeout=cache_lock.POLL_SECONDS)
                break
            except subprocess.TimeoutExpired:
                try:
                    cache_lock.check_running()
                except BundleError:
                    maker.kill()
                    raise
    return maker.returncode, said.decode(errors="replace").strip()[-MAX_REASON:]
