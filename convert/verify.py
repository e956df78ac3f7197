"""Checks baked graphs by running them: precisions against fp32, fp32 against the reference implementation.

The figures go into the manifest. Nothing here changes a graph.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from convert import emulation, progress, quality, reference, running
from convert.recipe import Recipe
from service import host
from service.errors import BakeError, ModelOutputInvalid, ProjectError
from service.figures import Speed
from service.manifest import Kind, Manifest, Precision, Variant

TEXTS_FILE = Path(__file__).parent / "data" / "sentences.jsonl"
FP32_MEMORY_FACTOR = 1.5  # of the weights' size: they are prepacked, and states come on top

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Measured:
    """What one variant computed, and how fast it was where that says something of the format."""

    answers: Floats | None  # None: a value was not finite
    speed: Speed | None


def texts() -> list[str]:
    """Read the built-in texts that quality is measured on."""
    with TEXTS_FILE.open(encoding="utf-8") as lines:
        return [json.loads(line)["text"] for line in lines]


def fits_memory(fp32_bytes: int) -> bool:
    """Tell whether a graph with so many bytes of weights can be run in the memory that is free."""
    room = host.available_memory()
    return room is None or fp32_bytes * FP32_MEMORY_FACTOR < room


def checked(folder: Path, manifest: Manifest, recipe: Recipe) -> Manifest:
    """Measure every variant, compare fp32 with the recipe's reference; return the figures in the manifest."""
    with progress.bar(len(manifest.variants) * len(texts()), "verify", "text") as bar:
        manifest = verified(folder, manifest, bar.update)
    variants = tuple(
        replace(variant, reference=reference.compared(folder, manifest, recipe, variant))
        for variant in manifest.variants
    )
    return replace(manifest, variants=variants)


def verified(folder: Path, manifest: Manifest, on_text: running.OnText) -> Manifest:
    """Run every variant of a bundle, fp32 among them; return the manifest with the figures filled in."""
    measured = {variant.file: measure(folder, manifest, variant, on_text) for variant in manifest.variants}
    exact = {
        variant.task: answers
        for variant in manifest.variants
        if variant.precision == Precision.FP32 and (answers := measured[variant.file].answers) is not None
    }
    variants = tuple(
        _with_figures(manifest.kind, variant, measured[variant.file], exact[variant.task])
        for variant in manifest.variants
    )
    return replace(manifest, variants=variants)


def measure(folder: Path, manifest: Manifest, variant: Variant, on_text: running.OnText) -> Measured:
    """Open a variant, run it on the built-in texts and time it; a 16-bit one by a stand-in, untimed."""
    try:
        with emulation.runnable(folder, manifest, variant) as (shown, stand_in):
            model = running.open_variant(folder, shown, stand_in)
            answers = running.answers(model, stand_in, texts(), on_text)
            speed = running.speed(model, variant, texts()) if stand_in is variant else None
            return Measured(answers, speed)
    except ModelOutputInvalid:
        if variant.precision == Precision.FP32:
            raise
        return Measured(None, None)
    except ProjectError:
        raise
    except Exception as error:  # ONNX Runtime has one class per status code and no common parent
        raise BakeError(f"{manifest.name}: {variant.file} cannot be run: {error}") from error


def refuse_failed(manifest: Manifest) -> None:
    """Raise BakeError where an fp32 graph differs from its reference by more than the tolerance."""
    for variant in failed(manifest):
        assert variant.reference
        raise BakeError(
            f"{manifest.name}{_of_task(variant)}: fp32 differs from the reference implementation by "
            f"{variant.reference.max_abs_difference:.1e}"
        )


def failed(manifest: Manifest) -> list[Variant]:
    """List the variants that differ from their reference."""
    return [variant for variant in manifest.variants if variant.reference and not variant.reference.passed]


def report(manifest: Manifest) -> Iterable[str]:
    """Describe every variant in a line."""
    is_measured = any(map(_has_figures, manifest.variants))
    for variant in manifest.variants:
        state = "verified" if variant.verified else "NOT VERIFIED"
        if not _has_figures(variant):
            state = f"{state}: computes values that are not finite" if is_measured else "not measured"
        parts = [f"{manifest.name}{_of_task(variant)} {variant.precision}: {state}", *_figures(variant)]
        yield "; ".join(parts)


def _has_figures(variant: Variant) -> bool:
    return bool(variant.speed or variant.quality or variant.rank_quality)


def _figures(variant: Variant) -> Iterable[str]:
    if variant.quality and variant.precision != Precision.FP32:
        figures = variant.quality
        yield (
            f"against fp32 mean cosine {figures.mean_cosine:.5f}, worst {figures.worst_cosine:.5f}, "
            f"top-10 overlap {figures.top10_overlap:.4f} over {figures.num_texts} texts"
        )
    if variant.rank_quality and variant.precision != Precision.FP32:
        ranks = variant.rank_quality
        yield (
            f"against fp32 rank correlation {ranks.rank_correlation:.5f}, "
            f"worst score error {ranks.worst_score_error:.4f} over {ranks.num_pairs} pairs"
        )
    if variant.reference:
        verdict = "PASS" if variant.reference.passed else "FAIL"
        yield f"against the reference {verdict}, max difference {variant.reference.max_abs_difference:.1e}"
    if variant.speed:
        yield f"{variant.speed.tokens_per_second:.0f} tokens/s at 8x128 on {variant.speed.instruction_set}"


def _of_task(variant: Variant) -> str:
    return f" {variant.task}" if variant.task else ""


def _with_figures(kind: Kind, variant: Variant, measured: Measured, exact: Floats) -> Variant:
    variant = replace(variant, speed=measured.speed)
    is_exact = variant.precision == Precision.FP32
    if measured.answers is None:
        return replace(variant, verified=False)
    if kind == Kind.RERANKER:
        ranks = quality.of_scores(measured.answers, exact)
        return replace(variant, rank_quality=ranks, verified=is_exact or quality.is_good(ranks))
    found = quality.of_vectors(measured.answers, exact)
    return replace(variant, quality=found, verified=is_exact or quality.is_good(found))
