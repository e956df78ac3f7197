"""The straight line from a checkpoint to a published bundle."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path

from convert import bundle, describe, padding, parity, progress, tuning, verify
from convert.build import GraphsByTask, build, tower, wanted_tasks
from convert.checkpoint import Checkpoint
from convert.graph import Graph
from convert.parity import Expected
from convert.quantize import quantize
from convert.recipe import Recipe
from convert.rewriting import linear_layers
from convert.source import locate
from convert.tuning import Tuned
from service.errors import BakeError
from service.files import FileRecord
from service.manifest import TOKENIZER_FILE, Manifest, Precision, Source

MIXED_PRECISIONS = frozenset({Precision.INT8_BLOCK, Precision.FP32})
TUNED_PRECISIONS = frozenset({Precision.INT8, Precision.INT4})
Files = dict[str, dict[str, Graph]]  # folder -> file name without ending -> graph


class Verification(StrEnum):
    """Whether variants are measured before they are published."""

    AUTO = "auto"  # where the fp32 graph fits the free memory
    SKIP = "skip"
    REQUIRE = "require"


@dataclass(frozen=True)
class Prepared:
    """A checkpoint that was found already, with what stands in for its tokenizer and its layers."""

    folder: Path
    source: Source
    tokenizer: bytes
    graph: Graph | None = None  # made elsewhere; None: built of the weights
    expected: Expected | None = None  # what the model itself answers, where that was computed


@dataclass(frozen=True, kw_only=True)
class BakeRequest:
    """What the command asks for."""

    out: Path
    source: str | None = None  # folder or hub id[@revision]; None: as the recipe says
    precisions: tuple[Precision, ...] | None = None  # None: as the recipe says
    tasks: tuple[str, ...] | None = None  # None: all
    verification: Verification = Verification.AUTO
    mixture: Mapping[str, Precision] | None = None  # layers that int8 leaves to others; None: searched for
    offline: bool = False
    prepared: Prepared | None = None  # of a model outside the catalog


def bake(recipe: Recipe, request: BakeRequest) -> Manifest:
    """Bake a model and publish its bundle; return the manifest.

    Raises BakeError, with nothing published, when the checkpoint is wrong or a check fails.
    """
    tasks = wanted_tasks(recipe, request.tasks)
    ready = request.prepared or _found(recipe, request)
    opened = Checkpoint(ready.folder, recipe.head_files)
    graphs: GraphsByTask = {None: ready.graph} if ready.graph else build(recipe, opened, tasks)
    vision_tower = tower(recipe, opened)
    wanted = request.precisions or recipe.precisions
    verifying = _is_verifying(graphs, request.verification, recipe.manifest.name)
    _check_mixture(request, graphs, wanted, verifying=verifying)
    needs_exact = verifying or ready.expected
    written = tuple(dict.fromkeys((*wanted, Precision.FP32))) if needs_exact else wanted
    manifest = describe.with_variants(describe.described(recipe, opened, ready.source), tasks, written)
    with bundle.staging(request.out, recipe.manifest.name) as staged:
        files = {TOKENIZER_FILE: bundle.write_file(staged / TOKENIZER_FILE, ready.tokenizer)}
        tuned = Tuned(graphs)
        if verifying and TUNED_PRECISIONS & set(wanted):
            files |= _write(staged, {Precision.FP32: _named(graphs) | tuning.observing_graphs(graphs)})
            tuned, manifest = _tuned(staged, manifest, graphs, request)
        files |= _write(staged, _made(tuned, written, vision_tower))
        manifest = replace(manifest, files=files)
        if verifying:
            manifest = verify.checked(staged, manifest, recipe)
            _check_reference(manifest, recipe, is_published=request.source is None and not request.prepared)
        if ready.expected:
            manifest = _compared(staged, manifest, ready.expected, wanted)
        manifest = _keep(staged, manifest, wanted)
        bundle.publish(staged, manifest)
    return manifest


def _found(recipe: Recipe, request: BakeRequest) -> Prepared:
    folder, source = locate(recipe, request.source, offline=request.offline)
    if not (folder / TOKENIZER_FILE).is_file():
        raise BakeError(f"{folder} has no {TOKENIZER_FILE}")
    return Prepared(folder, source, (folder / TOKENIZER_FILE).read_bytes())


def _is_verifying(graphs: GraphsByTask, verification: Verification, name: str) -> bool:
    if verification == Verification.SKIP:
        return False
    num_bytes = max(graph.num_bytes for graph in graphs.values())  # one is open at a time
    if verify.fits_memory(num_bytes):
        return True
    needed = f"verification needs {num_bytes * verify.FP32_MEMORY_FACTOR / 1e9:.1f} GB of free memory"
    if verification == Verification.REQUIRE:
        raise BakeError(f"{name}: {needed}; free some or use --verify skip")
    print(f"{name}: {needed}: published with verified: false, int8 and int4 made without calibration")
    return False


def _tuned(
    staged: Path, manifest: Manifest, graphs: GraphsByTask, request: BakeRequest
) -> tuple[Tuned, Manifest]:
    """Calibrate and smooth; search for a mixture where int8 is wanted and none is given."""
    keeps_inputs = Precision.INT4 in manifest.precisions
    tuned = tuning.calibrated(staged, manifest, graphs, keeps_inputs=keeps_inputs)
    found = request.mixture
    if found is None:
        found = _searched(staged, manifest, tuned) if Precision.INT8 in manifest.precisions else {}
    return replace(tuned, mixture=found), replace(manifest, calibrated=True, mixture=dict(found))


def _check_mixture(
    request: BakeRequest, graphs: GraphsByTask, wanted: tuple[Precision, ...], *, verifying: bool
) -> None:
    """Refuse a mixture that would be ignored, and one that is not of this model."""
    found = request.mixture
    if found is None:
        return
    if not verifying or Precision.INT8 not in wanted:
        raise BakeError("--mixture needs int8 among --precision and a bake that is verified")
    unknown = set(found) - {layer.name for graph in graphs.values() for layer, _ in linear_layers(graph)}
    if unknown:
        raise BakeError(f"the model has no linear layer {', '.join(sorted(unknown))} (--mixture)")
    if others := set(found.values()) - MIXED_PRECISIONS:
        raise BakeError(f"--mixture has {', '.join(sorted(others))}: layers may be in int8-block or fp32")


def _searched(staged: Path, manifest: Manifest, tuned: Tuned) -> dict[str, Precision]:
    num_bytes = max(graph.num_bytes for graph in tuned.graphs.values())
    if not verify.fits_memory(round(num_bytes * tuning.SEARCH_MEMORY_FACTOR)):
        needed = num_bytes * tuning.SEARCH_MEMORY_FACTOR * verify.FP32_MEMORY_FACTOR / 1e9
        print(f"{manifest.name}: int8 is made without a search for a mixture: it needs {needed:.1f} GB free")
        return {}
    found = tuning.searched(staged, manifest, tuned)
    num_layers = len(list(linear_layers(next(iter(tuned.graphs.values())))))
    print(f"{manifest.name}: int8 leaves {len(found) or 'none'} of {num_layers} linear layers to int8-block")
    return found


def _named(graphs: GraphsByTask) -> dict[str, Graph]:
    return {describe.graph_name(task): graph for task, graph in graphs.items()}


def _made(tuned: Tuned, precisions: tuple[Precision, ...], vision_tower: Graph | None) -> Files:
    """Make the graphs of every precision that is not written yet, and the tower that all share."""
    made: Files = {}
    for precision in precisions:
        if precision == Precision.FP32 and tuned.smoothed:
            continue  # written for calibration
        is_smoothed = precision == Precision.INT8 and tuned.smoothed
        graphs = tuned.smoothed if is_smoothed else tuned.graphs
        mixture = tuned.mixture if is_smoothed else None
        made[precision] = _named(
            {
                task: quantize(graph, precision, tuned.inputs.get(task), mixture)
                for task, graph in graphs.items()
            }
        )
    if vision_tower:
        made[describe.VISION_FOLDER] = {describe.MODEL_GRAPH: vision_tower}
    return made


def _write(staged: Path, graphs: Files) -> dict[str, FileRecord]:
    """Write the graphs of each folder; return the records of the files."""
    files: dict[str, FileRecord] = {}
    with progress.bar(sum(map(bundle.weights_bytes, graphs.values())), "bake", "B") as bar:
        for folder, by_name in graphs.items():
            files |= bundle.write_graphs(staged, folder, by_name, bar.update)
    return files


def _check_reference(manifest: Manifest, recipe: Recipe, *, is_published: bool) -> None:
    """Refuse published weights that fail their reference, or are not those that it is of.

    A checkpoint that the user names may be another one: its verdict is printed, not more.
    """
    if is_published or recipe.reference:
        verify.refuse_failed(manifest)
    if is_published and recipe.reference and not any(variant.reference for variant in manifest.variants):
        raise BakeError(
            f"{manifest.name}: the weights are not the published ones that the reference vectors are of; "
            "name them with --source if that is meant"
        )


def _compared(
    staged: Path, manifest: Manifest, expected: Expected, wanted: tuple[Precision, ...]
) -> Manifest:
    """Compare a graph made elsewhere with the model itself, and texts alone with texts that share a run."""
    manifest = padding.checked(staged, manifest)
    if manifest.never_pads:
        print(f"{manifest.name}: padding moves its answers: texts of unequal length will never share a run")
    manifest = parity.checked(staged, manifest, expected)
    if Precision.FP32 not in wanted:  # else the report at the end says the same
        exact = [variant for variant in manifest.variants if variant.precision == Precision.FP32]
        for line in verify.report(replace(manifest, variants=tuple(exact))):
            print(f"{line}; not kept")
    return manifest


def _keep(staged: Path, manifest: Manifest, precisions: tuple[Precision, ...]) -> Manifest:
    """Drop what was only written to compare with."""
    unwanted = set(manifest.precisions) - set(precisions)
    dropped = [
        name
        for name in manifest.files
        if name.partition("/")[0] in unwanted or name.endswith(f".{tuning.OBSERVING}.onnx")
    ]
    for name in dropped:
        (staged / name).unlink()
    for folder in unwanted:
        (staged / folder).rmdir()
    return replace(
        manifest,
        variants=tuple(variant for variant in manifest.variants if variant.precision in precisions),
        files={name: record for name, record in manifest.files.items() if name not in dropped},
    )
