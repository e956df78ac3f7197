"""The recipes of the Qwen family: embedding models and rerankers on a decoder. Data only."""

from __future__ import annotations

from convert.recipe import Architecture, PublishedCosines, Recipe
from service.limits import Listwise
from service.manifest import Kind, Manifest, Output, Pooling, Scoring, Source, Task

NON_COMMERCIAL = "CC-BY-NC-4.0"
CODE_PROMPTS = {  # task: query, passage; source: the INSTRUCTION_CONFIG of the model card
    "nl2code": (
        "Find the most relevant code snippet given the following query:\n",
        "Candidate code snippet:\n",
    ),
    "qa": ("Find the most relevant answer given the following question:\n", "Candidate answer:\n"),
    "code2code": (
        "Find an equivalent code snippet given the following code snippet:\n",
        "Candidate code snippet:\n",
    ),
    "code2nl": (
        "Find the most relevant comment given the following code snippet:\n",
        "Candidate comment:\n",
    ),
    "code2completion": (
        "Find the most relevant completion given the following start of code snippet:\n",
        "Candidate completion:\n",
    ),
}
INSTRUCTIONS: dict[str, str | None] = {  # of qwen3-embedding; None: the text as it is
    "retrieval.query": (
        "Given a search query, retrieve relevant documents or passages that directly answer or address the "
        "query"
    ),
    "retrieval.passage": None,
    "text-matching": "Represent this text for finding semantically similar texts",
    "classification": "Represent this text for classification",
    "separation": "Represent this text for clustering",
    "clustering": "Represent this text for clustering",
    "code.query": "Given a natural language description, retrieve relevant code",
    "code.passage": None,
    "scientific.query": "Given a scientific question, retrieve relevant research papers",
    "qa.query": "Given a question, retrieve passages that contain the answer",
    "bitext": "Represent this text for finding its translation",
    "summarization.query": "Given a summary, retrieve the original document",
}
WEB_SEARCH = "Instruct: Given a web search query, retrieve relevant passages that answer the query\nQuery:"
QWEN3_REFUSAL = (
    "late_chunking is not supported for {model}. Qwen3 models use last-token pooling, which is incompatible "
    "with late chunking. Use jina-embeddings-v3 or jina-embeddings-v4 for late chunking support."
)


def _code_manifest(size: str, revision: str) -> Manifest:
    return Manifest(
        name=f"jina-code-embeddings-{size}",
        kind=Kind.EMBEDDING,
        pooling=Pooling.LAST,
        outputs=(Output.POOLED,),
        licence=NON_COMMERCIAL,
        owned_by="jinaai",
        source=Source(id=f"jinaai/jina-code-embeddings-{size}", revision=revision),
        max_tokens=32_768,
        truncatable=True,
        tasks=tuple(
            Task(name=f"{task}.{side}", prefix=prefix)
            for task, prefixes in CODE_PROMPTS.items()
            for side, prefix in zip(("query", "passage"), prefixes, strict=True)
        ),
        default_task="nl2code.query",
        has_prompt_names=True,
    )


def _embedding_manifest(size: str, revision: str) -> Manifest:
    return Manifest(
        name=f"qwen3-embedding-{size.lower()}",
        kind=Kind.EMBEDDING,
        pooling=Pooling.LAST,
        outputs=(Output.POOLED,),
        licence="Apache-2.0",
        owned_by="Qwen",
        source=Source(id=f"Qwen/Qwen3-Embedding-{size}", revision=revision),
        max_tokens=32_768,
        default_dimensions=1024,
        truncatable=True,
        tasks=tuple(
            Task(name=name, prefix="" if instruction is None else f"Instruct: {instruction}\nQuery: ")
            for name, instruction in INSTRUCTIONS.items()
        ),
        late_chunking_refusal=QWEN3_REFUSAL,
    )


