"""Where a checkpoint is: a folder, an installed package or the hub. Reads nothing of it."""

from __future__ import annotations

from pathlib import Path

from convert import checkpoint
from convert.recipe import SAFE_FILES, TORCH_FILES, Recipe
from service.errors import BakeError
from service.manifest import Source

GIVEN_FILES = tuple(dict.fromkeys((*SAFE_FILES, *TORCH_FILES)))  # another repository may have either format
WEIGHTS = ("*.json", "*.safetensors", "*pytorch_model*.bin")
WORD_LISTS = ("*vocab.txt", "*merges.txt", "*.model")  # of tokenizers without tokenizer.json
CUSTOM_FILES = (*WEIGHTS, *WORD_LISTS, "README.md")  # `*` takes in `/`: in any folder


def locate_given(given: str, *, offline: bool) -> tuple[Path, Source]:
    """Find the checkpoint of a model outside the catalog: a folder, else on the hub."""
    known = named(given)
    if Path(given).is_dir():
        return Path(given), known
    return checkpoint.download(known, CUSTOM_FILES, offline=offline), known


def locate(recipe: Recipe, given: str | None, *, offline: bool) -> tuple[Path, Source]:
    """Find the checkpoint's folder: `--source`, else the package that ships it, else the hub."""
    known = recipe.manifest.source if given is None else named(given)
    if given is not None and Path(given).is_dir():
        return Path(given), known
    if given is None and recipe.package and (found := checkpoint.package_folder(recipe.package)):
        return found, known
    patterns = recipe.hub_files if given is None else (*GIVEN_FILES, *recipe.head_files)
    return checkpoint.download(known, patterns, offline=offline), known


def named(given: str) -> Source:
    """Return what a bundle says of a source, hashes aside. Raises BakeError for no folder and no hub id."""
    if Path(given).is_dir():
        return Source(id=Path(given).resolve().name)
    repository, _, revision = given.partition("@")
    if repository.count("/") != 1 or given.startswith((".", "/", "~")):
        raise BakeError(
            f"--source {given!r} is neither a folder that is there nor a hub id (owner/name[@REV])"
        )
    return Source(id=repository, revision=revision or None)
