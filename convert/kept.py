"""What a bundle that is there has of what is asked for now, and what it was baked from. Bakes nothing."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import msgspec

from convert import any_model, describe, source
from convert.checkpoint import Checkpoint
from convert.recipe import Recipe
from service.errors import BakeError
from service.manifest import MANIFEST_FILE, Manifest, Precision, Source


class BakedFrom(msgspec.Struct):
    """The part of a manifest that says what it was baked from, whatever its version."""

    source: Source


def named_again(options: argparse.Namespace, name: str) -> argparse.Namespace:
    """Return the options to bake a bundle outside the catalog again, which is called by its name alone.

    Raises BakeError where it was baked from a folder, of which the manifest has the last part only.
    """
    found = options.source or _hub_id(options.out / name / MANIFEST_FILE)
    if found is None:
        raise BakeError(
            f"{name} is a model outside the catalog and was baked from a folder: name that again, with "
            f"--source DIR --name {name} and no MODEL"
        )
    return argparse.Namespace(**{**vars(options), "source": found, "name": name})


def _hub_id(manifest: Path) -> str | None:
    try:
        source = msgspec.json.decode(manifest.read_bytes(), type=BakedFrom).source
    except (OSError, msgspec.DecodeError):
        return None
    return _words(source) if "/" in source.id else None


def missing(
    manifest: Manifest, precisions: Sequence[Precision] | None, tasks: Sequence[str] | None
) -> list[str]:
    """List the precisions and tasks that are asked for and that a bundle does not have."""
    wanted = [(precisions or (), manifest.precisions), (tasks or (), _tasks(manifest))]
    return [str(each) for asked, baked in wanted for each in asked if each not in baked]


def with_what_it_has(
    manifest: Manifest, precisions: Sequence[Precision] | None, tasks: Sequence[str] | None
) -> tuple[tuple[Precision, ...], tuple[str, ...] | None]:
    """Return the precisions and tasks that are asked for or that a bundle has; None: it has no tasks."""
    all_precisions = {*manifest.precisions, *(precisions or ())}
    all_tasks = tuple(dict.fromkeys((*_tasks(manifest), *(tasks or ()))))
    return tuple(each for each in Precision if each in all_precisions), all_tasks or None


def _tasks(manifest: Manifest) -> list[str]:
    return [variant.task for variant in manifest.variants if variant.task]


def check_source(folder: Path, manifest: Manifest, given: str, recipe: Recipe | None) -> None:
    """Raise BakeError where a bake from `given` would read other weights than the bundle was made of.

    A folder is compared by its weights, a hub repository by its name and revision: nothing is fetched.
    Without a recipe of the catalog the folder describes itself.
    """
    known = manifest.source
    if not Path(given).is_dir():
        named = source.named(given)
        is_same = (named.id, named.revision) == (known.id, known.revision)
    else:
        opened = Checkpoint(Path(given), recipe.head_files) if recipe else any_model.opened(given)
        is_same = not known.sha256 or describe.weight_hashes(opened) == known.sha256
    if not is_same:
        raise BakeError(
            f"{folder} is there already, baked from {_words(known)} and not from {given}: give this one "
            "another name (--source without MODEL, --name NAME), or replace what is there with --force"
        )


def _words(known: Source) -> str:
    return f"{known.id}@{known.revision}" if known.revision else known.id
