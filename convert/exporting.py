"""Owns torch, transformers and optimum, which only models without a graph of this converter's own need."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from convert.bake import Prepared
from convert.recipe import Recipe
from service.errors import BakeError

PACKAGES = ("torch", "transformers", "optimum", "optimum.onnxruntime")
INSTALL = "pip install '.[export]'"


def check_installed(reason: str) -> None:
    """Raise BakeError with the command to install what is missing."""
    missing = [name for name in PACKAGES[:3] if importlib.util.find_spec(name) is None]
    if missing:
        raise BakeError(
            f"{reason}: this needs the exporter, and {', '.join(missing)} is not installed; in an "
            f"environment of its own: {INSTALL}"
        )


def tokenizer_json(folder: Path) -> bytes:
    """Make a tokenizer.json."""
    raise BakeError("todo")


def export(recipe: Recipe, ready: Prepared) -> Prepared:
    """Export."""
    raise BakeError("todo")
