"""Where a checkpoint is: a folder, an installed package or the hub. Reads nothing of it."""

from __future__ import annotations

from pathlib import Path

from convert import checkpoint
from convert.catalog import Recipe
from service.errors import BakeError
from service.manifest import Source


def locate(recipe: Recipe, given: str | None, *, offline: bool) -> tuple[Path, Source]:
    """Find the checkpoint's folder: `--source`, else the package that ships it, else the hub."""
    if given is not None and Path(given).is_dir():
        folder = Path(given)
        return folder, Source(id=folder.resolve().name)
    known = recipe.manifest.source
    if given is not None:
        repository, _, revision = given.partition("@")
        if repository.count("/") != 1:
            raise BakeError(f"--source {given!r} is neither a folder nor a hub id (owner/name[@REV])")
        known = Source(id=repository, revision=revision or None)
    elif recipe.package and (found := checkpoint.package_folder(recipe.package)):
        return found, known
    return checkpoint.download(known, recipe.hub_files, offline=offline), known
