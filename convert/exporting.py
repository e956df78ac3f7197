"""Owns optimum: models without a graph of this converter's own, through the exporter.

It is imported when it is needed, and no code of a checkpoint is run.
"""

from __future__ import annotations

import importlib.util
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx

from convert import exported_config, exported_graph, torch_answers
from convert.bake import Prepared
from convert.checkpoint import Checkpoint
from convert.exported_config import ExportedConfig
from convert.recipe import Recipe
from convert.sentence_files import SENTENCE_FILES, UNLIMITED
from service.errors import BakeError
from service.manifest import Kind

PACKAGES = {  # by what is imported of them
    "torch": "torch",
    "transformers": "transformers",
    "optimum": "optimum",
    "optimum.exporters.onnx": "optimum-onnx",
    "sentencepiece": "sentencepiece",
    "google.protobuf": "protobuf",
}
INSTALL = "pip install '.[export]'"
TASKS = {Kind.EMBEDDING: "feature-extraction", Kind.RERANKER: "text-classification"}
# Types whose layers ONNX Runtime's optimizer knows by the shape of BERT's.
LIKE_BERT = frozenset(
    {"albert", "bert", "big_bird", "camembert", "deberta", "deberta-v2", "distilbert", "electra", "mpnet"}
    | {"modernbert", "nystromformer", "roberta", "xlm-roberta"}
)


def check_installed(reason: str) -> None:
    """Raise BakeError with the command to install what is missing."""
    missing = [package for module, package in PACKAGES.items() if not _is_found(module)]
    if missing:
        raise BakeError(
            f"{reason}: this needs the exporter; not installed: {', '.join(missing)}. In an environment of "
            f"its own (docs/any-model.md): {INSTALL}"
        )


def _is_found(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # what it is a part of
        return False


def tokenizer_json(folder: Path) -> bytes:
    """Make the tokenizer.json that a checkpoint lacks. Raises BakeError where transformers cannot."""
    with _readable(f"the tokenizer in {folder}"):
        tokenizer = torch_answers.tokenizer_of(folder)
        if not tokenizer.is_fast:
            raise ValueError("it has no fast form")
        return str(tokenizer.backend_tokenizer.to_str()).encode()


def export(recipe: Recipe, ready: Prepared) -> Prepared:
    """Export a model, and compute what it answers in torch. Raises BakeError where that fails."""
    opened = Checkpoint(ready.folder, recipe.head_files)
    config = exported_config.read(opened.config)
    limit = _limit(recipe, config)
    kind = torch_answers.class_name(recipe.manifest.kind, config.model_type)
    with tempfile.TemporaryDirectory() as scratch, _readable(f"the model in {ready.folder}"):
        if kind in torch_answers.ENCODERS.values():
            path = _exported_encoder(kind, ready.folder, Path(scratch))
        else:
            path = _exported(recipe, ready.folder, config.padding_id, Path(scratch))
        model = _optimized(path, config.model_type, opened.config)
    graph = exported_graph.graph_of(model, recipe, config, opened.weights)
    limited = replace(recipe, manifest=replace(recipe.manifest, max_tokens=limit))
    with _readable(f"the model in {ready.folder}"):
        expected = torch_answers.expected(limited, kind, opened, ready.tokenizer)
    return replace(ready, graph=graph, expected=expected)


def _limit(recipe: Recipe, config: ExportedConfig) -> int:
    """Return how many tokens a text may have. Raises BakeError where nothing says it."""
    limit = min(recipe.manifest.max_tokens, config.max_positions)
    if limit >= UNLIMITED:
        raise BakeError(
            f"nothing says how many tokens a text may have, and {config.model_type} has no positions: put "
            f"max_seq_length into {SENTENCE_FILES[0]}"
        )
    return limit


@contextmanager
def _readable(what: str) -> Iterator[None]:
    """Turn what these libraries raise, which have no common error, into one line."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except BakeError:
        raise
    except ImportError as error:
        raise BakeError(
            f"{what} cannot be exported: {error}; in an environment of its own: {INSTALL}"
        ) from error
    except Exception as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise BakeError(f"{what} cannot be exported: {lines[0]}") from error


def _exported(recipe: Recipe, folder: Path, padding_id: int, out: Path) -> Path:
    from optimum.exporters.onnx import main_export

    main_export(
        str(folder),
        output=out,
        task=TASKS[recipe.manifest.kind],
        library_name="transformers",
        device="cpu",
        dtype="fp32",
        trust_remote_code=False,
        do_validation=False,  # of its own; the answers are compared at the end of the bake
        no_post_process=True,
        pad_token_id=padding_id,  # else, where the config has none, the tokenizer's: a text may end in that
    )
    return out / "model.onnx"


def _exported_encoder(kind: str, folder: Path, out: Path) -> Path:
    """Export the encoder alone of a model that has a decoder too."""
    from optimum.exporters.onnx import export as export_loaded
    from optimum.exporters.onnx.model_configs import DistilBertOnnxConfig  # token ids and a mask to states

    model = torch_answers.opened(kind, folder)
    export_loaded(model, DistilBertOnnxConfig(model.config, task=TASKS[Kind.EMBEDDING]), out / "model.onnx")
    return out / "model.onnx"


def _optimized(path: Path, model_type: str, config: dict[str, Any]) -> onnx.ModelProto:
    """Fuse what ONNX Runtime's optimizer knows; linear layers stay MatMul, so that they can be quantized."""
    if model_type not in LIKE_BERT:
        return onnx.load(str(path))
    from onnxruntime.transformers import fusion_options, optimizer

    options = fusion_options.FusionOptions("bert")
    options.use_multi_head_attention = True
    options.enable_embed_layer_norm = False
    options.enable_skip_layer_norm = False  # slower on the CPU than the two nodes it stands for
    options.enable_bias_skip_layer_norm = False
    num_heads = int(config.get("num_attention_heads") or config.get("n_heads") or 0)
    hidden = int(config.get("hidden_size") or config.get("dim") or 0)
    found = optimizer.optimize_model(
        str(path), "bert", num_heads, hidden, optimization_options=options, opt_level=0
    )
    model: onnx.ModelProto = found.model
    return model
