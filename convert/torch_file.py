"""Files of torch.save as named tensors, read one at a time, without torch. Knows no architecture.

The pickle in the file is followed by `torch_pickle`, which executes nothing. Refused: files from before torch
1.6 (no zip), compressed and big-endian ones, and tensors that are quantised, sparse, complex, lazily
conjugated or expanded.
"""

from __future__ import annotations

import io
import math
import mmap
import struct
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from convert.torch_pickle import Rebuilt, Refusal, shown, unpickled
from service.errors import BakeError

LEGACY_MAGIC = b"\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."  # the pickled number that older files begin with
LOCAL_MAGIC = b"PK\x03\x04"  # before each member of a zip file
MAX_PICKLE_BYTES = 4 << 20  # some 15 000 tensors; a hostile byte makes about 100 bytes of objects
MAX_DIMENSIONS = 32  # what every numpy can hold
MAX_NUMBER = 2**48  # above any file's size
# What zipfile and pickletools raise for a broken file.
DAMAGE = (zipfile.BadZipFile, struct.error, ValueError, LookupError, ArithmeticError, EOFError, RuntimeError)


@dataclass(frozen=True)
class TorchTensor:
    """A tensor's place in a file; `start` and `strides` count bytes."""

    path: Path
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    start: int
    strides: tuple[int, ...]

    def read(self) -> npt.NDArray[Any]:
        """Return the values in C order: a read-only view of the mapped file, or a copy if they lie strided.

        The mapping ends with the array. Raises BakeError when the file is gone or shorter than it was.
        """
        if 0 in self.shape:
            return np.empty(self.shape, self.dtype)
        try:
            with self.path.open("rb") as file:
                mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            stored: npt.NDArray[Any] = np.ndarray(self.shape, self.dtype, mapped, self.start, self.strides)
        except (OSError, ValueError, TypeError) as error:  # numpy checks the bounds of the mapping once more
            raise BakeError(f"{self.path} has changed since it was opened: {error}") from error
        return np.asarray(stored, order="C")


def open_torch_file(path: Path) -> dict[str, TorchTensor]:
    """List the tensors of a state dict, or of the one under its key `state_dict`; read none of their values.

    Raises BakeError when the file is damaged, or names anything but tensors and ordered dicts.
    """
    try:
        with path.open("rb") as file:
            return _tensors(path, file)
    except Refusal as refusal:
        raise BakeError(f"{path} is refused: {refusal}") from refusal
    except OSError as error:
        raise BakeError(f"{path} cannot be read: {error.strerror or error}") from error
    except DAMAGE as error:
        raise BakeError(f"{path} is damaged: {error}") from error


def _tensors(path: Path, file: BinaryIO) -> dict[str, TorchTensor]:
    archive = _opened(file)
    if "byteorder" in archive.members and archive.read("byteorder") != b"little":
        raise Refusal("its numbers are not little-endian; save it again as safetensors")
    state = unpickled(archive.read("data.pkl"))
    if type(state) is dict and type(state.get("state_dict")) is dict:
        state = state["state_dict"]
    tensors = {}
    for name, value in state.items() if type(state) is dict else ():
        if type(name) is str and type(value) is Rebuilt:
            try:
                start, strides = _placed(archive, value)
            except Refusal as refusal:
                raise Refusal(f"its tensor '{shown(name)}' {refusal}") from refusal
            tensors[name] = TorchTensor(path, value.shape, value.dtype, start, strides)
    if not tensors:
        raise Refusal("it holds no named tensors, neither at the top nor under 'state_dict'")
    return tensors


def _placed(archive: _Archive, tensor: Rebuilt) -> tuple[int, tuple[int, ...]]:
    """Check a tensor against its storage; return its start in the file and its strides, in bytes."""
    if len(tensor.shape) != len(tensor.strides) or len(tensor.shape) > MAX_DIMENSIONS:
        raise Refusal(f"has {len(tensor.shape)} sizes and {len(tensor.strides)} strides")
    numbers = (tensor.offset, *tensor.shape, *tensor.strides)
    if not all(type(number) is int and 0 <= number < MAX_NUMBER for number in numbers):
        raise Refusal("has an offset, size or stride that is negative, too large or no integer")
    if math.prod(max(size, 1) for size in tensor.shape) >= MAX_NUMBER:  # numpy counts so for empty ones too
        raise Refusal("is too large")
    start, num_bytes = archive.place(f"data/{tensor.storage.key}")
    if num_bytes != tensor.storage.num_bytes:
        raise Refusal(
            f"has a storage of {tensor.storage.num_bytes} bytes, of which the file holds {num_bytes}"
        )
    steps = zip(tensor.shape, tensor.strides, strict=True)
    num_reached = 0 if 0 in tensor.shape else 1 + sum((size - 1) * stride for size, stride in steps)
    itemsize = tensor.dtype.itemsize
    if max(math.prod(tensor.shape), tensor.offset + num_reached) > num_bytes // itemsize:
        raise Refusal("goes beyond its storage, or repeats it as expand() does")
    return start + tensor.offset * itemsize, tuple(stride * itemsize for stride in tensor.strides)


@dataclass(frozen=True)
class _Archive:
    """An open zip file: its members by their names without the common folder."""

    file: BinaryIO
    members: dict[str, zipfile.ZipInfo]

    def place(self, name: str) -> tuple[int, int]:
        """Return where the bytes of a member begin in the file, and how many they are."""
        if name not in self.members:
            raise Refusal(f"needs {shown(name)}, which is not in the file")
        member = self.members[name]
        if member.compress_type != zipfile.ZIP_STORED or member.flag_bits & 1:
            raise Refusal(f"needs {shown(name)}, which is compressed or encrypted; save it as safetensors")
        self.file.seek(member.header_offset)
        magic, name_length, extra_length = struct.unpack("<4s22x2H", self.file.read(30))
        start = member.header_offset + 30 + name_length + extra_length
        if magic != LOCAL_MAGIC or start + member.file_size > self.file.seek(0, io.SEEK_END):
            raise Refusal(f"needs {shown(name)}, which is not where the list of members puts it")
        return start, member.file_size

    def read(self, name: str) -> bytes:
        """Read a small member. Its checksum is not looked at: torch can be told to write none."""
        start, num_bytes = self.place(name)
        if num_bytes > MAX_PICKLE_BYTES:
            raise Refusal(f"its {name} has {num_bytes} bytes, above the {MAX_PICKLE_BYTES} that are read")
        self.file.seek(start)
        return self.file.read(num_bytes)


def _opened(file: BinaryIO) -> _Archive:
    head = file.read(64)
    if LEGACY_MAGIC in head:
        raise Refusal(
            "it is in the format of before torch 1.6; save it again as safetensors or with a newer torch"
        )
    if not head.startswith(LOCAL_MAGIC):
        raise Refusal("it is not a file of torch.save")
    with zipfile.ZipFile(file) as archive:
        members = {member.filename: member for member in archive.infolist()}
    folders = [folder for folder, _, name in (name.partition("/") for name in members) if name == "data.pkl"]
    if len(folders) != 1:
        raise Refusal(f"it holds {len(folders)} members FOLDER/data.pkl; a file of torch.save holds one")
    return _Archive(file, {name.removeprefix(f"{folders[0]}/"): member for name, member in members.items()})
