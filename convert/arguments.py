"""The converter's options, read and checked one by one. Bakes nothing."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import msgspec

from convert.bake import Verification
from service.files import BUNDLES
from service.manifest import Precision

COMMAND = "jina-onnx-convert"  # what a wheel installs


class Mixed(msgspec.Struct):
    """The part of a manifest that a mixture is read from, whatever its version."""

    mixture: dict[str, Precision]


def parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    made = argparse.ArgumentParser(
        prog=(prog := _program()),
        description=f"Bake models into bundles. '{prog} verify MODEL...' checks baked ones again.",
    )
    made.add_argument("models", nargs="*", metavar="MODEL", help="names of the catalog (--list)")
    made.add_argument("--list", action="store_true", help="print the catalog and what is baked")
    made.add_argument(
        "--source",
        metavar="DIR|HUB_ID[@REV]",
        help="checkpoint to read instead of the recipe's; without MODEL: one that the catalog does not know",
    )
    made.add_argument("--name", help="of a model outside the catalog; default: as its source")
    made.add_argument("--out", type=Path, default=BUNDLES, help="where bundles are (%(default)s)")
    made.add_argument("--precision", type=_precisions, help=f"comma-separated: {','.join(Precision)}")
    made.add_argument(
        "--task", type=_words, help="comma-separated tasks of a model with adapters; default: all of them"
    )
    made.add_argument(
        "--verify",
        type=Verification,
        choices=list(Verification),
        default=Verification.AUTO,
        help="measure quality and speed: where the memory is enough, never, or else fail (%(default)s)",
    )
    made.add_argument(
        "--mixture",
        type=_mixture,
        metavar="none|MANIFEST",
        help="layers that int8 leaves to int8-block: none, or a manifest.json's; default: searched for",
    )
    made.add_argument(
        "--plot", action="store_true", help="with verify: draw speed and quality, beside the bundle"
    )
    made.add_argument("--force", action="store_true", help="replace a bundle that is there already")
    made.add_argument("--offline", action="store_true", help="take hub files from the local cache only")
    return made


def _program() -> str:
    """Return how this was called: by the command of a wheel, or as a module."""
    name = Path(sys.argv[0]).name
    return name if name == COMMAND else "python -m convert"


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
