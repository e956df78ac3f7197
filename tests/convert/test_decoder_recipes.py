"""The recipes of the Qwen family against the specification and the published models, written out again."""

from __future__ import annotations

import pytest

from convert.catalog import RECIPES
from convert.recipe import DEFAULT_PRECISIONS, Architecture, Recipe
from service.manifest import Kind, Output, Pooling, Precision, Scoring

CODE_PREFIXES = {
    "nl2code.query": "Find the most relevant code snippet given the following query:\n",
    "nl2code.passage": "Candidate code snippet:\n",
    "qa.query": "Find the most relevant answer given the following question:\n",
    "qa.passage": "Candidate answer:\n",
    "code2code.query": "Find an equivalent code snippet given the following code snippet:\n",
    "code2code.passage": "Candidate code snippet:\n",
    "code2nl.query": "Find the most relevant comment given the following code snippet:\n",
    "code2nl.passage": "Candidate comment:\n",
    "code2completion.query": (
        "Find the most relevant completion given the following start of code snippet:\n"
    ),
    "code2completion.passage": "Candidate completion:\n",
}
QWEN3_PREFIXES = {
    "retrieval.query": (
        "Instruct: Given a search query, retrieve relevant documents or passages that directly answer or "
        "address the query\nQuery: "
    ),
    "retrieval.passage": "",
    "text-matching": "Instruct: Represent this text for finding semantically similar texts\nQuery: ",
    "classification": "Instruct: Represent this text for classification\nQuery: ",
    "separation": "Instruct: Represent this text for clustering\nQuery: ",
    "clustering": "Instruct: Represent this text for clustering\nQuery: ",
    "code.query": "Instruct: Given a natural language description, retrieve relevant code\nQuery: ",
    "code.passage": "",
    "scientific.query": ("Instruct: Given a scientific question, retrieve relevant research papers\nQuery: "),
    "qa.query": "Instruct: Given a question, retrieve passages that contain the answer\nQuery: ",
    "bitext": "Instruct: Represent this text for finding its translation\nQuery: ",
    "summarization.query": "Instruct: Given a summary, retrieve the original document\nQuery: ",
}
NO_LATE_CHUNKING = (
    "late_chunking is not supported for qwen3-embedding-0.6b. Qwen3 models use last-token pooling, which is "
    "incompatible with late chunking. Use jina-embeddings-v3 or jina-embeddings-v4 for late chunking support."
)
# layers, hidden, heads, kv heads, head, feed-forward, rows of the word table; licence; hub id, revision.
PUBLISHED: dict[str, tuple[tuple[int, ...], str, str, str]] = {
    "jina-code-embeddings-0.5b": (
        (24, 896, 14, 2, 64, 4864, 151_936), "CC-BY-NC-4.0", "jinaai/jina-code-embeddings-0.5b", "4db23513"
    ),
    "jina-code-embeddings-1.5b": (
        (28, 1536, 12, 2, 128, 8960, 151_936), "CC-BY-NC-4.0", "jinaai/jina-code-embeddings-1.5b", "39aeb4fb"
    ),
    "qwen3-embedding-0.6b": (
        (28, 1024, 16, 8, 128, 3072, 151_669), "Apache-2.0", "Qwen/Qwen3-Embedding-0.6B", ""
    ),
    "qwen3-embedding-4b": (
        (36, 2560, 32, 8, 128, 9728, 151_665), "Apache-2.0", "Qwen/Qwen3-Embedding-4B", ""
    ),
    "qwen3-embedding-8b": (
        (36, 4096, 32, 8, 128, 12288, 151_665), "Apache-2.0", "Qwen/Qwen3-Embedding-8B", ""
    ),
    "qwen3-reranker-0.6b": (
        (28, 1024, 16, 8, 128, 3072, 151_669), "Apache-2.0", "Qwen/Qwen3-Reranker-0.6B", ""
    ),
    "qwen3-reranker-4b": (
        (36, 2560, 32, 8, 128, 9728, 151_669), "Apache-2.0", "Qwen/Qwen3-Reranker-4B", ""
    ),
    "jina-reranker-v3": (
        (28, 1024, 16, 8, 128, 3072, 151_936), "CC-BY-NC-4.0", "jinaai/jina-reranker-v3", "10fb694f"
    ),
}  # fmt: skip
CODE, EMBEDDING, YES_NO = (
    tuple(name for name in PUBLISHED if name.startswith(family))
    for family in ("jina-code-embeddings", "qwen3-embedding", "qwen3-reranker")
)
LISTWISE = "jina-reranker-v3"
PROJECTOR = 1024 * 512 + 512 * 512  # parameters of jina-reranker-v3's


def prefixes(recipe: Recipe) -> dict[str, str]:
    return {task.name: task.prefix for task in recipe.manifest.tasks}


def num_parameters(architecture: Architecture, sizes: tuple[int, ...]) -> int:
    layers, hidden, heads, kv_heads, head, feed_forward, rows = sizes
    attention = 2 * hidden * heads * head + 2 * hidden * kv_heads * head
    others = (heads + 2 * kv_heads) * head if architecture == Architecture.QWEN2 else 2 * head
    layer = attention + others + 3 * hidden * feed_forward + 2 * hidden
    return rows * hidden + layers * layer + hidden


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_checkpoint_is_the_published_one(name: str) -> None:
    sizes, licence, hub_id, revision = PUBLISHED[name]
    recipe = RECIPES[name]
    manifest = recipe.manifest
    assert (manifest.name, manifest.licence, manifest.source.id) == (name, licence, hub_id)
    assert manifest.owned_by == hub_id.partition("/")[0]
    assert manifest.source.revision is not None
    assert manifest.source.revision.startswith(revision)
    assert len(manifest.source.revision) == len(manifest.source.revision.strip()) == 40
    expected = num_parameters(recipe.architecture, sizes) + (PROJECTOR if name == LISTWISE else 0)
    assert recipe.num_parameters == expected


