"""Checks baked graphs by running them: precisions against fp32, fp32 against the reference implementation.

The figures go into the manifest. Nothing here changes a graph.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from convert import progress
from convert.catalog import Recipe
from service import host
from service.embedding import EmbeddingModel, EmbedOptions, open_model
from service.errors import BakeError
from service.manifest import Manifest, Output, Precision, Quality, Reference, Speed, Variant
from service.scheduler import Scheduler
from service.session import SessionSettings, pad

DATA = Path(__file__).parent / "data"
TEXTS_FILE = DATA / "sentences.jsonl"
REFERENCE_FOLDER = DATA / "reference"
FLOORS = {"mean_cosine": 0.998, "top10_overlap": 0.96}  # a quantized precision below one is not verified
NUM_NEIGHBOURS = 10
BATCH_TOKENS = 1024
SPEED_ROWS, SPEED_TOKENS, SPEED_RUNS = 8, 128, 7
FP32_MEMORY_FACTOR = 1.5  # of the weights' size: they are prepacked, and states come on top

Floats = npt.NDArray[np.float32]
OnText = Callable[[int], object]


@dataclass(frozen=True)
class Measured:
    """What one variant computed, and how fast it was."""

    vectors: Floats
    speed: Speed


def texts() -> list[str]:
    """Read the built-in texts that quality is measured on."""
    with TEXTS_FILE.open(encoding="utf-8") as lines:
        return [json.loads(line)["text"] for line in lines]


def fits_memory(fp32_bytes: int) -> bool:
    """Tell whether a graph with so many bytes of weights can be run in the memory that is free."""
    room = host.available_memory()
    return room is None or fp32_bytes * FP32_MEMORY_FACTOR < room


def checked(folder: Path, manifest: Manifest, recipe: Recipe) -> Manifest:
    """Measure every variant, compare fp32 with the recipe's reference; return the figures in the manifest.

    Raises BakeError when fp32 differs from the reference by more than the recipe's tolerance.
    """
    with progress.bar(len(manifest.variants) * len(texts()), "verify", "text") as bar:
        manifest = verified(folder, manifest, bar.update)
    if recipe.reference is None:
        return manifest
    found = reference(folder, manifest, recipe.reference)
    return with_reference(manifest, found, recipe.reference_tolerance)


def verified(folder: Path, manifest: Manifest, on_text: OnText) -> Manifest:
    """Run every variant of a bundle, fp32 among them; return the manifest with the figures filled in."""
    measured = {
        variant.precision: measure(folder, manifest, variant, on_text) for variant in manifest.variants
    }
    exact = measured[Precision.FP32].vectors
    variants = tuple(
        _with_figures(variant, measured[variant.precision], exact) for variant in manifest.variants
    )
    return replace(manifest, variants=variants)


def measure(folder: Path, manifest: Manifest, variant: Variant, on_text: OnText) -> Measured:
    """Open a variant, embed the built-in texts with it and time it."""
    model = _open(folder, manifest, variant.precision)
    vectors = _embed(model, texts(), on_text)
    return Measured(vectors, _speed(model))


def quality(vectors: Floats, exact: Floats) -> Quality:
    """Compare unit vectors with those of fp32: cosines, and how many of the nearest neighbours stay."""
    cosines = np.einsum("nd,nd->n", vectors.astype(np.float64), exact.astype(np.float64))
    shared = [
        len(ours & theirs) for ours, theirs in zip(_neighbours(vectors), _neighbours(exact), strict=True)
    ]
    count = min(NUM_NEIGHBOURS, len(exact) - 1)
    return Quality(
        mean_cosine=round(float(cosines.mean()), 6),
        worst_cosine=round(float(cosines.min()), 6),
        top10_overlap=round(float(np.mean(shared)) / count, 6),
        num_texts=len(exact),
    )


def reference(folder: Path, manifest: Manifest, file: str) -> Reference | None:
    """Compare fp32 with vectors of the reference implementation; None where those are of other weights."""
    content: dict[str, Any] = json.loads((REFERENCE_FOLDER / file).read_text(encoding="utf-8"))
    if content["weights_sha256"] not in manifest.source.sha256.values():
        return None
    model = _open(folder, manifest, Precision.FP32)
    expected = np.array([case["vector"] for case in content["cases"]], dtype=np.float64)
    computed = _embed(model, [case["text"] for case in content["cases"]], lambda count: None)
    return Reference(
        worst_cosine=float(np.einsum("nd,nd->n", computed, expected).min()),
        max_abs_difference=float(np.abs(computed - expected).max()),
        num_texts=len(expected),
    )


def with_reference(manifest: Manifest, found: Reference | None, tolerance: float) -> Manifest:
    """Record the comparison on the fp32 variants. Raises BakeError when it is worse than the tolerance."""
    if found is not None and found.max_abs_difference > tolerance:
        raise BakeError(
            f"{manifest.name}: fp32 differs from the reference implementation by "
            f"{found.max_abs_difference:.1e} (tolerance {tolerance:.0e}, "
            f"worst cosine {found.worst_cosine:.6f})"
        )
    variants = (
        replace(variant, reference=found) if variant.precision == Precision.FP32 else variant
        for variant in manifest.variants
    )
    return replace(manifest, variants=tuple(variants))


def report(manifest: Manifest) -> Iterable[str]:
    """Describe every variant in a line."""
    for variant in manifest.variants:
        parts = [f"{manifest.name} {variant.precision}:", "verified" if variant.verified else "NOT VERIFIED"]
        if variant.quality and variant.precision != Precision.FP32:
            figures = variant.quality
            parts.append(
                f"against fp32 mean cosine {figures.mean_cosine:.5f}, worst {figures.worst_cosine:.5f}, "
                f"top-10 overlap {figures.top10_overlap:.4f} over {figures.num_texts} texts;"
            )
        if variant.reference:
            parts.append(f"against the reference max difference {variant.reference.max_abs_difference:.1e};")
        if variant.speed:
            speed = variant.speed
            parts.append(f"{speed.tokens_per_second:.0f} tokens/s at 8x128 on {speed.instruction_set}")
        yield " ".join(parts)


def _open(folder: Path, manifest: Manifest, precision: Precision) -> EmbeddingModel:
    settings = SessionSettings(num_threads=host.num_usable_cores())
    return open_model(folder, manifest, precision, settings, Scheduler(BATCH_TOKENS))


def _embed(model: EmbeddingModel, inputs: list[str], on_text: OnText) -> Floats:
    """Embed one text at a time, cut to the limit: what a batch does must not matter here."""
    rows = []
    for text in inputs:
        rows.append(model.embed([text], EmbedOptions(truncate=True)).vectors[0])
        on_text(1)
    return np.stack(rows)


def _speed(model: EmbeddingModel) -> Speed:
    """Time the best of a few runs of full rows of real tokens: what else the host does only adds time."""
    limit = model.manifest.max_tokens
    tokens = np.concatenate([tokens.ids for tokens in model.tokenizer.encode(texts(), limit)])
    num_tokens = min(SPEED_TOKENS, limit)
    inputs = pad(list(np.resize(tokens, (SPEED_ROWS, num_tokens))))
    seconds = []
    for _ in range(SPEED_RUNS):
        begin = time.perf_counter()
        model.session.run(inputs, [Output.POOLED])
        seconds.append(time.perf_counter() - begin)
    return Speed(
        tokens_per_second=round(SPEED_ROWS * num_tokens / min(seconds), 1),
        instruction_set=host.instruction_set(),
        num_threads=host.num_usable_cores(),
    )


def _with_figures(variant: Variant, measured: Measured, exact: Floats) -> Variant:
    found = quality(measured.vectors, exact)
    passed = all(getattr(found, name) >= floor for name, floor in FLOORS.items())
    is_verified = variant.precision == Precision.FP32 or passed
    return replace(variant, quality=found, speed=measured.speed, verified=is_verified)


def _neighbours(vectors: Floats) -> list[set[int]]:
    similarities = vectors @ vectors.T
    np.fill_diagonal(similarities, -np.inf)
    count = min(NUM_NEIGHBOURS, len(vectors) - 1)
    return [set(row[:count].tolist()) for row in np.argsort(-similarities, axis=1, kind="stable")]
