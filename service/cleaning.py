"""What is removed from the cache of prepacked graphs: copies nobody will ask for, and what makers left.

Touches folders that say whose they are and nothing else: CACHE_DIR may hold what is not the cache's.
The caller holds the cache's lock.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from service import copy_records, prepacking, providers

OWNER_FILE = "bundle.json"


@dataclass(frozen=True)
class Owner:
    """Whose copies are in a folder."""

    model: str
    bundle: str  # where it is in its models folder, whatever that leads to

    @property
    def path(self) -> Path:
        """Return the place of the bundle."""
        return Path(self.bundle)

    def write(self, folder: Path) -> None:
        """Say in a folder whose copies it holds."""
        copy_records.write_flushed(folder / OWNER_FILE, json.dumps(asdict(self)).encode())


def clean(cache_dir: Path, kept: Path, owner: Owner) -> Iterator[OSError]:
    """Remove what crashed makers left and stale copies, `kept` excepted, which the owner is about to use.

    Yields the errors of what could not be removed.
    """
    try:
        folders = list(cache_dir.glob("*/*/"))
    except OSError as error:
        yield error
        return
    for folder in folders:
        try:
            found = _owner_of(folder)
            if found and folder != kept and _is_stale(folder, found, kept, owner):
                _remove(folder)
            elif found and (folder / prepacking.STAGING).is_dir():
                shutil.rmtree(folder / prepacking.STAGING)
        except OSError as error:
            yield error


def _owner_of(folder: Path) -> Owner | None:
    """Read whose copies a folder holds; None: it is not known, or not one of the cache's."""
    try:
        if folder.is_symlink() or folder.parent.is_symlink():
            return None
        found = json.loads((folder / OWNER_FILE).read_bytes())
        return Owner(str(found["model"]), str(found["bundle"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _is_stale(folder: Path, found: Owner, kept: Path, owner: Owner) -> bool:
    """Tell whether copies are of another time of the owner's bundle, or of a bundle that is gone.

    Gone is what a host can tell: a bundle of the same models folder, or of the same name. Copies of the same
    bundle for another instruction set stay: hosts of several kinds may share the cache.
    """
    if folder.name == kept.name and folder.parent.name.startswith(f"{providers.RUNTIME_VERSION}-"):
        return False
    if found == owner:
        return True
    is_near = found.model == owner.model or found.path.parent == owner.path.parent
    return is_near and not found.path.exists()


def _remove(folder: Path) -> None:
    """Remove copies; the owner last, so that what is in the way today is removed another time."""
    for entry in folder.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        elif entry.name != OWNER_FILE:
            entry.unlink()
    (folder / OWNER_FILE).unlink()
    folder.rmdir()
    if not any(folder.parent.iterdir()):
        folder.parent.rmdir()
