"""Moves the constants that ONNX Runtime saved to where a copy keeps them. Knows tensors, no models.

Packed weights are copied to a file of the graph's own, page by page; all others stay in the bundle's file,
once their bytes there are seen to be the same.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from service.wire import Entries, External

SAVED_DATA = "saved.data"  # what ONNX Runtime was told to write
ALIGNMENT = 4096  # weights begin on pages of their own
BLOCK_BYTES = 1 << 22
LOCATION, OFFSET, LENGTH, PREPACKED = "location", "offset", "length", "prepacked_"
BLOB = re.compile(r"(\d+);(\d+);(\d+)")  # offset, length, checksum
BLOBS = re.compile(rf"[^|;]+(?:[|;]{BLOB.pattern})+[|;]?")  # a key, then where its parts are


@dataclass
class Compaction:
    """The file of packed weights while it is written, and where the graph had its constants before."""

    saved: BinaryIO
    written: BinaryIO
    name: str
    weights: Path | None  # the bundle's file
    known: dict[str, Entries]

    def place(self, tensor: External) -> Entries:
        """Say where a saved tensor is from now on, writing its bytes where they are not the bundle's own."""
        if tensor.entries.get(LOCATION) != SAVED_DATA:
            raise ValueError(f"{tensor.name} is in {tensor.entries.get(LOCATION)!r}")
        offset, length = int(tensor.entries[OFFSET]), int(tensor.entries[LENGTH])
        packed = {key: value for key, value in tensor.entries.items() if key.startswith(PREPACKED)}
        known = self.known.get(tensor.name)
        if not packed and known and self._is_in_bundle(known, offset, length):
            return known
        place = {LOCATION: self.name, OFFSET: str(self._append(offset, length)), LENGTH: str(length)}
        return place | {key: self._move_blobs(value) for key, value in packed.items()}

    def _move_blobs(self, value: str) -> str:
        if not BLOBS.fullmatch(value):
            raise ValueError(f"{value!r} does not say where packed weights are")

        def move(found: re.Match[str]) -> str:
            offset, length, checksum = found.groups()
            return f"{self._append(int(offset), int(length))};{length};{checksum}"

        key, separator, blobs = value.partition("|")
        return key + separator + BLOB.sub(move, blobs)

    def _append(self, offset: int, length: int) -> int:
        """Copy saved bytes; return where they begin."""
        self.written.write(b"\0" * (-self.written.tell() % ALIGNMENT))
        begin = self.written.tell()
        for position in range(0, length, BLOCK_BYTES):
            size = min(BLOCK_BYTES, length - position)
            self.written.write(_read(self.saved, offset + position, size))
        return begin

    def _is_in_bundle(self, known: Entries, offset: int, length: int) -> bool:
        if self.weights is None or int(known.get(LENGTH, -1)) != length:
            return False
        begin = int(known.get(OFFSET, 0))
        with self.weights.open("rb") as weights:
            return all(
                _read(self.saved, offset + position, min(BLOCK_BYTES, length - position))
                == _read(weights, begin + position, min(BLOCK_BYTES, length - position))
                for position in range(0, length, BLOCK_BYTES)
            )


def _read(file: BinaryIO, offset: int, size: int) -> bytes:
    file.seek(offset)
    content = file.read(size)
    if len(content) != size:
        raise ValueError(f"{file.name} ends before byte {offset + size}")
    return content
