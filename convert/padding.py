"""Finds out whether texts may share a run of an exported graph: whether padding or neighbours move answers.

Not every model masks all that it computes: a convolution over tokens takes padding in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from convert import parity, running, texts
from convert.running import Floats, Ids, Model
from service.errors import BakeError
from service.manifest import Kind, Manifest, Precision, Variant

NUM_ROWS = 8  # of a run
NUM_RUNS = 2


def checked(folder: Path, manifest: Manifest) -> Manifest:
    """Run texts together and alone; say in the manifest where only those of equal length may share a run.

    Raises BakeError where not even they may.
    """
    for variant in manifest.variants:
        if variant.precision != Precision.FP32:
            continue
        model = running.open_variant(folder, manifest, variant)
        runs = _runs(model)
        if not all(_is_harmless(model, variant, _of_equal_length(run)) for run in runs):
            raise BakeError(
                f"{manifest.name}: what the exported graph answers for a text depends on the others in its "
                "run, even where all are of equal length; nothing was published"
            )
        if not all(_is_harmless(model, variant, _of_unequal_lengths(run)) for run in runs):
            manifest = replace(manifest, never_pads=True)
    return manifest


def _runs(model: Model) -> list[list[Ids]]:
    """Take built-in texts as token ids, long ones beside short ones."""
    found = model.tokenizer.encode(texts.evaluation()[: NUM_RUNS * NUM_ROWS], model.manifest.max_tokens)
    ids = sorted((tokens.ids for tokens in found), key=len)
    return [ids[number::NUM_RUNS] for number in range(NUM_RUNS)]


def _of_equal_length(run: Sequence[Ids]) -> list[Ids]:
    shortest = min(map(len, run))
    return [ids[:shortest] for ids in run]


def _of_unequal_lengths(run: Sequence[Ids]) -> list[Ids]:
    """Cut each to another share of its length: all may be as long as the model allows."""
    return [ids[: max(1, len(ids) * number // len(run))] for number, ids in enumerate(run, 1)]


def _is_harmless(model: Model, variant: Variant, sequences: Sequence[Ids]) -> bool:
    """Tell whether texts that share a run have the answers that they have alone."""
    try:
        alone = [running.answer_of_run(model, variant, [ids]) for ids in sequences]
        together = running.answer_of_run(model, variant, sequences)
    except Exception as error:  # ONNX Runtime has one class per status code and no common parent
        raise BakeError(f"{model.manifest.name}: the exported graph cannot be run: {error}") from error
    kind = model.manifest.kind
    return parity.compared(_answers(together, kind), _answers(np.concatenate(alone), kind), kind).passed


def _answers(rows: Floats, kind: Kind) -> Floats:
    """Make scores of logits, or unit vectors; what is not finite stays so."""
    exact = rows.astype(np.float64)
    with np.errstate(all="ignore"):
        if kind == Kind.RERANKER:
            return np.asarray(1 / (1 + np.exp(-exact)), dtype=np.float32)
        return np.asarray(exact / np.linalg.norm(exact, axis=1)[:, None], dtype=np.float32)
