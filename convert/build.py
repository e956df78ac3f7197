"""From a recipe and an open checkpoint to float32 graphs, one for each task that has weights of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from convert import (
    configs,
    decoder_heads,
    encoder,
    heads,
    lora,
    multimodal,
    vision,
    vision_config,
    vocabulary,
)
from convert.checkpoint import Checkpoint
from convert.configs import Config
from convert.decoder_config import DecoderConfig
from convert.exported_config import ExportedConfig
from convert.graph import Graph
from convert.recipe import Recipe
from convert.weights import Weights
from service.errors import BakeError
from service.manifest import BASE_TASK, TOKENIZER_FILE, Pooling, Scoring

# Ends of class names in config.json that say what the layers were trained for.
CLASSES = {"ForSequenceClassification": Scoring.CLASSIFIER, "ForRanking": Scoring.LISTWISE}
MODELS = {
    None: "an embedding model",
    Scoring.CLASSIFIER: "a classifier",
    Scoring.YES_NO: "a language model asked for yes or no",
    Scoring.LISTWISE: "a listwise reranker",
}
POOLING_CONFIG = "1_Pooling/config.json"
POOLING_MODES = {
    Pooling.MEAN: "pooling_mode_mean_tokens",
    Pooling.CLS: "pooling_mode_cls_token",
    Pooling.LAST: "pooling_mode_lasttoken",
}

GraphsByTask = dict[str | None, Graph]  # None: the one graph of all tasks


def wanted_tasks(recipe: Recipe, named: Sequence[str] | None) -> tuple[str | None, ...]:
    """Return the tasks that get a graph: those named, else all; (None,) where one graph serves all.

    Raises BakeError for a task that the recipe does not have.
    """
    name = recipe.manifest.name
    if not recipe.has_adapters:
        if named:
            raise BakeError(f"{name} has one graph for everything: leave --task out")
        return (None,)
    own = recipe.manifest.task_variants
    known = (*own, BASE_TASK)
    unknown = sorted(set(named or ()) - set(known))
    if unknown:
        raise BakeError(f"{name} has no task {', '.join(unknown)} (--task): choose from {', '.join(known)}")
    return tuple(task for task in known if task in (named or own))


def build(recipe: Recipe, opened: Checkpoint, tasks: Sequence[str | None]) -> GraphsByTask:
    """Build the graphs of tasks, sizes from the checkpoint's config; equal tensors have equal keys.

    Raises BakeError where the checkpoint contradicts the recipe.
    """
    _check_pooling(recipe, opened)
    _check_kind(recipe, opened)
    config = configs.read(recipe.architecture, opened.config)
    token_ids = vocabulary.ids_of(opened.folder / TOKENIZER_FILE, decoder_heads.tokens_of(recipe.manifest))
    return {task: _graph(recipe, config, _weights(opened, task), token_ids) for task in tasks}


def tower(recipe: Recipe, opened: Checkpoint) -> Graph | None:
    """Build the vision tower of a model that takes images, in float32: it is not quantized.

    Raises BakeError where the checkpoint contradicts itself.
    """
    if recipe.manifest.vision is None:
        return None
    sizes = vision_config.read(opened.config)
    hidden_size = configs.read(recipe.architecture, opened.config).hidden_size
    if sizes.output_size != hidden_size:
        raise BakeError(f"config.json has out_hidden_size {sizes.output_size}, the words have {hidden_size}")
    return vision.build(opened.weights, sizes)


def _weights(opened: Checkpoint, task: str | None) -> Weights:
    if task in (None, BASE_TASK):
        return opened.weights
    return lora.merged(opened.weights, lora.read_adapter(opened, str(task)))


def _graph(recipe: Recipe, config: Config, weights: Weights, token_ids: tuple[int, ...]) -> Graph:
    if isinstance(config, DecoderConfig) and recipe.manifest.vision:
        outputs = heads.available(recipe.manifest.outputs, weights)
        return multimodal.build(weights, config, replace(recipe.manifest, outputs=outputs))
    if isinstance(config, DecoderConfig):
        return decoder_heads.build(decoder_heads.Head(weights, config, token_ids), recipe.manifest)
    if isinstance(config, ExportedConfig):
        raise BakeError(f"{config.model_type} has no graph of this converter's own")
    first_only = recipe.manifest.scoring == Scoring.CLASSIFIER
    graph, hidden = encoder.build(weights, config, first_only=first_only, separator_id=recipe.separator_id)
    body = heads.Body(graph, weights, hidden, config.hidden_size, recipe.manifest.pooling, dense=recipe.dense)
    heads.add_outputs(body, heads.available(recipe.manifest.outputs, weights))
    return graph


def _check_kind(recipe: Recipe, opened: Checkpoint) -> None:
    """Refuse a model of another kind with the same layers: they were trained for something else."""
    classes = [str(name) for name in opened.config.get("architectures") or ()]
    name, scoring = recipe.manifest.name, recipe.manifest.scoring
    for ending, kind in CLASSES.items():
        if recipe.is_described and kind == Scoring.CLASSIFIER:
            continue  # its modules say whether it is asked for vectors
        if scoring != kind and any(found.endswith(ending) for found in classes):
            raise BakeError(f"{opened.folder} holds {', '.join(classes)}: {name} is {MODELS[scoring]}")


def _check_pooling(recipe: Recipe, opened: Checkpoint) -> None:
    """Refuse a checkpoint whose sentence-transformers config pools in another way."""
    if recipe.is_described or not opened.has_file(POOLING_CONFIG):
        return
    modes = {
        name for name, value in opened.read_json(POOLING_CONFIG).items() if "mode" in name and value is True
    }
    if modes and modes != {POOLING_MODES.get(recipe.manifest.pooling)}:
        raise BakeError(
            f"{opened.folder / POOLING_CONFIG} pools by {', '.join(sorted(modes))}: "
            f"{recipe.manifest.name} does not"
        )
