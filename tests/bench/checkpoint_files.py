"""Files of full-size random checkpoints: tensors, their indexes, documents. Knows formats and no model.

Every tensor is cut from one block of noise, repeated: gigabytes take seconds to write and little more memory
than the block. Weights are spread like untrained ones, norms are 1: states stay of a sane size to the end.
"""

from __future__ import annotations

import functools
import gzip
import json
import math
import shutil
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from tests.bench.errors import BenchError

SAFETENSORS_FILE = "model.safetensors"
NUM_NOISE = (1 << 24) - 3  # values of the block, 64 MB; prime: the rows of a table repeat shifted
STD = 0.02
ADAPTER_STDS = {"lora_A": 0.1, "lora_B": 0.16}  # together 0.4 of what they are added to (rank 4, scale 1/4)
FLOAT32, FLOAT16, BFLOAT16 = np.dtype("<f4"), np.dtype("<f2"), np.dtype(ml_dtypes.bfloat16)
SAFETENSORS_NAMES = {FLOAT32: "F32", BFLOAT16: "BF16"}
TORCH_STORAGES = {FLOAT32: b"FloatStorage", FLOAT16: b"HalfStorage"}
Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Weights:
    """What a file of weights holds."""

    shapes: Shapes
    dtype: np.dtype[Any]

    @property
    def num_bytes(self) -> int:
        """Return the bytes of all tensors."""
        return sum(map(self.size, self.shapes))

    def size(self, name: str) -> int:
        """Return the bytes of a tensor."""
        return self.dtype.itemsize * math.prod(self.shapes[name])


Files = Mapping[str, Weights]  # by file name
Documents = Mapping[str, Any]  # bytes as they are, all else as JSON; by file name


def sharded(weights: Weights, max_shards: int) -> tuple[Files, Documents]:
    """Split weights, in their order, into files of about equal size, and write down which tensor is where."""
    parts: list[Shapes] = [{} for _ in range(max_shards)]
    begin, total = 0, weights.num_bytes
    for name, shape in weights.shapes.items():
        parts[begin * max_shards // total][name] = shape
        begin += weights.size(name)
    parts = [part for part in parts if part]  # a large tensor may take the place of several
    files = {
        f"model-{number:05}-of-{len(parts):05}.safetensors": Weights(part, weights.dtype)
        for number, part in enumerate(parts, 1)
    }
    places = {name: file for file, shard in files.items() for name in shard.shapes}
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))}
    return files, {f"{SAFETENSORS_FILE}.index.json": index}


def read_gzip(path: Path, option: str) -> bytes:
    """Read a packed file. Raises BenchError that says what `option` must name."""
    if not path.is_file():
        raise BenchError(f"{path} is not there; name it with {option}")
    return gzip.decompress(path.read_bytes())


def write(folder: Path, files: Files, documents: Documents) -> None:
    """Write a checkpoint beside its place and move it there: a folder that is there is whole."""
    num_bytes = sum(weights.num_bytes for weights in files.values())
    check_space(folder, num_bytes, f"the checkpoint {folder.name}")
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        for name, document in documents.items():
            (partial / name).parent.mkdir(exist_ok=True)
            text = document if isinstance(document, bytes) else _json(document)
            (partial / name).write_bytes(text)
        for name, weights in files.items():
            (_write_safetensors if name.endswith(".safetensors") else _write_torch)(partial / name, weights)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def check_space(folder: Path, num_bytes: int, purpose: str) -> None:
    """Raise BenchError where the disk of a folder, which need not be there yet, has too little left."""
    existing = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    if num_bytes > (free := shutil.disk_usage(existing).free):
        raise BenchError(f"{purpose} needs {num_bytes / 1e9:.1f} GB in {folder}; free: {free / 1e9:.1f} GB")


def _json(document: object) -> bytes:
    return json.dumps(document, ensure_ascii=False, indent=2).encode() + b"\n"


@functools.cache
def _noise() -> npt.NDArray[np.float32]:
    return np.random.default_rng(0).standard_normal(NUM_NOISE, dtype=np.float32)


def _write_values(file: IO[bytes], name: str, weights: Weights) -> None:
    """Write a tensor's values from the block of noise, beginning at a place that the name decides."""
    shape = weights.shapes[name]
    std = ADAPTER_STDS.get(name.rpartition(".")[2], STD)
    is_norm = len(shape) == 1 and name.endswith(".weight")
    start, remaining = zlib.crc32(name.encode()) % NUM_NOISE, math.prod(shape)
    while remaining:
        part = _noise()[start : start + remaining]
        values = np.ones_like(part) if is_norm else part * np.float32(std)
        file.write(values.astype(weights.dtype, copy=False).view(np.uint8).data)
        start, remaining = 0, remaining - len(part)


def _write_safetensors(path: Path, weights: Weights) -> None:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in sorted(weights.shapes.items()):
        dtype, begin, end = SAFETENSORS_NAMES[weights.dtype], end, end + weights.size(name)
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name in sorted(weights.shapes):
            _write_values(file, name, weights)


def _write_torch(path: Path, weights: Weights) -> None:
    """Write a state dict as torch.save does: a zip of a pickle and one stored member for each tensor."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("archive/data.pkl", b"".join(_pickled(weights)))
        archive.writestr("archive/byteorder", b"little")
        for index, name in enumerate(weights.shapes):
            member = zipfile.ZipInfo(f"archive/data/{index}")
            member.file_size = weights.size(name)  # decides on zip64
            with archive.open(member, "w") as file:
                _write_values(file, name, weights)
        archive.writestr("archive/version", b"3\n")


def _pickled(weights: Weights) -> Iterator[bytes]:
    """Return a state dict in pickle protocol 2, tensors as references to the members of the zip."""
    ordered_dict, storage = b"ccollections\nOrderedDict\n)R", TORCH_STORAGES[weights.dtype]

    def word(text: str) -> bytes:
        return b"X" + struct.pack("<I", len(text)) + text.encode()

    def numbers(*values: int) -> bytes:
        return b"".join(b"J" + struct.pack("<i", value) for value in values)

    yield b"\x80\x02" + ordered_dict + b"("
    for index, (name, shape) in enumerate(weights.shapes.items()):
        strides = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
        yield word(name) + b"ctorch._utils\n_rebuild_tensor_v2\n(("
        yield word("storage") + b"ctorch\n" + storage + b"\n" + word(str(index)) + word("cpu")
        yield numbers(math.prod(shape)) + b"tQ" + numbers(0)
        yield b"(" + numbers(*shape) + b"t(" + numbers(*strides) + b"t\x89" + ordered_dict + b"tR"
    yield b"u."
