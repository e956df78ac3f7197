"""Checks baked graphs by running them: precisions against fp32, fp32 against the reference implementation.

The figures go into the manifest. Nothing here changes a graph.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from convert import emulation, pictures, progress, quality, reference, running, texts
from convert.recipe import Recipe
from service import host
from service.embedding import EmbeddingModel
from service.errors import BakeError, ModelOutputInvalid, ProjectError
from service.figures import Quality, RankQuality, Speed
from service.manifest import Kind, Manifest, Precision, Variant

FP32_MEMORY_FACTOR = 1.5  # of the weights' size: they are prepacked, and states come on top

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Answers:
    """What a variant answers to the texts for evaluation, and to the images if it takes any."""

    texts: Floats
    images: Floats | None = None


def fits_memory(fp32_bytes: int) -> bool:
    """Tell whether a graph with so many bytes of weights can be run in the memory that is free."""
    room = host.available_memory()
    return room is None or fp32_bytes * FP32_MEMORY_FACTOR < room


def checked(folder: Path, manifest: Manifest, recipe: Recipe | None) -> Manifest:
    """Measure every variant, compare fp32 with the recipe's reference; return the figures in the manifest."""
    with progress.bar(len(manifest.variants) * len(texts.evaluation()), "verify", "text") as bar:
        manifest = verified(folder, manifest, bar.update)
    if recipe is None:
        return manifest
    variants = tuple(
        replace(variant, reference=reference.compared(folder, manifest, recipe, variant))
        for variant in manifest.variants
    )
    return replace(manifest, variants=variants)


def verified(folder: Path, manifest: Manifest, on_text: running.OnText) -> Manifest:
    """Run every variant of a bundle, fp32 among them; return the manifest with the figures filled in."""
    answers = {variant.file: measured(folder, manifest, variant, on_text) for variant in manifest.variants}
    exact = {
        variant.task: found
        for variant in manifest.variants
        if variant.precision == Precision.FP32 and (found := answers[variant.file]) is not None
    }
    speeds: dict[str, Speed] = {}
    for task in exact:
        variants = [variant for variant in manifest.variants if variant.task == task]
        speeds |= running.speeds(folder, manifest, variants, texts.evaluation())
    figured = tuple(
        _with_figures(
            manifest.kind,
            replace(variant, speed=speeds.get(variant.file)),
            answers[variant.file],
            exact[variant.task],
        )
        for variant in manifest.variants
    )
    return replace(manifest, variants=figured)


def measured(folder: Path, manifest: Manifest, variant: Variant, on_text: running.OnText) -> Answers | None:
    """Run a variant on what it is judged by, a 16-bit one by a stand-in; None: not all is finite."""
    try:
        with emulation.runnable(folder, manifest, variant) as (shown, stand_in):
            model = running.open_variant(folder, shown, stand_in)
            found = running.answers(model, stand_in, texts.evaluation(), on_text)
            if manifest.vision is None or not isinstance(model, EmbeddingModel):
                return Answers(found)
            shown_images = pictures.pictures(manifest.vision)
            return Answers(found, pictures.image_vectors(model, running.options_of(stand_in), shown_images))
    except ModelOutputInvalid:
        if variant.precision == Precision.FP32:
            raise
        return None
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
            f"top-10 overlap {figures.top10_overlap or 0:.4f} over {figures.num_texts} texts"
        )
    if variant.image_quality and variant.precision != Precision.FP32:
        seen = variant.image_quality
        yield (
            f"of images mean cosine {seen.mean_cosine:.5f}, worst {seen.worst_cosine:.5f} "
            f"over {seen.num_texts} images"
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


def _with_figures(kind: Kind, variant: Variant, answers: Answers | None, exact: Answers) -> Variant:
    if answers is None:
        return replace(variant, verified=False)
    found = quality.compared(kind, answers.texts, exact.texts)
    of_images = None
    if answers.images is not None and exact.images is not None:
        of_images = replace(quality.of_vectors(answers.images, exact.images), top10_overlap=None)
    are_good = [quality.is_good(each, variant.precision) for each in (found, of_images) if each]
    return replace(
        variant,
        quality=found if isinstance(found, Quality) else None,
        image_quality=of_images,
        rank_quality=found if isinstance(found, RankQuality) else None,
        verified=variant.precision == Precision.FP32 or all(are_good),
    )
