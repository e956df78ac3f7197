"""What transformers and sentence-transformers compute of a checkpoint. Knows nothing of this project."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import transformers

from tests.exporter import checkpoints
from tests.exporter.checkpoints import Tiny

Floats = npt.NDArray[np.float64]


def of_transformers(folder: Path, tiny: Tiny, queries: Sequence[str], texts: Sequence[str]) -> Floats:
    """Compute unit vectors of texts, or scores (queries, texts) of pairs, one at a time."""
    inner = checkpoints.transformer_of(folder, is_nested=tiny.is_nested)
    tokenizer = transformers.AutoTokenizer.from_pretrained(inner)
    model = getattr(transformers, tiny.auto_class).from_pretrained(inner, dtype=torch.float32).eval()
    rows = []
    with torch.inference_mode():
        if tiny.is_reranker:
            for query in queries:
                pairs = [tokenizer(query, text, return_tensors="pt") for text in texts]
                logits = [model(**pair).logits[0, 0] for pair in pairs]
                rows.append(torch.sigmoid(torch.stack(logits)).double().numpy())
            return np.stack(rows)
        for text in map(str.lower, texts) if tiny.lowercases else texts:
            inputs = tokenizer(text, truncation=True, max_length=tiny.max_tokens, return_tensors="pt")
            states = model(**inputs)[0][0].double()
            pooled = {"cls": states[0], "lasttoken": states[-1]}.get(tiny.pooling or "", states.mean(0))
            if tiny.dense_size:
                layer = torch.load(folder / "2_Dense" / "pytorch_model.bin")
                pooled = torch.tanh(layer["linear.weight"].double() @ pooled + layer["linear.bias"].double())
            cut = pooled[: tiny.dimensions or None]
            rows.append((cut / cut.norm()).numpy())
    return np.stack(rows)


def of_sentence_transformers(
    folder: Path, tiny: Tiny, queries: Sequence[str], texts: Sequence[str]
) -> Floats | None:
    """Compute the same with sentence-transformers; None where it is not installed."""
    if importlib.util.find_spec("sentence_transformers") is None:
        return None
    import sentence_transformers

    if tiny.is_reranker:
        encoder = sentence_transformers.CrossEncoder(str(folder), device="cpu")
        activation = torch.nn.Sigmoid()
        return np.stack(
            [
                encoder.predict([(query, text) for text in texts], activation_fn=activation, batch_size=1)
                for query in queries
            ]
        ).astype(np.float64)
    model = sentence_transformers.SentenceTransformer(str(folder), device="cpu")
    batch_size = 1 if tiny.moves_with_padding else 8
    found = model.encode(list(texts), normalize_embeddings=True, batch_size=batch_size)
    return np.asarray(found, dtype=np.float64)


def prompted(folder: Path, texts: Sequence[str], prompt: str) -> Floats | None:
    """Compute vectors behind a prompt of the checkpoint's own with sentence-transformers."""
    if importlib.util.find_spec("sentence_transformers") is None:
        return None
    import sentence_transformers

    model = sentence_transformers.SentenceTransformer(str(folder), device="cpu")
    found = model.encode(list(texts), prompt_name=prompt, normalize_embeddings=True)
    return np.asarray(found, dtype=np.float64)


def prompts_of(folder: Path) -> list[str]:
    """List the names of a checkpoint's prompts."""
    path = folder / "config_sentence_transformers.json"
    return list(json.loads(path.read_text()).get("prompts", {})) if path.is_file() else []
