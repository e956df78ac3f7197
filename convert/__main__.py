"""The command line: arguments to a bake or a check, errors to one line. Nothing else."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import msgspec

from convert import any_model, arguments, kept, listing, plot, verify
from convert.bake import BakeRequest, Prepared, bake
from convert.build import wanted_tasks
from convert.catalog import RECIPES
from convert.recipe import Recipe
from service import commands
from service import manifest as contract
from service.errors import BakeError, BundleError, ProjectError
from service.files import check_hashes
from service.manifest import MANIFEST_FILE, Precision


class BakedVariant(msgspec.Struct):
    """The part of a variant that says what was baked, whatever the manifest's version."""

    precision: str


class Baked(msgspec.Struct):
    """The part of a manifest that says what was baked, whatever its version."""

    variants: list[BakedVariant]


VERIFY_COMMAND = "verify"


def main(words: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    words = list(sys.argv[1:] if words is None else words)
    is_verifying = words[:1] == [VERIFY_COMMAND]
    options = arguments.parser().parse_args(words[1:] if is_verifying else words)
    try:
        if options.list:
            _print(listing.lines(options.out))
        elif is_verifying:
            _each(_verify, options, f"name a baked model to verify: {_baked_names(options.out)}")
        elif options.source and not options.models:
            _bake_any(options)
        else:
            _each(_bake, options, "name a model to bake, or --list to see them; any other: --source")
    except (ProjectError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; bundles that were not announced as published are as they were", file=sys.stderr)
        return 130
    return 0


def _each(
    command: Callable[[str, argparse.Namespace], None], options: argparse.Namespace, missing: str
) -> None:
    """Run a command for every model named. Raises BakeError with what is missing where none is."""
    if not options.models:
        raise BakeError(missing)
    if options.name:
        raise BakeError("--name is for a model outside the catalog: give --source and no MODEL")
    for name in options.models:
        command(name, options)


def _recipe(name: str) -> Recipe:
    try:
        return RECIPES[name.rpartition("/")[2].lower()]
    except KeyError:
        raise BakeError(
            f"{name!r} is not in the catalog.{commands.did_you_mean(name, RECIPES)} It has "
            f"{', '.join(RECIPES)}. Any other model is baked with --source DIR|HUB_ID and no MODEL"
        ) from None


def _bake_any(options: argparse.Namespace) -> None:
    """Bake a model outside the catalog as its own files describe it."""
    name = any_model.name_of(options.source, options.name)
    if options.task:
        raise BakeError("--task is for models of the catalog with adapters: leave it out")
    if wanted := _wanted(name, None, options):
        recipe, prepared, notes = any_model.prepared(options.source, name, offline=options.offline)
        for note in notes:
            print(f"{name}: {note}")
        _publish(recipe, wanted, prepared)


def _bake(name: str, options: argparse.Namespace) -> None:
    if name not in RECIPES and (options.out / name / MANIFEST_FILE).exists():
        _bake_any(kept.named_again(options, name))
        return
    recipe = _recipe(name)
    wanted_tasks(recipe, options.task)  # a wrong one is refused before anything is read
    if wanted := _wanted(recipe.manifest.name, recipe, options):
        _publish(recipe, wanted)


def _wanted(name: str, recipe: Recipe | None, options: argparse.Namespace) -> argparse.Namespace | None:
    """Return what is to be baked: all that was asked for, with what a bundle lacks also all that it has.

    None where a sound bundle that is there has it, which only --force replaces. Raises BakeError where the
    bundle is of another source.
    """
    folder = options.out / name
    if options.plot:
        raise BakeError(f"--plot goes with verify: {commands.convert('verify', 'MODEL', '--plot')}")
    if not (folder / MANIFEST_FILE).exists() or options.force:
        return options
    try:
        check_hashes(folder, (manifest := contract.load(folder)).files)
    except BundleError as error:
        print(f"{name}: baking again what is there: {error}")
        return options
    if options.source:
        kept.check_source(folder, manifest, options.source, recipe)
    missing = kept.missing(manifest, options.precision, options.task)
    if not missing:
        print(f"{name}: {folder} is there already; --force bakes it again")
        return None
    if not options.source and recipe and recipe.manifest.source.id != manifest.source.id:
        raise BakeError(
            f"{folder} has no {', '.join(missing)} and was baked from {manifest.source.id}: name that again "
            "with --source, so that all of it is of the same weights"
        )
    print(f"{name}: {folder} is there without {', '.join(missing)}: baking it again with what it has")
    precisions, tasks = kept.with_what_it_has(manifest, options.precision, options.task)
    return argparse.Namespace(**{**vars(options), "precision": precisions, "task": tasks})


def _publish(recipe: Recipe, options: argparse.Namespace, prepared: Prepared | None = None) -> None:
    name = recipe.manifest.name
    folder = options.out / name
    request = BakeRequest(
        out=options.out,
        source=options.source,
        prepared=prepared,
        precisions=options.precision or _kept_precisions(recipe, folder / MANIFEST_FILE),
        tasks=options.task,
        verification=options.verify,
        mixture=options.mixture,
        offline=options.offline,
    )
    _print(verify.report(bake(recipe, request)))
    print(f"{name}: published in {options.out / name}")


def _kept_precisions(recipe: Recipe, manifest: Path) -> tuple[Precision, ...] | None:
    """List the recipe's precisions and those of a bundle that is baked again, so that none is lost."""
    try:
        found = msgspec.json.decode(manifest.read_bytes(), type=Baked).variants
    except (OSError, msgspec.DecodeError):
        return None
    names = {*recipe.precisions, *(variant.precision for variant in found)}
    return tuple(precision for precision in Precision if precision in names)


def _verify(name: str, options: argparse.Namespace) -> None:
    """Check hashes, quality and reference of a baked bundle and print the figures; change nothing."""
    recipe = RECIPES.get(name.rpartition("/")[2].lower())
    name = recipe.manifest.name if recipe else name
    folder = options.out / name
    if not (folder / MANIFEST_FILE).exists():
        raise BakeError(f"{name} is not baked; {options.out} holds {_baked_names(options.out)}")
    if options.plot:
        plot.check_installed()
    manifest = contract.load(folder)
    check_hashes(folder, manifest.files)
    if Precision.FP32 not in manifest.precisions:
        raise BundleError(f"{name} holds no fp32 graph to compare with; bake it with --precision fp32,...")
    found = verify.checked(folder, manifest, recipe)
    _print(verify.report(found))
    if options.plot:
        plot.speed_quality(found, path := options.out / f"{name}.png")
        print(f"{name}: drawn in {path}")
    for variant in verify.failed(found):
        raise BundleError(
            f"{name}: {variant.file} differs from the published reference values: these are not the "
            "published weights, or they were baked wrongly"
        )
    worse = [old.file for old, new in zip(manifest.variants, found.variants, strict=True)
             if old.verified and not new.verified]  # fmt: skip
    if worse:
        raise BundleError(f"{name}: no longer verified: {', '.join(worse)}")


def _baked_names(out: Path) -> str:
    return ", ".join(listing.baked_names(out)) or "none"


def _print(lines: Iterable[str]) -> None:
    print("\n".join(lines))


if __name__ == "__main__":
    sys.exit(main())
