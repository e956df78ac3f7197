"""The straight line from a checkpoint to a published bundle."""

from __future__ import annotations

import importlib.metadata
import time
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path

from convert import bundle, checkpoint, encoder, heads, progress, verify
from convert.catalog import Recipe
from convert.checkpoint import Checkpoint
from convert.graph import Graph
from convert.quantize import quantize
from service.errors import BakeError
from service.manifest import (
    TOKENIZER_FILE,
    FileRecord,
    Manifest,
    Pooling,
    Precision,
    Source,
    Variant,
    sha256_of,
)

PACKAGES = ("onnxruntime-gpu", "onnxruntime", "onnx", "numpy", "tokenizers", "safetensors")
MODEL_GRAPH = "model"
SENTENCE_CONFIG = "sentence_bert_config.json"
POOLING_CONFIG = "1_Pooling/config.json"
POOLING_MODES = {Pooling.MEAN: "pooling_mode_mean_tokens"}


class Verification(StrEnum):
    """Whether variants are measured before they are published."""

    AUTO = "auto"  # where the fp32 graph fits the free memory
    SKIP = "skip"
    REQUIRE = "require"


@dataclass(frozen=True, kw_only=True)
class BakeRequest:
    """What the command asks for."""

    out: Path
    source: str | None = None  # folder or hub id[@revision]; None: as the recipe says
    precisions: tuple[Precision, ...] | None = None  # None: as the recipe says
    verification: Verification = Verification.AUTO
    offline: bool = False


def bake(recipe: Recipe, request: BakeRequest) -> Manifest:
    """Bake a model and publish its bundle; return the manifest.

    Raises BakeError, with nothing published, when the checkpoint is wrong or a check fails.
    """
    folder, source = locate(recipe, request)
    opened = Checkpoint(folder)
    tokenizer = _read_tokenizer(opened)
    graph = build(recipe, opened)
    wanted = request.precisions or recipe.precisions
    verifying = _is_verifying(graph, request.verification, recipe.manifest.name)
    written = tuple(dict.fromkeys((*wanted, Precision.FP32))) if verifying else wanted
    manifest = _described(recipe, opened, source, written)
    with bundle.staging(request.out, recipe.manifest.name) as staged:
        files = _write(staged, graph, written)
        files[TOKENIZER_FILE] = bundle.write_file(staged / TOKENIZER_FILE, tokenizer)
        manifest = replace(manifest, files=files)
        if verifying:
            manifest = verify.checked(staged, manifest, recipe)
            if request.source is None:
                _check_published(manifest, recipe)
        manifest = _keep(staged, manifest, wanted)
        bundle.publish(staged, manifest)
    return manifest


def locate(recipe: Recipe, request: BakeRequest) -> tuple[Path, Source]:
    """Find the checkpoint's folder: `--source`, else the package that ships it, else the hub."""
    if request.source is not None and Path(request.source).is_dir():
        folder = Path(request.source)
        return folder, Source(id=folder.resolve().name)
    known = recipe.manifest.source
    if request.source is not None:
        repository, _, revision = request.source.partition("@")
        if repository.count("/") != 1:
            raise BakeError(
                f"--source {request.source!r} is neither a folder nor a hub id (owner/name[@REV])"
            )
        known = Source(id=repository, revision=revision or None)
    elif recipe.package and (found := checkpoint.package_folder(recipe.package)):
        return found, known
    return checkpoint.download(known.id, known.revision, offline=request.offline), known


def build(recipe: Recipe, opened: Checkpoint) -> Graph:
    """Build the float32 graph, sizes from the checkpoint's config.

    Raises BakeError where the checkpoint contradicts the recipe.
    """
    _check_pooling(recipe, opened)
    config = encoder.read_config(opened.config)
    graph, hidden = encoder.build(opened, config)
    heads.add_embedding_outputs(graph, hidden, recipe.manifest.pooling, config.hidden_size)
    return graph


