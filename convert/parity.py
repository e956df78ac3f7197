"""Compares a baked fp32 graph with what the model itself computed in torch, over the built-in texts.

Knows no torch: the expected answers are arrays.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from convert import running, texts
from service.errors import BakeError
from service.figures import Reference
from service.manifest import Kind, Manifest, Precision

COSINE_FLOOR = 0.99999
SCORE_TOLERANCE = 1e-4  # of scores between 0 and 1
NUM_TEXTS = 128  # of the built-in ones; a text at a time

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Expected:
    """Unit vectors (texts, size) of the built-in texts, or a reranker's scores (queries, documents)."""

    answers: Floats


def built_in_texts(manifest: Manifest) -> list[str]:
    """Return the texts that are compared; those of pairs are short, for the graph does not cut them."""
    found = texts.evaluation()[:NUM_TEXTS]
    if manifest.kind == Kind.RERANKER:
        return [text[: max(8, manifest.max_tokens // 8)] for text in found]
    return found


def checked(folder: Path, manifest: Manifest, expected: Expected) -> Manifest:
    """Compare the fp32 variant; return the figures in the manifest. Raises BakeError when it differs."""
    found = tuple(
        replace(variant, reference=compared(running.answers(
            running.open_variant(folder, manifest, variant), variant, built_in_texts(manifest)
        ), expected.answers, manifest.kind))
        if variant.precision == Precision.FP32 else variant
        for variant in manifest.variants
    )  # fmt: skip
    for variant in found:
        if variant.reference and not variant.reference.passed:
            worst = variant.reference.worst_cosine
            raise BakeError(
                f"{manifest.name}: the exported graph differs from the model in torch by "
                f"{variant.reference.max_abs_difference:.1e}"
                f"{'' if worst is None else f' (worst cosine {worst:.6f})'}; nothing was published"
            )
    return replace(manifest, variants=found)


def compared(computed: Floats, expected: Floats, kind: Kind) -> Reference:
    """Compare unit vectors or scores; what is not finite does not pass."""
    difference = float(np.abs(computed - expected).max())
    if kind == Kind.RERANKER:
        passed = bool(difference <= SCORE_TOLERANCE)
        return Reference(max_abs_difference=difference, num_texts=expected.size, passed=passed)
    worst = float(np.einsum("nd,nd->n", computed.astype(np.float64), expected.astype(np.float64)).min())
    return Reference(
        worst_cosine=worst,
        max_abs_difference=difference,
        num_texts=len(expected),
        passed=worst >= COSINE_FLOOR,
    )