@pytest.mark.parametrize("name", PUBLISHED)
def test_only_models_up_to_a_billion_parameters_are_baked_in_every_precision(name: str) -> None:
    is_large = name.endswith(("1.5b", "4b", "8b"))
    assert RECIPES[name].precisions == ((Precision.INT8_BLOCK,) if is_large else DEFAULT_PRECISIONS)


@pytest.mark.parametrize("name", PUBLISHED)
def test_no_code_and_no_other_format_is_fetched(name: str) -> None:
    assert RECIPES[name].hub_files == ("*.json", "*.safetensors", "1_Pooling/*")


@pytest.mark.parametrize("name", CODE)
def test_code_models(name: str) -> None:
    recipe = RECIPES[name]
    manifest = recipe.manifest
    assert recipe.architecture == Architecture.QWEN2
    assert prefixes(recipe) == CODE_PREFIXES
    assert (manifest.default_task, manifest.has_prompt_names) == ("nl2code.query", True)
    assert (manifest.kind, manifest.pooling) == (Kind.EMBEDDING, Pooling.LAST)
    assert (manifest.outputs, manifest.max_tokens) == ((Output.POOLED,), 32_768)
    assert (manifest.truncatable, manifest.default_dimensions, manifest.late_chunking) == (True, 0, False)
    message = manifest.late_chunking_refusal.format(model=name)
    assert message == f"Model {name} does not support late_chunking."


@pytest.mark.parametrize("name", EMBEDDING)
def test_qwen3_embedding_models(name: str) -> None:
    recipe = RECIPES[name]
    manifest = recipe.manifest
    assert recipe.architecture == Architecture.QWEN3
    assert prefixes(recipe) == QWEN3_PREFIXES
    assert (manifest.default_task, manifest.has_prompt_names) == (None, False)
    assert (manifest.kind, manifest.pooling) == (Kind.EMBEDDING, Pooling.LAST)
    assert (manifest.outputs, manifest.max_tokens) == ((Output.POOLED,), 32_768)
    assert (manifest.truncatable, manifest.default_dimensions, manifest.late_chunking) == (True, 1024, False)
    message = manifest.late_chunking_refusal.format(model="qwen3-embedding-0.6b")
    assert message == NO_LATE_CHUNKING


@pytest.mark.parametrize("name", [*YES_NO, LISTWISE])
def test_rerankers(name: str) -> None:
    recipe = RECIPES[name]
    manifest = recipe.manifest
    assert recipe.architecture == Architecture.QWEN3
    assert (manifest.kind, manifest.tasks, manifest.max_tokens) == (Kind.RERANKER, (), 8192)
    if name in YES_NO:
        assert (manifest.scoring, manifest.pooling) == (Scoring.YES_NO, Pooling.LAST)
        assert (manifest.outputs, manifest.listwise) == ((Output.SCORES,), None)
    else:
        assert (manifest.scoring, manifest.pooling) == (Scoring.LISTWISE, Pooling.MARKERS)
        assert manifest.outputs == (Output.PROJECTED,)


def test_the_limits_of_the_listwise_reranker() -> None:
    limits = RECIPES[LISTWISE].manifest.listwise
    assert limits is not None
    assert (limits.document_marker, limits.query_marker) == ("<|embed_token|>", "<|rerank_token|>")
    assert (limits.max_query_length, limits.max_doc_length) == (512, 2048)
    assert (limits.block_size, limits.capacity) == (125, 131_072)


# Published: README of the code model, README of Qwen3-Embedding.
@pytest.mark.parametrize(
    ("name", "cosines"),
    [
        ("jina-code-embeddings-0.5b", ((0.8168, 0.1236), (0.1204, 0.5525))),
        ("qwen3-embedding-0.6b", ((0.76456, 0.14143), (0.13550, 0.59995))),
    ],
)
def test_published_cosines(name: str, cosines: tuple[tuple[float, ...], ...]) -> None:
    recipe = RECIPES[name]
    published = recipe.published_cosines
    assert published is not None
    assert published.cosines == cosines
    assert published.dimensions == PUBLISHED[name][0][1]
    assert (len(published.queries), len(published.documents)) == (len(cosines), len(cosines[0]))
    for task in (published.query_task, published.document_task):
        assert task is None or task in recipe.manifest.task_names


def test_queries_of_the_published_cosines_carry_the_published_prompt() -> None:
    """No space after "Query:", unlike the tasks of the service."""
    published = RECIPES["qwen3-embedding-0.6b"].published_cosines
    assert published is not None
    task = "Given a web search query, retrieve relevant passages that answer the query"
    texts = ("What is the capital of China?", "Explain gravity")
    assert published.queries == tuple(f"Instruct: {task}\nQuery:{text}" for text in texts)
    assert (published.query_task, published.document_task) == (None, None)
