"""The command line: arguments to a bake or a check, errors to one line. Nothing else."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from convert import any_model, plot, verify
from convert.bake import BakeRequest, Prepared, Verification, bake
from convert.catalog import RECIPES
from convert.recipe import Recipe
from service import manifest as contract
from service.errors import BakeError, BundleError, ProjectError
from service.files import check_hashes
from service.manifest import MANIFEST_FILE, Manifest, Precision


class Mixed(msgspec.Struct):
    """The part of a manifest that a mixture is read from, whatever its version."""

    mixture: dict[str, Precision]


class BakedVariant(msgspec.Struct):
    """The part of a variant that says what was baked, whatever the manifest's version."""

    precision: str


class Baked(msgspec.Struct):
    """The part of a manifest that says what was baked, whatever its version."""

    variants: list[BakedVariant]


DEFAULT_OUT = Path("onnx_models")
VERIFY_COMMAND = "verify"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    is_verifying = words[:1] == [VERIFY_COMMAND]
    options = _parser().parse_args(words[1:] if is_verifying else words)
    try:
        if options.list:
            _print_catalog(options.out)
        elif is_verifying:
            _each(_verify, options)
        elif options.source and not options.models:
            _bake_any(options)
        else:
            _each(_bake, options)
    except (ProjectError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; bundles that were not announced as published are as they were", file=sys.stderr)
        return 130
    return 0


def _each(command: Callable[[str, argparse.Namespace], None], options: argparse.Namespace) -> None:
    """Run a command for every model named."""
    if not options.models:
        raise BakeError("name a model to bake, or --list to see them; any other is baked with --source")
    if options.name:
        raise BakeError("--name is for a model outside the catalog: give --source and no MODEL")
    for name in options.models:
        command(name, options)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m convert",
        description="Bake models into bundles. 'python -m convert verify MODEL...' checks baked ones again.",
    )
    parser.add_argument("models", nargs="*", metavar="MODEL", help="names of the catalog (--list)")
    parser.add_argument("--list", action="store_true", help="print the catalog")
    parser.add_argument(
        "--source",
        metavar="DIR|HUB_ID[@REV]",
        help="checkpoint to read instead of the recipe's; without MODEL: one that the catalog does not know",
    )
    parser.add_argument("--name", help="of a model outside the catalog; default: as its source")
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT, help="where bundles are (%(default)s)")
    parser.add_argument("--precision", type=_precisions, help=f"comma-separated: {','.join(Precision)}")
    parser.add_argument(
        "--task", type=_words, help="comma-separated tasks of a model with adapters; default: all of them"
    )
    parser.add_argument("--verify", type=Verification, choices=list(Verification), default=Verification.AUTO)
    parser.add_argument(
        "--mixture",
        type=_mixture,
        metavar="none|MANIFEST",
        help="layers that int8 leaves to int8-block: none, or a manifest.json's; default: searched for",
    )
    parser.add_argument(
        "--plot", action="store_true", help="with verify: draw speed and quality, beside the bundle"
    )
    parser.add_argument("--force", action="store_true", help="replace a bundle that is there already")
    parser.add_argument("--offline", action="store_true", help="take hub files from the local cache only")
    return parser


def _precisions(value: str) -> tuple[Precision, ...]:
    try:
        return tuple(dict.fromkeys(Precision(part.strip()) for part in value.split(",")))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{value!r}: choose from {', '.join(Precision)}") from None


def _mixture(value: str) -> dict[str, Precision]:
    """Take the mixture that a manifest holds: a bake with it makes the same graphs without a search."""
    if value == "none":
        return {}
    try:
        return msgspec.json.decode(Path(value).read_bytes(), type=Mixed).mixture
    except (OSError, msgspec.DecodeError) as error:
        raise argparse.ArgumentTypeError(f"{value!r} is no manifest with a mixture: {error}") from None


def _words(value: str) -> tuple[str, ...]:
    words = tuple(dict.fromkeys(part.strip() for part in value.split(",") if part.strip()))
    if not words:
        raise argparse.ArgumentTypeError("name at least one")
    return words


def _recipe(name: str) -> Recipe:
    try:
        return RECIPES[name.rpartition("/")[2].lower()]
    except KeyError:
        raise BakeError(
            f"{name!r} is not in the catalog; it has {', '.join(RECIPES)}. "
            f"Any other model is baked with --source DIR|HUB_ID --name {name}, and no MODEL"
        ) from None


def _bake_any(options: argparse.Namespace) -> None:
    """Bake a model outside the catalog as its own files describe it."""
    name = any_model.name_of(options.source, options.name)
    if not _is_kept(name, options):
        recipe, prepared, notes = any_model.prepared(options.source, name, offline=options.offline)
        for note in notes:
            print(f"{name}: {note}")
        _publish(recipe, options, prepared)


def _bake(name: str, options: argparse.Namespace) -> None:
    recipe = _recipe(name)
    if not _is_kept(recipe.manifest.name, options):
        _publish(recipe, options)


def _is_kept(name: str, options: argparse.Namespace) -> bool:
    """Tell whether a sound bundle is there already, which only --force replaces."""
    folder = options.out / name
    if options.plot:
        raise BakeError("--plot goes with verify: python -m convert verify MODEL --plot")
    if not (folder / MANIFEST_FILE).exists() or options.force:
        return False
    try:
        check_hashes(folder, contract.load(folder).files)
    except BundleError as error:
        print(f"{name}: baking again what is there: {error}")
        return False
    print(f"{name}: {folder} is there already; --force bakes it again")
    return True


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
    _print_report(bake(recipe, request))
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
    is_own = name not in RECIPES and (options.out / name / MANIFEST_FILE).exists()
    recipe = None if is_own else _recipe(name)
    name = recipe.manifest.name if recipe else name
    folder = options.out / name
    if options.plot:
        plot.check_installed()
    manifest = contract.load(folder)
    check_hashes(folder, manifest.files)
    if Precision.FP32 not in manifest.precisions:
        raise BundleError(f"{name} holds no fp32 graph to compare with; bake it with --precision fp32,...")
    found = verify.checked(folder, manifest, recipe)
    _print_report(found)
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


def _print_report(manifest: Manifest) -> None:
    for line in verify.report(manifest):
        print(line)


def _print_catalog(out: Path) -> None:
    for name, recipe in RECIPES.items():
        baked = "not baked"
        if (out / name / MANIFEST_FILE).exists():
            try:
                baked = "baked: " + ", ".join(contract.load(out / name).precisions)
            except BundleError as error:
                baked = f"broken: {error}"
        millions = recipe.num_parameters / 1e6
        size = f"{millions:.0f} M parameters, {millions * 4:.0f} MB in fp32"
        print(f"{name}  {recipe.manifest.licence}  {size}  from {recipe.manifest.source.id}  {baked}")


if __name__ == "__main__":
    sys.exit(main())
