"""A recipe for a model outside the catalog, made of what its checkpoint says of itself.

Chooses between a graph of this converter's own and one of the exporter's; builds neither.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from convert import configs, module_list, sentence_files, tokenizer_files, vocabulary
from convert.checkpoint import CONFIG_FILE, Checkpoint, read_json, refuse_own_code
from convert.module_list import ModuleList
from convert.recipe import Architecture, Recipe
from convert.sentence_files import SentenceFiles
from service.errors import BakeError
from service.manifest import Kind, Manifest, Output, Pooling, Scoring, Source

ARCHITECTURES = {  # by model_type
    "bert": Architecture.BERT,
    "roberta": Architecture.XLM_ROBERTA,
    "camembert": Architecture.XLM_ROBERTA,
    "xlm-roberta": Architecture.XLM_ROBERTA,
    "qwen2": Architecture.QWEN2,
    "qwen3": Architecture.QWEN3,
}
DECODERS = (Architecture.QWEN2, Architecture.QWEN3)
CLASSIFIER = "ForSequenceClassification"
UNKNOWN = "unknown"
CARD = "README.md"
LICENCE = re.compile(r"^(license|license_name): *[\"']?([^\"'\n#]+?)[\"']? *$", re.MULTILINE)


@dataclass(frozen=True)
class Custom:
    """A recipe, the folder of the weights, why the exporter is needed if it is, what the user must know."""

    recipe: Recipe
    folder: Path
    reason: str | None
    notes: tuple[str, ...] = ()


def described(root: Path, source: Source, name: str) -> Custom:
    """Make the recipe of a checkpoint. Raises BakeError for what cannot be served, with the reason."""
    listed = module_list.read(root)
    path = (root / listed.transformer if listed else root) / CONFIG_FILE
    config = read_json(path)
    refuse_own_code(path, config)
    is_reranker = _is_reranker(path, config, listed)
    scoring = sentence_files.read_cross_encoder
    files = scoring(root, listed) if is_reranker else sentence_files.read(root, listed, config)
    opened = Checkpoint(files.folder, files.head_files)
    architecture, reason = _architecture(config, files, is_reranker=is_reranker)
    separator = _separator(files, config) if is_reranker else None
    manifest = Manifest(
        name=name,
        kind=Kind.RERANKER if is_reranker else Kind.EMBEDDING,
        pooling=Pooling.CLS if is_reranker else files.pooling,
        outputs=(Output.SCORES,) if is_reranker else (Output.POOLED,),
        scoring=Scoring.CLASSIFIER if is_reranker else None,
        licence=_licence(root),
        owned_by=source.id.rpartition("/")[0] or UNKNOWN,
        source=source,
        max_tokens=files.max_tokens,
        default_dimensions=files.dimensions,
        truncatable=bool(files.dimensions),
        tasks=files.tasks,
        default_task=files.default_task,
        has_prompts=bool(files.tasks),
    )
    recipe = Recipe(
        manifest=manifest,
        architecture=architecture,
        num_parameters=sum(math.prod(tensor.shape) for tensor in opened.weights.tensors.values()),
        head_files=files.head_files,
        dense=files.dense,
        separator_id=separator,
        lowercases=files.lowercases,
        is_described=True,
    )
    return Custom(recipe, files.folder, reason, (files.note,) if files.note else ())


def tokenizer_of(folder: Path, config: Mapping[str, Any], *, lowercases: bool) -> bytes | None:
    """Return the tokenizer; None where only transformers can make it. Raises BakeError for a broken one."""
    found = tokenizer_files.read(folder, config.get("model_type"))
    return found and adapted(found, lowercases=lowercases)


def adapted(tokenizer: bytes, *, lowercases: bool) -> bytes:
    """Return the tokenizer with what sentence-transformers does to texts before it."""
    return vocabulary.lowercased(tokenizer) if lowercases else tokenizer


def _is_reranker(path: Path, config: Mapping[str, Any], listed: ModuleList | None) -> bool:
    """Tell a cross-encoder by its modules and its class. Raises BakeError for one that cannot be served."""
    if listed and listed.pooling is not None:
        return False  # what pools takes the token states, whatever the class
    classes = [str(name) for name in config.get("architectures") or ()]
    if not any(name.endswith(CLASSIFIER) for name in classes):
        if listed and listed.is_cross_encoder:
            raise BakeError(
                f"{path} is of {', '.join(classes) or 'no class'}: only cross-encoders with a classifier "
                f"(...{CLASSIFIER}) can be served"
            )
        return False
    labels = config.get("id2label")
    num_labels = len(labels) if isinstance(labels, Mapping) else int(config.get("num_labels") or 2)
    if num_labels != 1:
        raise BakeError(
            f"{path} is of a classifier with {num_labels} labels ({', '.join(classes)}): only cross-encoders "
            "with one label can be served, as rerankers"
        )
    return True


def _architecture(
    config: Mapping[str, Any], files: SentenceFiles, *, is_reranker: bool
) -> tuple[Architecture, str | None]:
    """Choose how the graph is made; return it and why the exporter must make it, None where it need not."""
    kind = config.get("model_type")
    architecture = ARCHITECTURES.get(str(kind))
    if architecture is None:
        return Architecture.EXPORTED, f"model_type {kind!r} has no graph of this converter's own"
    try:
        configs.read(architecture, config)
    except BakeError as error:
        return Architecture.EXPORTED, str(error)
    if architecture not in DECODERS and config.get("is_decoder"):
        return Architecture.EXPORTED, f"is_decoder: {kind} is built with attention to both sides alone"
    if architecture in DECODERS:
        if is_reranker or files.pooling != Pooling.LAST or files.dense:
            return Architecture.EXPORTED, f"{kind} is built with the pooling of the last token alone"
        if config.get("is_causal") is False or config.get("use_bidirectional_attention"):
            return Architecture.EXPORTED, f"{kind} is built with causal attention alone"
    return architecture, None


def _separator(files: SentenceFiles, config: Mapping[str, Any]) -> int | None:
    """Return the token behind which the second text of a pair begins, where the model has a type for it."""
    tokenizer = tokenizer_of(files.folder, config, lowercases=files.lowercases)
    has_types = int(config.get("type_vocab_size") or 0) >= 2 and tokenizer_files.has_types(files.folder)
    if not has_types or tokenizer is None:
        return None
    return vocabulary.separator_id(tokenizer)


def _licence(root: Path) -> str:
    """Read the licence from the model card's head."""
    path = root / CARD
    if not path.is_file():
        return UNKNOWN
    parts = path.read_text(encoding="utf-8", errors="replace").split("---\n", 2)
    if len(parts) < 3 or parts[0].strip():
        return UNKNOWN
    found = dict(LICENCE.findall(parts[1]))
    licence: str = found.get("license", UNKNOWN)
    return str(found.get("license_name", licence)) if licence == "other" else licence