def _reranker_manifest(size: str, revision: str) -> Manifest:
    return Manifest(
        name=f"qwen3-reranker-{size.lower()}",
        kind=Kind.RERANKER,
        pooling=Pooling.LAST,
        outputs=(Output.SCORES,),
        scoring=Scoring.YES_NO,
        licence="Apache-2.0",
        owned_by="Qwen",
        source=Source(id=f"Qwen/Qwen3-Reranker-{size}", revision=revision),
        max_tokens=8192,
    )


JINA_CODE_EMBEDDINGS_0_5B = Recipe(
    manifest=_code_manifest("0.5b", "4db235132dafbe56a8b9c5f59b59795ecf58a4a7"),
    architecture=Architecture.QWEN2,
    num_parameters=494_032_768,
    published_cosines=PublishedCosines(
        queries=("print hello world in python", "initialize array of 5 zeros in c++"),
        documents=("print('Hello World!')", "int arr[5] = {0, 0, 0, 0, 0};"),
        cosines=((0.8168, 0.1236), (0.1204, 0.5525)),
        dimensions=896,
        query_task="nl2code.query",
        document_task="nl2code.passage",
    ),
)

JINA_CODE_EMBEDDINGS_1_5B = Recipe(
    manifest=_code_manifest("1.5b", "39aeb4fb9b60f930934c78ae5d749a46287c248a"),
    architecture=Architecture.QWEN2,
    num_parameters=1_543_714_304,
)

QWEN3_EMBEDDING_0_6B = Recipe(
    # Older revisions lack the tokenizer's final <|endoftext|>.
    manifest=_embedding_manifest("0.6B", "97b0c614be4d77ee51c0cef4e5f07c00f9eb65b3"),
    architecture=Architecture.QWEN3,
    num_parameters=595_776_512,
    published_cosines=PublishedCosines(
        queries=(f"{WEB_SEARCH}What is the capital of China?", f"{WEB_SEARCH}Explain gravity"),
        documents=(
            "The capital of China is Beijing.",
            "Gravity is a force that attracts two bodies towards each other. It gives weight to physical "
            "objects and is responsible for the movement of planets around the sun.",
        ),
        cosines=((0.76456, 0.14143), (0.13550, 0.59995)),
        dimensions=1024,
    ),
)

QWEN3_EMBEDDING_4B = Recipe(
    manifest=_embedding_manifest("4B", "5cf2132abc99cad020ac570b19d031efec650f2b"),
    architecture=Architecture.QWEN3,
    num_parameters=4_021_774_336,
)

QWEN3_EMBEDDING_8B = Recipe(
    manifest=_embedding_manifest("8B", "1d8ad4ca9b3dd8059ad90a75d4983776a23d44af"),
    architecture=Architecture.QWEN3,
    num_parameters=7_567_295_488,
)

QWEN3_RERANKER_0_6B = Recipe(
    manifest=_reranker_manifest("0.6B", "e61197ed45024b0ed8a2d74b80b4d909f1255473"),
    architecture=Architecture.QWEN3,
    num_parameters=595_776_512,
)

QWEN3_RERANKER_4B = Recipe(
    manifest=_reranker_manifest("4B", "22e683669bc0f0bd69640a1354a6d0aebcfeede5"),
    architecture=Architecture.QWEN3,
    num_parameters=4_021_784_576,
)

JINA_RERANKER_V3 = Recipe(
    manifest=Manifest(
        name="jina-reranker-v3",
        kind=Kind.RERANKER,
        pooling=Pooling.MARKERS,
        outputs=(Output.PROJECTED,),
        scoring=Scoring.LISTWISE,
        listwise=Listwise(
            document_marker="<|embed_token|>",
            query_marker="<|rerank_token|>",
            max_query_length=512,
            max_doc_length=2048,
            block_size=125,
            capacity=131_072,
        ),
        licence=NON_COMMERCIAL,
        owned_by="jinaai",
        source=Source(id="jinaai/jina-reranker-v3", revision="10fb694fc21f7a710a563ff1eb977a460f3868e4"),
        max_tokens=8192,
    ),
    architecture=Architecture.QWEN3,
    num_parameters=596_836_352,
)
