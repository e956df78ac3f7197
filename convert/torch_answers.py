"""Owns torch and transformers: what a model itself answers to the built-in texts.

Both are imported when they are needed, and no code of a checkpoint is run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from convert import parity, progress, running
from convert.checkpoint import Checkpoint
from convert.parity import Expected
from convert.recipe import Recipe
from service.manifest import Kind, Pooling

AUTO_CLASSES = {Kind.EMBEDDING: "AutoModel", Kind.RERANKER: "AutoModelForSequenceClassification"}
# Types with a decoder that vectors leave out, as sentence-transformers has it.
ENCODERS = {"t5": "T5EncoderModel", "mt5": "MT5EncoderModel", "umt5": "UMT5EncoderModel"}

Floats = npt.NDArray[np.float32]


def class_name(kind: Kind, model_type: str) -> str:
    """Return the class of transformers that opens a model."""
    return ENCODERS.get(model_type, AUTO_CLASSES[kind]) if kind == Kind.EMBEDDING else AUTO_CLASSES[kind]


def opened(kind: str, folder: Path) -> Any:
    """Open a model in fp32 by a class of transformers."""
    import torch
    import transformers

    model = getattr(transformers, kind).from_pretrained(folder, trust_remote_code=False, dtype=torch.float32)
    return model.eval()


def tokenizer_of(folder: Path) -> Any:
    """Open the tokenizer that transformers takes for a checkpoint."""
    import transformers

    return transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False)


def expected(recipe: Recipe, kind: str, checkpoint: Checkpoint, tokenizer: bytes) -> Expected:
    """Run the model in torch over the built-in texts, and compare its tokenizer with the bundle's."""
    own = tokenizer_of(checkpoint.folder)

    def ids_of(text: str) -> Sequence[int]:
        ids: Sequence[int] = own(_lowered(recipe, text))["input_ids"]
        return ids

    texts = parity.built_in_texts(recipe.manifest)
    return Expected(_answers(recipe, kind, checkpoint, own), misread(tokenizer, ids_of, texts))


def _lowered(recipe: Recipe, text: str) -> str:
    return text.lower() if recipe.lowercases else text


def _answers(recipe: Recipe, kind: str, checkpoint: Checkpoint, tokenizer: Any) -> Floats:
    """Compute vectors or scores, one text at a time."""
    import torch

    manifest, model = recipe.manifest, opened(kind, checkpoint.folder)

    def run(*given: str) -> Floats:
        lowered = [_lowered(recipe, text) for text in given]
        inputs = tokenizer(*lowered, truncation=True, max_length=manifest.max_tokens, return_tensors="pt")
        with torch.inference_mode():
            found: Floats = model(**inputs)[0][0].float().numpy()
        return found  # (tokens, size) or (1,)

    texts = parity.built_in_texts(manifest)
    with progress.bar(len(texts), "torch", "text") as bar:
        if manifest.kind == Kind.RERANKER:
            return _scores(run, texts, bar.update)
        prefix = next((task.prefix for task in manifest.tasks if task.name == manifest.default_task), "")
        rows = []
        for text in texts:
            rows.append(_vector(recipe, run(prefix + text), checkpoint))
            bar.update(1)
        return np.stack(rows).astype(np.float32)


def misread(tokenizer: bytes, ids_of: Callable[[str], Sequence[int]], texts: Sequence[str]) -> str | None:
    """Return the first text of which a tokenizer.json makes other ids than the model's own tokenizer."""
    native = Tokenizer.from_str(tokenizer.decode())
    native.no_padding()
    native.no_truncation()
    return next((text for text in texts if native.encode(text).ids != list(ids_of(text))), None)


def _scores(
    run: Callable[[str, str], Floats], texts: Sequence[str], on_text: Callable[[int], object]
) -> Floats:
    """Score every query with every document, as `running.answers` does."""
    queries = texts[: running.NUM_QUERIES]
    documents = texts[running.NUM_QUERIES :][: running.MAX_DOCUMENTS]
    rows = []
    for query in queries:
        logits = np.array([run(query, document)[0] for document in documents])
        rows.append(1 / (1 + np.exp(-logits.astype(np.float64))))
        on_text(len(texts) // len(queries))
    return np.stack(rows).astype(np.float32)


def _vector(recipe: Recipe, states: Floats, checkpoint: Checkpoint) -> npt.NDArray[np.float64]:
    """Pool (tokens, size) states as sentence-transformers does; return a unit vector."""
    exact = states.astype(np.float64)
    found = {Pooling.CLS: exact[0], Pooling.LAST: exact[-1]}.get(recipe.manifest.pooling, exact.mean(axis=0))
    for layer in recipe.dense:
        name = f"{layer.folder}.linear"
        found = checkpoint.weights[f"{name}.weight"].read() @ found
        if f"{name}.bias" in checkpoint.weights:
            found = found + checkpoint.weights[f"{name}.bias"].read()
        found = ACTIVATIONS[layer.activation](found)
    return np.asarray(found / np.linalg.norm(found))


ACTIVATIONS: dict[str | None, Callable[[npt.NDArray[np.float64]], npt.NDArray[np.float64]]] = {
    None: lambda values: values,
    "Tanh": np.tanh,
    "Relu": lambda values: np.maximum(values, 0),
    "Sigmoid": lambda values: 1 / (1 + np.exp(-values)),
}
