"""Examples of requests for the models that are loaded. Knows what fields ask of a model, no HTTP."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from service.forms import DEFAULT_RERANKER
from service.manifest import Kind, Manifest, Output, Scoring

Body = Mapping[str, Any]
TOKEN_VECTORS = {Output.MULTIVECTOR, Output.COLBERT}
NEEDS: dict[str, Callable[[Manifest, Any], bool]] = {  # a field and what its value asks of a model
    "query": lambda manifest, _: manifest.kind == Kind.RERANKER,
    "task": lambda manifest, task: task in manifest.task_names,
    "dimensions": lambda manifest, size: manifest.truncatable and size <= manifest.dimensions,
    "late_chunking": lambda manifest, _: manifest.late_chunking,
    "return_sparse": lambda manifest, _: Output.SPARSE in manifest.outputs,
    "return_colbert": lambda manifest, _: Output.COLBERT in manifest.outputs,
    "input_type": lambda manifest, side: (
        bool(TOKEN_VECTORS & {*manifest.outputs}) and f"retrieval.{side}" in manifest.task_names
    ),
    "instruction": lambda manifest, _: manifest.scoring in (Scoring.YES_NO, Scoring.LISTWISE),
    "return_embeddings": lambda manifest, _: manifest.scoring == Scoring.LISTWISE,
}


def fit(examples: Mapping[str, Body], loaded: Sequence[Manifest]) -> dict[str, dict[str, Any]]:
    """Have examples name loaded models, their own where it is one.

    Those that no loaded model answers come last, and their names say which model they need.
    """
    fitting: dict[str, dict[str, Any]] = {}
    others: dict[str, dict[str, Any]] = {}
    for name, body in examples.items():
        wanted = body.get("model", DEFAULT_RERANKER)
        able = [manifest.name for manifest in loaded if _can_answer(manifest, body)]
        if wanted in able:
            fitting[name] = {**body}
        elif able:
            fitting[name] = {**body, "model": able[0]}
        else:
            others[f"{name} (needs {wanted})" if loaded else name] = {**body}
    return fitting | others


def _can_answer(manifest: Manifest, body: Body) -> bool:
    if "input" in body and manifest.kind != Kind.EMBEDDING:
        return False
    if manifest.vision is None and _has_image(body.get("input")):
        return False
    return all(NEEDS[field](manifest, value) for field, value in body.items() if field in NEEDS)


def _has_image(inputs: Any) -> bool:
    items = inputs if isinstance(inputs, list) else [inputs]
    return any(isinstance(item, Mapping) and "image" in item for item in items)
