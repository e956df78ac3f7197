"""The bundle contract: what `manifest.json` says and whether the files agree. Knows no graph and no HTTP.

`convert` writes it, `service` reads it. A recipe holds the facts known beforehand, `bake` fills in the rest.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path, PurePosixPath

import msgspec

from service.errors import BundleError
from service.figures import Quality, RankQuality, Reference, Speed
from service.files import FileRecord, bake_again, check_sizes
from service.limits import Listwise
from service.vision import Vision

FORMAT_VERSION = 4
MANIFEST_FILE = "manifest.json"
TOKENIZER_FILE = "tokenizer.json"
BASE_TASK = "none"  # a variant of the weights without any adapter: to compare with references, never served


class Precision(StrEnum):
    """The number formats of a graph's weights."""

    FP32 = "fp32"
    INT8 = "int8"
    INT8_BLOCK = "int8-block"
    INT4 = "int4"
    FP16 = "fp16"
    BF16 = "bf16"


class Kind(StrEnum):
    """What a model answers with, spelled as `/v1/models` spells it."""

    EMBEDDING = "embedding"
    RERANKER = "reranker"


class Output(StrEnum):
    """What a graph computes."""

    POOLED = "pooled"  # (batch, dimensions), not normalised
    TOKEN_EMBEDDINGS = "token_embeddings"  # (batch, tokens, dimensions)
    SPARSE = "sparse"  # (batch, tokens), a weight for each token
    COLBERT = "colbert"  # (batch, tokens, a size of its own), not normalised
    MULTIVECTOR = "multivector"  # (batch, tokens, a size of its own), not normalised
    SCORES = "scores"  # (batch,), logits
    PROJECTED = "projected"  # (batch, marker tokens, a size of its own), not normalised


class Pooling(StrEnum):
    """How token states become vectors."""

    MEAN = "mean"
    CLS = "cls"
    LAST = "last"  # the last token, which alone has seen all others
    MARKERS = "markers"  # no vector of the text: one for each marker token in it


class Scoring(StrEnum):
    """How a reranker comes to its scores."""

    CLASSIFIER = "classifier"  # a logit for each pair of texts
    YES_NO = "yes-no"  # a logit for each pair, set in a prompt that asks for yes or no
    LISTWISE = "listwise"  # vectors of a query and its documents, set in one prompt


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where a checkpoint came from; hashes are of its weight files."""

    id: str
    revision: str | None = None
    sha256: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Task:
    """A task of an embedding model and the text it puts before every input."""

    name: str
    prefix: str = ""
    graph: str | None = None  # the variant that runs it, where tasks share one; None: that of its own name

    @property
    def variant(self) -> str:
        """Return the name under which variants know the task."""
        return self.graph or self.name


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One graph: a task at a precision. A `task` of None serves every task, and requests without one."""

    precision: Precision
    file: str
    task: str | None = None
    verified: bool = False
    quality: Quality | None = None
    image_quality: Quality | None = None  # of a model that takes images
    rank_quality: RankQuality | None = None
    speed: Speed | None = None
    reference: Reference | None = None


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """Everything the service needs to know of a model. Zero and empty mean: filled in by the bake."""

    name: str
    kind: Kind
    pooling: Pooling
    licence: str
    owned_by: str
    source: Source
    max_tokens: int = 0
    dimensions: int = 0
    default_dimensions: int = 0  # of requests that name none
    vocabulary_size: int = 0  # rows of the word table; a tokenizer may know more tokens
    truncatable: bool = False  # trained for shorter vectors: any `dimensions` up to its own
    outputs: tuple[Output, ...] = ()
    tasks: tuple[Task, ...] = ()
    default_task: str | None = None  # of requests that name none
    has_prompt_names: bool = False  # a task `x.query` may be asked for as `x` with prompt_name `query`
    has_prompts: bool = False  # tasks are prompts of the checkpoint's own: prompt_name may name them too
    late_chunking: bool = False
    late_chunking_refusal: str = "Model {model} does not support late_chunking."
    scoring: Scoring | None = None  # of a reranker
    listwise: Listwise | None = None  # of a listwise one
    vision: Vision | None = None  # of a model that takes images
    is_decoder: bool = False  # every token sees only those before it
    never_pads: bool = False  # padding would move answers: texts of unequal length never share a run
    calibrated: bool = False  # int8 and int4 were made with what the converter's texts show of activations
    mixture: dict[str, Precision] = field(default_factory=dict)  # linear layers that int8 leaves to others
    unweighted_tokens: tuple[str, ...] = ()  # never part of a sparse vector
    variants: tuple[Variant, ...] = ()
    files: dict[str, FileRecord] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    created: int = 0  # unix time of the bake
    format_version: int = FORMAT_VERSION

    def __post_init__(self) -> None:
        """Refuse values no bundle can have."""
        for name in ("max_tokens", "dimensions", "default_dimensions", "vocabulary_size", "created"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}, must not be negative")

    @property
    def task_names(self) -> tuple[str, ...]:
        """List the names of the tasks."""
        return tuple(task.name for task in self.tasks)

    @property
    def task_variants(self) -> tuple[str, ...]:
        """List the names under which variants know the tasks, each once."""
        return tuple(dict.fromkeys(task.variant for task in self.tasks))

    @property
    def serves_all_tasks(self) -> bool:
        """Tell whether one graph serves every task, and requests without one."""
        return any(variant.task is None for variant in self.variants)

    def tasks_of(self, words: Collection[str]) -> tuple[Task, ...]:
        """List the tasks that words name, by their own names or by those of their variants."""
        return tuple(task for task in self.tasks if task.name in words or task.variant in words)

    def limited_to(self, words: Collection[str]) -> Manifest:
        """Return the manifest with only the tasks named and their variants; the default task may be gone."""
        tasks = self.tasks_of(words)
        names = {task.name for task in tasks}
        variants = {*(task.variant for task in tasks), *words, None}
        return replace(
            self,
            tasks=tasks,
            default_task=self.default_task if self.default_task in names else None,
            variants=tuple(variant for variant in self.variants if variant.task in variants),
        )

    @property
    def precisions(self) -> tuple[Precision, ...]:
        """List the precisions of the variants, each once, in their order."""
        return tuple(dict.fromkeys(variant.precision for variant in self.variants))


