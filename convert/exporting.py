"""Owns torch, transformers and optimum: models without a graph of this converter's own, through the exporter.

All of them are imported when they are needed, and no code of a checkpoint is run.
"""

from __future__ import annotations

import importlib.util
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from convert import exported_config, exported_graph, parity, progress, running
from convert.bake import Prepared
from convert.checkpoint import Checkpoint
from convert.parity import Expected
from convert.recipe import Recipe
from service.errors import BakeError
from service.manifest import Kind, Manifest, Pooling

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
AUTO_CLASSES = {Kind.EMBEDDING: "AutoModel", Kind.RERANKER: "AutoModelForSequenceClassification"}
# Types whose layers ONNX Runtime's optimizer knows by the shape of BERT's.
LIKE_BERT = frozenset(
    {"albert", "bert", "big_bird", "camembert", "deberta", "deberta-v2", "distilbert", "electra", "mpnet"}
    | {"modernbert", "nystromformer", "roberta", "xlm-roberta"}
)

Floats = npt.NDArray[np.float32]


def check_installed(reason: str) -> None:
    """Raise BakeError with the command to install what is missing."""
    missing = [package for module, package in PACKAGES.items() if not _is_found(module)]
    if missing:
        raise BakeError(
            f"{reason}: this needs the exporter, and {', '.join(missing)} is not installed; in an "
            f"environment of its own: {INSTALL}"
        )


def _is_found(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # what it is a part of
        return False


def tokenizer_json(folder: Path) -> bytes:
    """Make the tokenizer.json that a checkpoint lacks. Raises BakeError where transformers cannot."""
    with _readable(f"the tokenizer in {folder}"):
        tokenizer = _tokenizer(folder)
        if not tokenizer.is_fast:
            raise ValueError("it has no fast form")
        return str(tokenizer.backend_tokenizer.to_str()).encode()


def export(recipe: Recipe, ready: Prepared) -> Prepared:
    """Export a model, and compute what it answers in torch. Raises BakeError where that fails."""
    opened = Checkpoint(ready.folder, recipe.head_files)
    config = exported_config.read(opened.config)
    with tempfile.TemporaryDirectory() as scratch, _readable(f"the model in {ready.folder}"):
        path = _exported(recipe, ready.folder, config.padding_id, Path(scratch))
        model = _optimized(path, config.model_type, opened.config)
    graph = exported_graph.graph_of(model, recipe, config, opened.weights)
    limit = min(recipe.manifest.max_tokens, config.max_positions)
    manifest = replace(recipe.manifest, max_tokens=limit)
    with _readable(f"the model in {ready.folder}"):
        answers = _answers(recipe, manifest, ready.folder, opened)
    return replace(ready, graph=graph, expected=Expected(answers))


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


def _answers(recipe: Recipe, manifest: Manifest, folder: Path, opened: Checkpoint) -> Floats:
    """Run the model in torch over the built-in texts, one at a time."""
    import torch
    import transformers

    tokenizer = _tokenizer(folder)
    kind = getattr(transformers, AUTO_CLASSES[manifest.kind])
    model = kind.from_pretrained(folder, trust_remote_code=False, dtype=torch.float32).eval()

    def computed(*given: str) -> Floats:
        lowered = [text.lower() if recipe.lowercases else text for text in given]
        inputs = tokenizer(*lowered, truncation=True, max_length=manifest.max_tokens, return_tensors="pt")
        with torch.inference_mode():
            found: Floats = model(**inputs)[0][0].float().numpy()
        return found  # (tokens, size) or (1,)

    texts = parity.built_in_texts(manifest)
    with progress.bar(len(texts), "torch", "text") as bar:
        if manifest.kind == Kind.RERANKER:
            return _scores(computed, texts, bar.update)
        prefix = next((task.prefix for task in manifest.tasks if task.name == manifest.default_task), "")
        rows = []
        for text in texts:
            rows.append(_vector(recipe, computed(prefix + text), opened))
            bar.update(1)
        return np.stack(rows).astype(np.float32)


def _scores(
    computed: Callable[[str, str], Floats], texts: Sequence[str], on_text: Callable[[int], object]
) -> Floats:
    """Score every query with every document, as `running.answers` does."""
    queries = texts[: running.NUM_QUERIES]
    documents = texts[running.NUM_QUERIES :][: running.MAX_DOCUMENTS]
    rows = []
    for query in queries:
        logits = np.array([computed(query, document)[0] for document in documents])
        rows.append(1 / (1 + np.exp(-logits.astype(np.float64))))
        on_text(len(texts) // len(queries))
    return np.stack(rows).astype(np.float32)


def _vector(recipe: Recipe, states: Floats, opened: Checkpoint) -> npt.NDArray[np.float64]:
    """Pool (tokens, size) states as sentence-transformers does; return a unit vector."""
    exact = states.astype(np.float64)
    found = {Pooling.CLS: exact[0], Pooling.LAST: exact[-1]}.get(recipe.manifest.pooling, exact.mean(axis=0))
    for layer in recipe.dense:
        name = f"{layer.folder}.linear"
        found = opened.weights[f"{name}.weight"].read() @ found
        if f"{name}.bias" in opened.weights:
            found = found + opened.weights[f"{name}.bias"].read()
        found = ACTIVATIONS[layer.activation](found)
    return np.asarray(found / np.linalg.norm(found))


def _tokenizer(folder: Path) -> Any:
    import transformers

    return transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False)


ACTIVATIONS: dict[str | None, Callable[[npt.NDArray[np.float64]], npt.NDArray[np.float64]]] = {
    None: lambda values: values,
    "Tanh": np.tanh,
    "Relu": lambda values: np.maximum(values, 0),
    "Sigmoid": lambda values: 1 / (1 + np.exp(-values)),
}
