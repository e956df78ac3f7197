"""What a manifest says before a graph is written: sizes, limits, tasks, variants. Knows no graph."""

from __future__ import annotations

import importlib.metadata
import time
from collections.abc import Sequence
from dataclasses import replace

from convert import configs, heads, lora, pixels, vision_config
from convert.checkpoint import Checkpoint
from convert.decoder_config import DecoderConfig
from convert.recipe import Recipe
from service.errors import BakeError
from service.files import sha256_of
from service.limits import Listwise
from service.manifest import Manifest, Precision, Source, Task, Variant
from service.vision import Vision

PACKAGES = ("onnxruntime-gpu", "onnxruntime", "onnx", "numpy", "tokenizers", "safetensors")
MODEL_GRAPH = "model"
VISION_FOLDER = "vision"  # beside those of the precisions
VISION_GRAPH = f"{VISION_FOLDER}/{MODEL_GRAPH}.onnx"
SENTENCE_CONFIG = "sentence_bert_config.json"
TOKENIZER_CONFIG = "tokenizer_config.json"


def described(recipe: Recipe, opened: Checkpoint, source: Source) -> Manifest:
    """Fill in everything but variants and files. Raises BakeError on a wrong limit or size."""
    config = configs.read(recipe.architecture, opened.config)
    dimensions = recipe.dense[-1].size if recipe.dense else config.hidden_size
    return replace(
        recipe.manifest,
        source=replace(source, sha256=weight_hashes(opened)),
        max_tokens=_max_tokens(recipe, opened, config.max_positions),
        dimensions=dimensions,
        default_dimensions=min(recipe.manifest.default_dimensions or dimensions, dimensions),
        vocabulary_size=config.vocabulary_size,
        is_decoder=isinstance(config, DecoderConfig),
        vision=_vision(recipe, opened),
        listwise=_listwise(recipe, opened, config.max_positions),
        outputs=heads.available(recipe.manifest.outputs, opened.weights),
        tasks=_tasks(recipe, opened),
        versions=_versions(),
        created=int(time.time()),
    )


def weight_hashes(opened: Checkpoint) -> dict[str, str]:
    """Hash the files that weights are read from, by their path within the checkpoint."""
    files = [*opened.weight_files, *lora.adapter_files(opened)]
    return {str(path.relative_to(opened.folder)): sha256_of(path) for path in files}


def with_variants(
    manifest: Manifest, tasks: Sequence[str | None], precisions: Sequence[Precision]
) -> Manifest:
    """Name the variants and keep, where each task has a graph, only the tasks that were baked."""
    variants = tuple(
        Variant(
            precision=precision,
            task=task,
            file=f"{precision}/{graph_name(task)}.onnx",
            verified=precision == Precision.FP32,
        )
        for precision in precisions
        for task in tasks
    )
    if None not in tasks:
        manifest = manifest.limited_to([task for task in tasks if task])
    return replace(manifest, variants=variants)


def graph_name(task: str | None) -> str:
    """Return the file name, without its ending, of a task's graph."""
    return MODEL_GRAPH if task is None else task


def _tasks(recipe: Recipe, opened: Checkpoint) -> tuple[Task, ...]:
    """Take the prefixes from the checkpoint where its config has them."""
    prefixes = opened.config.get("task_instructions") or {}
    if not isinstance(prefixes, dict) or not all(isinstance(prefix, str) for prefix in prefixes.values()):
        raise BakeError(f"config.json has task_instructions {prefixes!r}, must be texts by task")
    return tuple(replace(task, prefix=prefixes.get(task.name, task.prefix)) for task in recipe.manifest.tasks)


def _listwise(recipe: Recipe, opened: Checkpoint, max_positions: int) -> Listwise | None:
    """Take the capacity of a prompt from the tokenizer's config, as the reference does."""
    if recipe.manifest.listwise is None:
        return None
    limits = [recipe.manifest.listwise.capacity, max_positions]
    if opened.has_file(TOKENIZER_CONFIG):
        found = opened.read_json(TOKENIZER_CONFIG).get("model_max_length", max_positions)
        if not isinstance(found, int | float) or not found >= 1:  # NaN is none
            raise BakeError(f"{TOKENIZER_CONFIG} has model_max_length {found!r}, must be a positive integer")
        limits.append(int(min(found, max_positions)))  # "without limit" is written as 1e30
    return replace(recipe.manifest.listwise, capacity=min(limits))


def _vision(recipe: Recipe, opened: Checkpoint) -> Vision | None:
    if recipe.manifest.vision is None:
        return None
    found = opened.read_json(pixels.FILE) if opened.has_file(pixels.FILE) else {}
    return pixels.described(recipe.manifest.vision, vision_config.read(opened.config), found, VISION_GRAPH)


def _max_tokens(recipe: Recipe, opened: Checkpoint, max_positions: int) -> int:
    """Take the smallest of the model's known limit, its positions and what its own files say."""
    limits = [recipe.manifest.max_tokens, max_positions]
    if not recipe.is_described and opened.has_file(SENTENCE_CONFIG):
        found = opened.read_json(SENTENCE_CONFIG).get("max_seq_length") or max_positions
        if not isinstance(found, int) or found < 1:
            raise BakeError(f"{SENTENCE_CONFIG} has max_seq_length {found!r}, must be a positive integer")
        limits.append(found)
    return min(limits)


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue  # one of the two names of ONNX Runtime
    return found
