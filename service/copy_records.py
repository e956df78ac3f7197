"""What a copy of a graph consists of, written beside it when it is whole. Knows sizes, times and hashes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from service.files import flush, sha256_of

SUFFIX = ".json"


@dataclass(frozen=True)
class CopiedFile:
    """A file of a copy. The time tells whether a file that a bundle shares was written over since."""

    size: int  # bytes
    modified: int  # nanoseconds
    sha256: str

    def agrees(self, path: Path, *, with_hash: bool = False) -> bool:
        """Tell whether the file on the disk is the one recorded."""
        try:
            found = path.stat()
            as_recorded = (found.st_size, found.st_mtime_ns) == (self.size, self.modified)
            return as_recorded and not (with_hash and sha256_of(path) != self.sha256)
        except OSError:
            return False


Record = Mapping[str, CopiedFile]  # by name, all in the folder of the record


def record_of(graph: Path) -> Path:
    """Name the record of a graph's copy."""
    return graph.with_suffix(SUFFIX)


def load(path: Path) -> Record:
    """Read a record; one that is missing or unreadable says that there is nothing."""
    try:
        found = json.loads(path.read_bytes())
        return {str(name): CopiedFile(**fields) for name, fields in found.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def save(path: Path, record: Record) -> None:
    """Write a record and flush it to the disk."""
    write_flushed(path, json.dumps({name: asdict(file) for name, file in record.items()}).encode())


def is_whole(graph: Path, *, with_hashes: bool) -> bool:
    """Tell whether a graph's copy is there with all its files as recorded."""
    record = load(record_of(graph))
    return graph.name in record and all(
        file.agrees(graph.parent / name, with_hash=with_hashes) for name, file in record.items()
    )


def own_bytes(graph: Path) -> int:
    """Return what a graph's copy takes on the disk beside files that are a bundle's too."""
    files = [(graph.parent / name).stat() for name in load(record_of(graph))]
    return sum(file.st_size for file in files if file.st_nlink == 1)


def describe(path: Path, sha256: str = "") -> CopiedFile:
    """Describe a file as it is on the disk, hashing it unless its hash is known."""
    found = path.stat()
    return CopiedFile(found.st_size, found.st_mtime_ns, sha256 or sha256_of(path))


def write_flushed(path: Path, content: bytes) -> None:
    """Write a small file and flush it to the disk."""
    path.write_bytes(content)
    flush(path)
