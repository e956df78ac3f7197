"""The folder in which the workers of a start keep their metrics, so that each can answer for all.

gunicorn's master makes it before the first fork, buries the dead and removes it at the end. Knows files of
metrics and processes, no metric.
"""

from __future__ import annotations

import atexit
import fcntl
import os
import shutil
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from service.errors import ConfigError

VARIABLE = "PROMETHEUS_MULTIPROC_DIR"  # prometheus_client reads it when it is imported: in the worker
MEMORY_DISK = Path("/dev/shm")  # where writing a figure never waits for a disk
DEAD = "dead"  # stands for all workers that have ended
SUMMED_KINDS = ("counter", "histogram")


def make() -> Path:
    """Make a folder for the processes forked from this one, which removes it when it ends."""
    parent = MEMORY_DISK if MEMORY_DISK.is_dir() else None
    folder = Path(tempfile.mkdtemp(prefix="jina-onnx-server-", dir=parent))
    atexit.register(_remove, folder, os.getpid())
    return folder


def _remove(folder: Path, owner: int) -> None:
    if os.getpid() == owner:  # not a worker, which has inherited the call
        shutil.rmtree(folder, ignore_errors=True)


def from_environment(environ: Mapping[str, str]) -> Path | None:
    """Return the folder that this process shares with others; None: it is alone. Raises ConfigError."""
    if VARIABLE not in environ:
        return None
    folder = Path(environ[VARIABLE])
    if not environ[VARIABLE] or not folder.is_dir() or not os.access(folder, os.W_OK):
        raise ConfigError(
            f"{VARIABLE} is {str(environ[VARIABLE])!r}, must be a folder to write in; or unset it"
        )
    return folder


def living(folder: Path) -> list[int]:
    """List the processes that have metrics in the folder and have not been buried."""
    return sorted({int(path.stem.rpartition("_")[2]) for path in folder.glob("gauge_live*_*.db")})


@contextmanager
def locked(folder: Path, *, is_shared: bool = False, may_wait: bool = True) -> Iterator[bool]:
    """Hold the folder's files still, alone or with others that read; tell whether it could be had at once."""
    kind = fcntl.LOCK_SH if is_shared else fcntl.LOCK_EX
    number = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(number, kind if may_wait else kind | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
    finally:
        os.close(number)


def bury(folder: Path, pid: int) -> None:
    """Forget what a process that has ended held, and keep what it has counted.

    Its counts go to those of all the dead, so that the files stay as few as the living. Who reads just now is
    not waited for: then the counts stay where they are, and count as well, until the next one is buried.
    """
    from prometheus_client import multiprocess  # here: the library looks for the folder when it is imported

    multiprocess.mark_process_dead(pid, str(folder))
    with locked(folder, may_wait=False) as is_still:
        if is_still:
            for kind in SUMMED_KINDS:
                _sum_up(folder, kind)


def _sum_up(folder: Path, kind: str) -> None:
    from prometheus_client.mmap_dict import MmapedDict

    grave = folder / f"{kind}_{DEAD}.db"
    dead = [path for path in folder.glob(f"{kind}_*.db") if path != grave and not _is_alive(path)]
    totals: defaultdict[str, float] = defaultdict(float)
    for path in [*dead, *([grave] if grave.exists() else [])]:
        for key, value, *_ in MmapedDict.read_all_values_from_file(path):
            totals[key] += value
    made = folder / f"{grave.name}.new"
    made.unlink(missing_ok=True)
    summed = MmapedDict(str(made))
    for key, total in totals.items():
        summed.write_value(key, total, 0.0)
    summed.close()
    made.chmod(0o644)
    made.replace(grave)
    for path in dead:
        path.unlink()


def _is_alive(path: Path) -> bool:
    try:
        os.kill(int(path.stem.rpartition("_")[2]), 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's
        return True
    return True
