"""Which bundles a start would serve, and whether it makes sense. Opens no graph.

NOTE: gunicorn's master runs this before it forks. What it imports is in every worker from before the fork,
which native thread pools do not survive: no onnxruntime and no tokenizers here or below.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from service import commands
from service import manifest as contract
from service.config import Settings
from service.errors import BundleError, ConfigError, UnknownTask
from service.manifest import Manifest, Precision


@dataclass(frozen=True)
class Bundle:
    """A bundle to serve, and the tasks to which it is limited; none: not limited."""

    folder: Path
    tasks: tuple[str, ...] = ()

    def load(self) -> Manifest:
        """Read the manifest, reduced to the tasks wanted. Raises BundleError."""
        manifest = contract.load(self.folder)
        if not manifest.tasks and not manifest.serves_all_tasks:
            raise BundleError(f"{self.folder} holds base weights alone, which are not served; bake its tasks")
        if not self.tasks:
            return manifest
        unknown = [task for task in self.tasks if not manifest.tasks_of([task])]
        if unknown:
            known = ", ".join(manifest.task_names) or "none"
            raise UnknownTask(
                f"MODELS_TO_LOAD names {', '.join(unknown)}, neither a bundle nor a task of {manifest.name} "
                f"(its tasks: {known})"
            )
        return manifest.limited_to(self.tasks)


def find_bundles(settings: Settings) -> dict[str, Bundle]:
    """Return the bundles to serve, by model id. Raises ConfigError naming the remedy."""
    directory = settings.models_dir
    found = {folder.name.lower(): folder for folder in contract.folders(directory)}
    if not found:
        raise ConfigError(
            f"no bundle in {directory} (MODELS_DIR); bake one: "
            f"{commands.convert('all-minilm-l6-v2', '--out', directory)}"
        )
    wanted = _wanted(settings.models_to_load, found) or dict.fromkeys(found, ())
    missing = [name for name in wanted if name not in found]
    if missing:
        baking = f" To bake: {commands.convert(*missing, '--out', directory)}"
        raise ConfigError(
            f"MODELS_TO_LOAD names {', '.join(missing)}, but {directory} holds {', '.join(found)}."
            f"{commands.did_you_mean(missing[0], found) or baking}"
        )
    return {name: Bundle(found[name], tasks) for name, tasks in wanted.items()}


def check_start(settings: Settings) -> None:
    """Refuse a start that is wrong: no bundle, an unknown task, or a PRECISION that no bundle holds.

    Raises ConfigError. Broken bundles are let pass: they are reported while the others serve.
    """
    baked: set[Precision] = set()
    for bundle in find_bundles(settings).values():
        try:
            baked.update(bundle.load().precisions)
        except UnknownTask as error:
            raise ConfigError(str(error)) from error
        except BundleError:
            continue
    if settings.precision is not None and baked and settings.precision not in baked:
        raise ConfigError(
            f"PRECISION is {settings.precision}, but the bundles hold only {', '.join(sorted(baked))}; "
            f"set PRECISION=auto, or bake one again with --precision {','.join(sorted(baked))},"
            f"{settings.precision} --force"
        )


def _wanted(words: Sequence[str], found: Mapping[str, Path]) -> dict[str, tuple[str, ...]]:
    """Sort the words of MODELS_TO_LOAD into models and their tasks.

    A word after `model:task` is another task of it, unless it is a bundle's name.
    """
    wanted: dict[str, tuple[str, ...]] = {}
    limited = ""  # the model whose tasks are being listed
    for word in words:
        name, colon, task = word.partition(":")
        model = name.rpartition("/")[2]  # a hub id finds the model too
        if colon:
            limited = model
            wanted[model] = (*wanted.get(model, ()), task)
        elif limited and model not in found:
            wanted[limited] = (*wanted[limited], word)
        else:
            limited = ""
            wanted[model] = ()
    return {model: tuple(dict.fromkeys(tasks)) for model, tasks in wanted.items()}
