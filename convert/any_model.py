"""Makes a model outside the catalog ready to bake: found, described, and exported where that is needed."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np

from convert import custom, exporting, source
from convert.bake import Prepared
from convert.catalog import RECIPES
from convert.checkpoint import CONFIG_FILE, Checkpoint, read_json
from convert.custom import Custom
from convert.recipe import Recipe
from service import commands
from service.errors import BakeError

ANY = "any"  # the name of a model that is not baked
NAME = re.compile(r"[a-z0-9](?:[a-z0-9._-]*[a-z0-9])?")
MAX_NAME = 100  # letters: a folder has it, with more around it while it is made


def name_of(given: str, name: str | None) -> str:
    """Return the name of the bundle: the one asked for, else the last part of the source's.

    Raises BakeError for one that no bundle can have, or that the catalog has for another model.
    """
    last = Path(given).resolve().name if Path(given).is_dir() else given.partition("@")[0].rpartition("/")[2]
    found = name or last.lower()
    if not NAME.fullmatch(found) or ".." in found or len(found) > MAX_NAME:
        raise BakeError(
            f"{found[:MAX_NAME]!r} cannot be the name of a model: give one of lower-case letters and digits, "
            f"with '.', '_' and '-' between them, no '..', of {MAX_NAME} letters at most, with --name"
        )
    if found in RECIPES:
        raise BakeError(
            f"{found} is a model of the catalog: bake it with {commands.convert(found, '--source', given)}, "
            "or give this one another name with --name"
        )
    return found


def opened(folder: str) -> Checkpoint:
    """Open the checkpoint of a folder that describes itself. Raises BakeError for what cannot be served."""
    model = custom.described(Path(folder), source.named(folder), ANY)
    return Checkpoint(model.folder, model.recipe.head_files)


def prepared(given: str, name: str, *, offline: bool) -> tuple[Recipe, Prepared, tuple[str, ...]]:
    """Find and describe a model, export it if it must be; return also what the user should know.

    Raises BakeError for what cannot be served, and where the exporter is needed and not installed.
    """
    root, origin = source.locate_given(given, offline=offline)
    model = custom.described(root, origin, name)
    config = read_json(model.folder / CONFIG_FILE)
    tokenizer = custom.tokenizer_of(model.folder, config, lowercases=model.recipe.lowercases)
    if tokenizer is None:
        exporting.check_installed(f"{model.folder} has no tokenizer.json")
        tokenizer = exporting.tokenizer_json(model.folder)
        tokenizer = custom.adapted(tokenizer, lowercases=model.recipe.lowercases)
    ready = Prepared(model.folder, origin, tokenizer)
    if model.reason is None:
        return model.recipe, ready, (*model.notes, f"{_kind(model)}: a graph of this converter's own")
    exporting.check_installed(model.reason)
    exported = _cut(exporting.export(model.recipe, ready), model.recipe.manifest.default_dimensions)
    return model.recipe, exported, (*model.notes, f"exported with optimum: {model.reason}")


def _cut(ready: Prepared, size: int) -> Prepared:
    """Cut the expected vectors as the bundle's will be; size 0: they stay whole."""
    if not size or not ready.expected:
        return ready
    cut = ready.expected.answers[:, :size]
    unit = cut / np.linalg.norm(cut, axis=1, keepdims=True)
    return replace(ready, expected=replace(ready.expected, answers=unit))


def _kind(model: Custom) -> str:
    return str(model.recipe.architecture)
