"""What a recipe says of a model before its checkpoint is read. Knows no model."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from service.manifest import Manifest, Precision

SAFE_FILES = ("*.json", "*.safetensors", "1_Pooling/*")  # what a bake reads; no code, no other format
TORCH_FILES = ("*.json", "pytorch_model*.bin", "1_Pooling/*")
DEFAULT_PRECISIONS = (Precision.FP32, Precision.INT8, Precision.INT8_BLOCK)
LARGE_PARAMETERS = 1_000_000_000  # from here on a model is baked in 8-bit blocks only, unless asked otherwise


class Architecture(StrEnum):
    """The families of graphs that can be built."""

    BERT = "bert"
    XLM_ROBERTA = "xlm-roberta"
    JINA_V3 = "jina-v3"
    QWEN2 = "qwen2"
    QWEN3 = "qwen3"
    QWEN2_5_VL = "qwen2.5-vl"
    EXPORTED = "exported"  # by the exporter, whatever it is


@dataclass(frozen=True, kw_only=True)
class PublishedCosines:
    """Cosines (queries x documents) that a model's authors publish; texts with their whole prompts."""

    queries: tuple[str, ...]
    documents: tuple[str, ...]
    cosines: tuple[tuple[float, ...], ...]
    dimensions: int  # of the published weights: others are not compared
    query_task: str | None = None
    document_task: str | None = None
    tolerance: float = 0.01  # theirs were computed in bfloat16


@dataclass(frozen=True, kw_only=True)
class Dense:
    """A linear layer on the pooled vector, as sentence-transformers has it in a folder of its own."""

    folder: str
    size: int  # of the result
    activation: str | None = None  # an operator of ONNX


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How to bake a model. The manifest holds the known facts; sizes come from the checkpoint's config."""

    manifest: Manifest
    architecture: Architecture
    num_parameters: int  # of the published checkpoint, for the catalog listing
    has_adapters: bool = False  # every task has a graph of its own, its adapter merged
    head_files: tuple[str, ...] = ()  # optional state dicts beside the weights
    hub_files: tuple[str, ...] = SAFE_FILES  # patterns of what is fetched
    package: str | None = None  # an installable package that ships the checkpoint
    # What the reference implementation computes; the first two are files in convert/data/reference.
    reference: str | None = None  # unit vectors of texts
    published_states: str | None = None  # token states that the model's authors or their porters published
    reference_tolerance: float = 2e-5  # largest difference of a unit vector's component
    published_cosines: PublishedCosines | None = None  # of texts in the model's README
    dense: tuple[Dense, ...] = ()  # on the pooled vector, one after the other
    separator_id: int | None = None  # of pairs: what follows it is of token type 1; None: there is one type
    lowercases: bool = False  # texts, before they are tokenized
    is_described: bool = False  # made of the checkpoint's own files: its limit, pooling and kind are theirs

    def __post_init__(self) -> None:
        """Refuse a recipe that could not be served."""
        if self.manifest.max_tokens <= 0:
            raise ValueError(f"{self.manifest.name}: max_tokens must be positive")

    @property
    def precisions(self) -> tuple[Precision, ...]:
        """List the precisions that are baked unless others are asked for."""
        if self.num_parameters >= LARGE_PARAMETERS:
            return (Precision.INT8_BLOCK,)
        return DEFAULT_PRECISIONS
