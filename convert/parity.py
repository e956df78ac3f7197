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
MAX_SHOWN = 60  # characters of a text
NUM_TEXTS = 128  # of the built-in ones; a text at a time

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Expected:
    """Unit vectors (texts, size) of the built-in texts, or a reranker's scores (queries, documents)."""

    answers: Floats
    misread: str | None = None  # a text of which the bundle's tokenizer makes other ids than the model's own


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
            raise BakeError(f"{manifest.name}: {_difference(variant.reference, expected.misread)}")
    return replace(manifest, variants=found)


def _difference(found: Reference, misread: str | None) -> str:
    """Say what differs: the graph, or already the tokenizer before it."""
    worst = "" if found.worst_cosine is None else f" (worst cosine {found.worst_cosine:.6f})"
    figures = f"{found.max_abs_difference:.1e}{worst}; nothing was published"
    if misread is None:
        return f"the exported graph differs from the model in torch by {figures}"
    return (
        f"the tokenizer of the bundle differs from the one that transformers makes of the checkpoint: other "
        f"token ids of {misread[:MAX_SHOWN]!r}. The answers differ by {figures}"
    )


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
