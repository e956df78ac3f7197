"""Forms of the default model from the fastest to the most accurate, made from its checkpoint.

What a bake chooses from: plain 8-bit rows and columns, smoothed ones, mixtures that leave more and more
layers to 8-bit blocks, in the order that the search finds. Measures nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

from convert import build, bundle, describe, mixture, running, tuning
from convert.checkpoint import Checkpoint
from convert.graph import Graph
from convert.quantize import quantize
from convert.recipe import Recipe
from convert.source import locate
from convert.tuning import Tuned
from service.embedding import EmbeddingModel
from service.errors import BundleError
from service.graphs import ROUNDS_ACTIVATIONS
from service.manifest import TOKENIZER_FILE, Manifest, Precision
from service.session import Session

SHARES = (0.1, 0.25, 0.5)  # of the weights, left to 8-bit blocks


@dataclass(frozen=True)
class Point:
    """A form of the model, and the precision it is a form of; `is_baked` where a bake makes just this."""

    label: str
    precision: Precision
    is_baked: bool
    model: EmbeddingModel


def points(recipe: Recipe, folder: Path) -> list[Point]:
    """Make every form in an empty folder and open it."""
    source, origin = locate(recipe, None, offline=True)
    opened = Checkpoint(source, recipe.head_files)
    graphs = build.build(recipe, opened, (None,))
    described = describe.described(recipe, opened, origin)
    manifest = describe.with_variants(described, (None,), (Precision.FP32,))
    (folder / TOKENIZER_FILE).write_bytes((source / TOKENIZER_FILE).read_bytes())
    written = {describe.MODEL_GRAPH: graphs[None]} | tuning.observing_graphs(graphs)
    bundle.write_graphs(folder, Precision.FP32, written, lambda count: None)
    tuned = tuning.calibrated(folder, manifest, graphs, keeps_inputs=True)
    found = []
    for label, precision, graph in _forms(folder, manifest, tuned):
        name = "form-" + label.replace(" ", "-")
        bundle.write_graphs(folder, name, {describe.MODEL_GRAPH: graph}, lambda count: None)
        found.append(Point(label, precision, label == precision, _open(folder, manifest, name, precision)))
    return found


def _forms(folder: Path, manifest: Manifest, tuned: Tuned) -> Iterator[tuple[str, Precision, Graph]]:
    plain, smoothed = tuned.graphs[None], tuned.smoothed[None]
    seen = tuned.inputs[None]
    with closing(tuning.Opened(folder, manifest, tuned)) as opened:
        subject = opened.subject(None)
        order, sizes = mixture.by_effect(subject, lambda: None), subject.sizes
        chosen = mixture.searched([None], opened.subject, lambda: None)
    yield Precision.FP32, Precision.FP32, plain
    yield "int8, not smoothed", Precision.INT8, quantize(plain, Precision.INT8)
    yield Precision.INT8, Precision.INT8, quantize(smoothed, Precision.INT8, mixture=chosen)
    for share in SHARES:
        left = dict.fromkeys(mixture.first(order, sizes, share), mixture.ACCURATE)
        label = f"int8, {share:.0%} in blocks"
        yield label, Precision.INT8, quantize(smoothed, Precision.INT8, mixture=left)
    for precision in (Precision.INT8_BLOCK, Precision.INT4):
        yield precision, precision, quantize(plain, precision, seen)


def _open(folder: Path, manifest: Manifest, name: str, precision: Precision) -> EmbeddingModel:
    settings = replace(running.settings(), may_pad=precision not in ROUNDS_ACTIVATIONS)
    session = Session(folder / name / f"{describe.MODEL_GRAPH}.onnx", settings)
    model = running.open_variant(folder, manifest, manifest.variants[0], session)
    if not isinstance(model, EmbeddingModel):
        raise BundleError(f"{manifest.name} has no vectors")
    return model
