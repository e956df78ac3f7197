"""Bundles on disk: graphs with external weights, hashes, and a publish that is all or nothing.

A bake holds the model's lock, works in a staging folder beside the bundles and swaps the finished folder in.
Whatever a killed bake left behind is stale by definition for the next holder of the lock, which removes it.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

from convert.graph import Constant, Graph, to_model
from service import manifest as contract
from service.errors import BakeError
from service.files import FileRecord, flush
from service.manifest import Manifest

WEIGHTS_FILE = "weights.data"
INLINE_MAX_BYTES = 1024  # smaller constants live in the graph file
ALIGNMENT = 4096  # so that weights can be mapped page by page
RENAME_EXCHANGE = 2  # linux/fs.h
AT_FDCWD = -100

OnBytes = Callable[[int], object]


class WeightsFile:
    """The external weights of one folder, shared by its graphs; constants of equal key are stored once."""

    def __init__(self, path: Path) -> None:
        """Create the file."""
        self._path = path
        self._file = path.open("wb")
        self._digest = hashlib.sha256()
        self._places: dict[str, tuple[int, int]] = {}  # key -> offset, length

    def place(self, constant: Constant, on_bytes: OnBytes) -> tuple[int, int]:
        """Return where the constant's bytes are, writing them first if they are new."""
        if constant.key not in self._places:
            self._append(b"\0" * (-self._file.tell() % ALIGNMENT))
            begin, num_rows = self._file.tell(), 0
            for part in constant.parts():
                values = np.ascontiguousarray(part, dtype=constant.dtype)
                num_rows += len(values)
                if values.shape[1:] != constant.shape[1:]:
                    raise BakeError(f"{constant.key} has shape {values.shape} instead of {constant.shape}")
                self._append(values.reshape(-1).view(np.uint8).data)
                on_bytes(values.nbytes)
            if num_rows != constant.shape[0]:
                raise BakeError(f"{constant.key} has {num_rows} rows instead of {constant.shape[0]}")
            self._places[constant.key] = (begin, self._file.tell() - begin)
        return self._places[constant.key]

    def _append(self, content: bytes | memoryview) -> None:
        self._digest.update(content)
        with _writing(self._path):
            self._file.write(content)

    def finish(self) -> FileRecord:
        """Flush to the disk; return size and hash."""
        with _writing(self._path):
            self._file.flush()
            os.fsync(self._file.fileno())
        return FileRecord(size=self._file.tell(), sha256=self._digest.hexdigest())

    def close(self) -> None:
        """Close the file, finished or not: what a full disk has not taken is no loss then."""
        with suppress(OSError):
            self._file.close()


def weights_bytes(graphs: Mapping[str, Graph]) -> int:
    """Return the size of the weights outside the graph files, those that graphs share counted once."""
    sizes = {value.key: value.num_bytes for graph in graphs.values() for value in graph.constants.values()}
    return sum(size for size in sizes.values() if size > INLINE_MAX_BYTES)


def write_graphs(
    staged: Path, folder: str, graphs: Mapping[str, Graph], on_bytes: OnBytes
) -> dict[str, FileRecord]:
    """Write graphs and the weights they share into a folder; return what was written, by path."""
    target = staged / folder
    target.mkdir()
    records = {}
    with closing(WeightsFile(target / WEIGHTS_FILE)) as weights:
        for name, graph in graphs.items():
            initializers = [
                _initializer(weights, name, value, on_bytes) for name, value in graph.constants.items()
            ]
            content = to_model(graph, initializers).SerializeToString(deterministic=True)
            written = write_file(target / f"{name}.onnx", content)
            records[f"{folder}/{name}.onnx"] = replace(written, weights_bytes=weights_bytes({name: graph}))
        records[f"{folder}/{WEIGHTS_FILE}"] = weights.finish()
    return records


def _initializer(weights: WeightsFile, name: str, constant: Constant, on_bytes: OnBytes) -> onnx.TensorProto:
    if constant.num_bytes <= INLINE_MAX_BYTES:
        values = np.ascontiguousarray(constant.read()).reshape(constant.shape)  # a scalar would gain an axis
        return numpy_helper.from_array(values, name)
    offset, length = weights.place(constant, on_bytes)
    data_type = helper.np_dtype_to_tensor_dtype(constant.dtype)
    tensor = onnx.TensorProto(name=name, data_type=data_type, dims=constant.shape)
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", WEIGHTS_FILE), ("offset", str(offset)), ("length", str(length))):
        tensor.external_data.add(key=key, value=value)
    return tensor


def write_file(path: Path, content: bytes) -> FileRecord:
    """Write a small file and flush it to the disk; return size and hash."""
    with _writing(path), path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    return FileRecord(size=len(content), sha256=hashlib.sha256(content).hexdigest())


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Turn what the disk refuses into an error that names the file and the remedy."""
    try:
        yield
    except OSError as error:
        out = path.parents[1]
        free = shutil.disk_usage(out).free / 1e9
        raise BakeError(
            f"{path} cannot be written: {error.strerror}; {free:.1f} GB are free in {out}. Nothing was "
            "published; free some space, or name another folder with --out"
        ) from error


@contextmanager
def staging(out: Path, name: str) -> Iterator[Path]:
    """Give an empty folder to bake in, and remove it at the end unless `publish` has moved it away.

    Raises BakeError when another bake of the same model is running.
    """
    out.mkdir(parents=True, exist_ok=True)
    with (out / f".{name}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BakeError(f"another bake of {name} is running in {out}") from error
        folder, replaced = _staging_folder(out, name), _replaced_folder(out, name)
        if replaced.exists() and not (out / name).exists():
            # A bake was killed between the two renames of a platform without exchange.
            replaced.rename(out / name)
        _remove(replaced)
        _remove(folder)
        folder.mkdir()
        try:
            yield folder
        finally:
            _remove(folder)


def publish(folder: Path, manifest: Manifest) -> Path:
    """Write the manifest into the staging folder and swap it in; return the bundle's folder."""
    write_file(folder / contract.MANIFEST_FILE, contract.encode(manifest))
    for changed in (folder, *(path for path in folder.iterdir() if path.is_dir())):
        flush(changed)
    out = folder.parent
    target = out / manifest.name
    if not target.exists():
        folder.rename(target)
    elif not _exchange(folder, target):
        replaced = _replaced_folder(out, manifest.name)
        target.rename(replaced)
        try:
            folder.rename(target)
        except OSError:
            replaced.rename(target)
            raise
        _remove(replaced)
    flush(out)
    return target


def _staging_folder(out: Path, name: str) -> Path:
    return out / f".{name}.staging"


def _replaced_folder(out: Path, name: str) -> Path:
    return out / f".{name}.replaced"


def _remove(path: Path) -> None:
    """Remove a folder, or the link to one that a user made and a bake has replaced."""
    if path.is_symlink():
        path.unlink()
    else:
        shutil.rmtree(path, ignore_errors=True)


def _exchange(one: Path, other: Path) -> bool:
    """Swap two folders in one step; return False where the platform or file system cannot."""
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "renameat2"):
        return False
    names = os.fsencode(one), os.fsencode(other)
    if libc.renameat2(AT_FDCWD, names[0], AT_FDCWD, names[1], RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.EINVAL, errno.ENOSYS, errno.EXDEV):
        return False
    raise OSError(code, os.strerror(code), str(other))
