"""Which bundles a start would serve, and whether it makes sense. Opens no graph.

NOTE: gunicorn's master runs this before it forks. What it imports is in every worker from before the fork,
which native thread pools do not survive: no onnxruntime and no tokenizers here or below.
"""

from __future__ import annotations

from pathlib import Path

from service import manifest as contract
from service.config import Settings
from service.errors import BundleError, ConfigError
from service.manifest import MANIFEST_FILE, Precision


def find_bundles(settings: Settings) -> dict[str, Path]:
    """Return the folders of the bundles to serve, by model id. Raises ConfigError naming the remedy."""
    directory = settings.models_dir
    folders = sorted(directory.iterdir()) if directory.is_dir() else []
    found = {
        folder.name.lower(): folder
        for folder in folders
        if not folder.name.startswith(".") and (folder / MANIFEST_FILE).exists()
    }
    if not found:
        raise ConfigError(
            f"no bundle in {directory} (MODELS_DIR); bake one: "
            f"python -m convert all-minilm-l6-v2 --out {directory}"
        )
    missing = [name for name in settings.models_to_load if name not in found]
    if missing:
        raise ConfigError(
            f"MODELS_TO_LOAD names {', '.join(missing)}, but {directory} holds {', '.join(found)}; "
            f"bake: python -m convert {' '.join(missing)} --out {directory}"
        )
    return {name: found[name] for name in settings.models_to_load or found}


def check_start(settings: Settings) -> None:
    """Refuse a start that could serve nothing: no bundle, or a PRECISION that no bundle holds.

    Raises ConfigError. Broken bundles are let pass: they are reported while the others serve.
    """
    baked: set[Precision] = set()
    for folder in find_bundles(settings).values():
        try:
            baked.update(contract.load(folder).precisions)
        except BundleError:
            continue
    if settings.precision is not None and baked and settings.precision not in baked:
        raise ConfigError(
            f"PRECISION is {settings.precision}, but the bundles hold only {', '.join(sorted(baked))}"
        )