def _check_pooling(recipe: Recipe, opened: Checkpoint) -> None:
    """Refuse a checkpoint whose sentence-transformers config pools in another way."""
    if not opened.has_file(POOLING_CONFIG):
        return
    modes = {
        name for name, value in opened.read_json(POOLING_CONFIG).items() if "mode" in name and value is True
    }
    if modes and modes != {POOLING_MODES[recipe.manifest.pooling]}:
        raise BakeError(f"{POOLING_CONFIG} pools by {', '.join(sorted(modes))}: this recipe cannot read it")


def _read_tokenizer(opened: Checkpoint) -> bytes:
    if not opened.has_file(TOKENIZER_FILE):
        raise BakeError(f"{opened.folder} has no {TOKENIZER_FILE}")
    return (opened.folder / TOKENIZER_FILE).read_bytes()


def _is_verifying(graph: Graph, verification: Verification, name: str) -> bool:
    if verification == Verification.SKIP:
        return False
    num_bytes = graph.num_bytes
    if verify.fits_memory(num_bytes):
        return True
    needed = f"verification needs {num_bytes * verify.FP32_MEMORY_FACTOR / 1e9:.1f} GB of free memory"
    if verification == Verification.REQUIRE:
        raise BakeError(f"{name}: {needed}; free some or use --verify skip")
    print(f"{name}: {needed}: published with verified: false")
    return False


def _write(staged: Path, graph: Graph, precisions: tuple[Precision, ...]) -> dict[str, FileRecord]:
    """Write every precision; return the records of its files."""
    graphs = {precision: quantize(graph, precision) for precision in precisions}
    total = sum(made.num_bytes for made in graphs.values())
    files: dict[str, FileRecord] = {}
    with progress.bar(total, "bake", "B") as bar:
        for precision, made in graphs.items():
            files |= bundle.write_graphs(staged, precision, {MODEL_GRAPH: made}, bar.update)
    return files


def _described(
    recipe: Recipe, opened: Checkpoint, source: Source, precisions: tuple[Precision, ...]
) -> Manifest:
    """Fill in what is known before a file is written. Raises BakeError on a wrong limit or size."""
    hashes = {path.name: sha256_of(path) for path in opened.weight_files}
    variants = tuple(
        Variant(
            precision=precision,
            file=f"{precision}/{MODEL_GRAPH}.onnx",
            verified=precision == Precision.FP32,
        )
        for precision in precisions
    )
    config = encoder.read_config(opened.config)
    return replace(
        recipe.manifest,
        source=replace(source, sha256=hashes),
        max_tokens=_max_tokens(recipe, opened, config.max_positions),
        dimensions=config.hidden_size,
        variants=variants,
        versions=_versions(),
        created=int(time.time()),
    )


def _max_tokens(recipe: Recipe, opened: Checkpoint, max_positions: int) -> int:
    """Take the smallest of the model's known limit, its positions and what its own files say."""
    limits = [recipe.manifest.max_tokens, max_positions]
    if opened.has_file(SENTENCE_CONFIG):
        found = opened.read_json(SENTENCE_CONFIG).get("max_seq_length") or max_positions
        if not isinstance(found, int) or found < 1:
            raise BakeError(f"{SENTENCE_CONFIG} has max_seq_length {found!r}, must be a positive integer")
        limits.append(found)
    return min(limits)


def _check_published(manifest: Manifest, recipe: Recipe) -> None:
    """Refuse a recipe's own source whose weights were not those of the recipe's reference."""
    if recipe.reference and not any(variant.reference for variant in manifest.variants):
        raise BakeError(
            f"{manifest.name}: the weights are not the published ones that the reference vectors are of; "
            "name them with --source if that is meant"
        )


def _keep(staged: Path, manifest: Manifest, precisions: tuple[Precision, ...]) -> Manifest:
    """Drop what was only written to compare with."""
    unwanted = set(manifest.precisions) - set(precisions)
    dropped = [name for name in manifest.files if name.partition("/")[0] in unwanted]
    for name in dropped:
        (staged / name).unlink()
    for folder in {(staged / name).parent for name in dropped}:
        folder.rmdir()
    return replace(
        manifest,
        variants=tuple(variant for variant in manifest.variants if variant.precision in precisions),
        files={name: record for name, record in manifest.files.items() if name not in dropped},
    )


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue  # one of the two names of ONNX Runtime
    return found