def encode(manifest: Manifest) -> bytes:
    """Return the manifest as indented JSON."""
    return msgspec.json.format(msgspec.json.encode(manifest), indent=1) + b"\n"


def load(folder: Path) -> Manifest:
    """Read the manifest of a bundle and check that its files have the recorded sizes.

    Raises BundleError, which says what to do.
    """
    path = folder / MANIFEST_FILE
    try:
        content = path.read_bytes()
        version = msgspec.json.decode(content, type=dict[str, object]).get("format_version")
        if version != FORMAT_VERSION:
            remedy = bake_again(folder)
            if isinstance(version, int) and version > FORMAT_VERSION:
                remedy = f"update the service; or, with the converter of this version, {remedy}"
            raise BundleError(
                f"{path} has format_version {version!r}, this version reads {FORMAT_VERSION}: {remedy}"
            )
        manifest = msgspec.json.decode(content, type=Manifest)
    except OSError as error:
        raise BundleError(f"{path} cannot be read: {error.strerror}") from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BundleError(f"{path} is not a valid manifest: {error}") from error
    if manifest.name != folder.resolve().name and manifest.name != folder.name:
        raise BundleError(f"{path} is of model {manifest.name!r}: the folder must have the model's name")
    needed = ("variants", "outputs", "dimensions", "default_dimensions", "vocabulary_size", "max_tokens")
    missing = [name for name in needed if not getattr(manifest, name)]
    if missing:
        raise BundleError(f"{path} is incomplete ({', '.join(missing)} missing): {bake_again(folder)}")
    _check_names(folder, manifest)
    check_sizes(folder, manifest.files)
    return manifest


def folders(directory: Path) -> list[Path]:
    """List the bundles in a folder, hidden ones left out."""
    found = sorted(directory.iterdir()) if directory.is_dir() else []
    return [each for each in found if not each.name.startswith(".") and (each / MANIFEST_FILE).exists()]


def _check_names(folder: Path, manifest: Manifest) -> None:
    """Refuse files that are not listed with their sizes, or are not the bundle's."""
    path = folder / MANIFEST_FILE
    named = {TOKENIZER_FILE, *(variant.file for variant in manifest.variants)}
    named |= {manifest.vision.file} if manifest.vision else set()
    if outside := [name for name in {*named, *manifest.files} if _leads_outside(name)]:
        names = ", ".join(sorted(outside))
        raise BundleError(f"{path} names {names}, outside of the bundle: {bake_again(folder)}")
    if unlisted := named - set(manifest.files):
        names = ", ".join(sorted(unlisted))
        raise BundleError(f"{path} lists no size and hash of {names}: {bake_again(folder)}")


def _leads_outside(name: str) -> bool:
    path = PurePosixPath(name)
    return path.is_absolute() or ".." in path.parts
