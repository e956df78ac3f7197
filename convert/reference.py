"""Compares fp32 graphs with outputs of reference implementations that ship with the converter.

Three kinds: unit vectors of texts, made from weights of a known hash; and token states or cosines that others
have published of a model's real weights, whose hash is not known: they are compared wherever the sizes agree.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from convert import running
from convert.recipe import PublishedCosines, Recipe
from service.figures import Reference
from service.manifest import BASE_TASK, Manifest, Precision, Variant
from service.options import EmbedOptions

FOLDER = Path(__file__).parent / "data" / "reference"


def compared(folder: Path, manifest: Manifest, recipe: Recipe, variant: Variant) -> Reference | None:
    """Compare a variant with the recipe's reference; None where there is none, or it is of other weights."""
    if variant.precision != Precision.FP32:
        return None
    if recipe.reference:
        return _vectors(folder, manifest, variant, recipe)
    if recipe.published_states:
        return _states(folder, manifest, variant, _read(recipe.published_states))
    if recipe.published_cosines:
        return _cosines(folder, manifest, variant, recipe.published_cosines)
    return None


def _vectors(folder: Path, manifest: Manifest, variant: Variant, recipe: Recipe) -> Reference | None:
    content = _read(str(recipe.reference))
    if content["weights_sha256"] not in manifest.source.sha256.values():
        return None
    model = running.open_variant(folder, manifest, variant)
    expected = np.array([case["vector"] for case in content["cases"]], dtype=np.float64)
    texts = [case["text"] for case in content["cases"]]
    computed = running.answers(model, variant, texts, lambda count: None)
    difference = float(np.abs(computed - expected).max())
    return Reference(
        worst_cosine=float(np.einsum("nd,nd->n", computed, expected).min()),
        max_abs_difference=difference,
        num_texts=len(expected),
        passed=difference <= recipe.reference_tolerance,
    )


def _states(folder: Path, manifest: Manifest, variant: Variant, content: dict[str, Any]) -> Reference | None:
    """Compare the published corner of the states of every case."""
    task = variant.task or BASE_TASK
    cases = [case for case in content["cases"] if task in case["states"]]
    if manifest.dimensions != content["dimensions"] or not cases:
        return None
    model = running.open_variant(folder, manifest, variant)
    cosines, differences = [], []
    for case in cases:
        ids = case.get("ids") or model.tokenizer.locate(case["text"]).ids.tolist()
        states = running.token_states(model, variant, ids, case.get("mask") or [1] * len(ids))
        expected = np.array(case["states"][task])
        rows, columns = (slice(*case[axis]) for axis in ("rows", "columns"))
        computed = states[rows, columns].astype(np.float64)
        differences.append(float(np.abs(computed - expected).max()))
        norms = np.linalg.norm(computed) * np.linalg.norm(expected)
        cosines.append(float((computed * expected).sum() / norms))
    return Reference(
        worst_cosine=min(cosines),
        max_abs_difference=max(differences),
        num_texts=len(cases),
        passed=max(differences) <= content["tolerance"],
    )


def _cosines(
    folder: Path, manifest: Manifest, variant: Variant, published: PublishedCosines
) -> Reference | None:
    """Compare the cosines of queries with documents."""
    if manifest.dimensions != published.dimensions:
        return None
    model = running.open_variant(folder, manifest, variant)
    queries, documents = (
        running.vectors(model, texts, EmbedOptions(task=task))
        for texts, task in (
            (published.queries, published.query_task),
            (published.documents, published.document_task),
        )
    )
    difference = float(np.abs(queries @ documents.T - np.array(published.cosines)).max())
    return Reference(
        max_abs_difference=difference,
        num_texts=len(published.queries) + len(published.documents),
        passed=difference <= published.tolerance,
    )


def _read(file: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((FOLDER / file).read_text(encoding="utf-8"))
    return content
