"""Files of a bundle: their recorded sizes and hashes, and whether the disk agrees. Knows no manifest."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from service import commands
from service.errors import BundleError

BUNDLES = Path("onnx_models")  # where the converter puts bundles unless it is told


@dataclass(frozen=True, kw_only=True)
class FileRecord:
    """Size in bytes and sha256 of a file of the bundle."""

    size: int
    sha256: str
    weights_bytes: int = 0  # of a graph: the weights it reads from other files; 0: not known


def check_sizes(folder: Path, records: Mapping[str, FileRecord]) -> None:
    """Compare every file's size with its record. Raises BundleError that names the file."""
    for name, record in records.items():
        try:
            size = (folder / name).stat().st_size
        except (OSError, ValueError) as error:  # ValueError: a NUL in the name
            raise BundleError(f"{folder / name!r} cannot be read: {error}; {bake_again(folder)}") from error
        if size != record.size:
            raise BundleError(
                f"{folder / name} has {size} bytes instead of {record.size}; {bake_again(folder)}"
            )


def check_hashes(folder: Path, records: Mapping[str, FileRecord]) -> None:
    """Compare every file's sha256 with its record. Raises BundleError that names the file."""
    for name, record in records.items():
        try:
            found = sha256_of(folder / name)
        except OSError as error:
            raise BundleError(f"{folder / name} cannot be read: {error}; {bake_again(folder)}") from error
        if found != record.sha256:
            raise BundleError(f"{folder / name} does not have its recorded sha256; {bake_again(folder)}")


def bake_again(folder: Path) -> str:
    """Name the command that makes a bundle anew."""
    is_usual = folder.parent in (BUNDLES, BUNDLES.absolute())
    out = () if is_usual else ("--out", folder.parent)
    return f"bake it again, {commands.convert(folder.name, *out, '--force')}"


def sha256_of(path: Path) -> str:
    """Return the sha256 of a file as hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def flush(path: Path) -> None:
    """Flush a file, or the names in a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
