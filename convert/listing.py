"""What `--list` prints: the catalog, what is baked of it, and the bundles of other models."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from convert.catalog import RECIPES
from service import manifest as contract
from service.errors import BundleError
from service.manifest import MANIFEST_FILE

HEADER = ("model", "licence", "parameters", "source", "baked")


def baked_names(out: Path) -> list[str]:
    """List the bundles of a folder by name."""
    return [folder.name for folder in contract.folders(out)]


def lines(out: Path) -> list[str]:
    """Return the table in columns, a line for each model."""
    rows = [HEADER, *_rows(out)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]


def _rows(out: Path) -> Iterator[tuple[str, ...]]:
    for name, recipe in RECIPES.items():
        manifest = recipe.manifest
        yield (
            name,
            manifest.licence,
            _parameters(recipe.num_parameters),
            manifest.source.id,
            _baked(out / name),
        )
    for name in baked_names(out):
        if name not in RECIPES:
            yield name, *_own(out / name)


def _own(folder: Path) -> tuple[str, str, str, str]:
    """Describe a bundle of a model outside the catalog by its manifest."""
    try:
        manifest = contract.load(folder)
    except BundleError:
        return "", "", "", _baked(folder)
    return manifest.licence, "", manifest.source.id, _baked(folder)


def _parameters(count: int) -> str:
    return f"{count / 1e6:,.0f} M"


def _baked(folder: Path) -> str:
    if not (folder / MANIFEST_FILE).exists():
        return "no"
    try:
        manifest = contract.load(folder)
    except BundleError as error:
        return f"broken: {error}"
    num_bytes = sum(record.size for record in manifest.files.values())
    return f"{', '.join(manifest.precisions)} ({num_bytes / 1e9:.2f} GB)"
