"""Whether a bundle that is there was baked from the checkpoint that is named now. Bakes nothing."""

from __future__ import annotations

from pathlib import Path

from convert import any_model, describe, source
from convert.checkpoint import Checkpoint
from convert.recipe import Recipe
from service.errors import BakeError
from service.manifest import Manifest, Source


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
