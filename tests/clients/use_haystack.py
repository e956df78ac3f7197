"""Haystack: the Jina embedders of texts, documents and pictures, and the ranker. All have base_url."""

from __future__ import annotations

import asyncio
from typing import Any

from given import (
    DOCUMENTS,
    EMBEDDING,
    KEY,
    MULTIMODAL,
    PICTURE,
    QUERY,
    RERANKER,
    TEXTS,
    URL,
    WRONG_KEY,
    report,
)
from haystack import Document
from haystack.utils import Secret
from haystack_integrations.components.embedders.jina import (
    JinaDocumentEmbedder,
    JinaDocumentImageEmbedder,
    JinaTextEmbedder,
)
from haystack_integrations.components.rankers.jina import JinaRanker

key = Secret.from_token(KEY)
texts = JinaTextEmbedder(model="jina-embeddings-v3", api_key=key, base_url=f"{URL}/v1/embeddings")
documents = JinaDocumentEmbedder(model="jina-embeddings-v3", api_key=key, base_url=f"{URL}/v1/embeddings")
pictures = JinaDocumentImageEmbedder(model=MULTIMODAL, api_key=key, base_url=f"{URL}/v1/embeddings")
ranker = JinaRanker(model="jina-reranker-v3", api_key=key, base_url=f"{URL}/v1/rerank")
BATCHES = 10  # of all texts, so that there are more than the embedder sends at once


def embedder(model: str = EMBEDDING, token: str = KEY, **options: Any) -> Any:
    made = Secret.from_token(token)
    return JinaTextEmbedder(model=model, api_key=made, base_url=f"{URL}/v1/embeddings", **options)


def embedded(given: list[str], **options: Any) -> Any:
    made = JinaDocumentEmbedder(
        model=EMBEDDING, api_key=key, base_url=f"{URL}/v1/embeddings", progress_bar=False, **options
    )
    return made.run([Document(content=text) for text in given])


def vectors(answer: Any) -> Any:
    return [document.embedding for document in answer["documents"]]


def ranking(asked: Any, query: str = QUERY) -> Any:
    given = [Document(content=text, meta={"index": index}) for index, text in enumerate(DOCUMENTS)]
    return [[found.meta["index"], found.score] for found in asked.run(query, given)["documents"]]


report(
    {
        "texts": lambda: vectors(documents.run([Document(content=text) for text in TEXTS])),
        "texts, in batches": lambda: vectors(embedded(TEXTS * BATCHES))[-len(TEXTS) :],
        "tokens": lambda: embedded(TEXTS)["meta"],
        "tokens of the query": lambda: texts.run(QUERY)["meta"],
        "query": lambda: texts.run(QUERY)["embedding"],
        "query, async": lambda: asyncio.run(texts.run_async(QUERY))["embedding"],
        "query with its task": lambda: embedder(task="retrieval.query").run(QUERY)["embedding"],
        "short": lambda: vectors(embedded(TEXTS, dimensions=16)),
        "chunks": lambda: vectors(embedded(TEXTS, late_chunking=True)),
        "picture": lambda: pictures.run([Document(meta={"file_path": PICTURE})])["documents"][0].embedding,
        "ranking": lambda: ranking(ranker),
        "best three": lambda: ranking(
            JinaRanker(model=RERANKER, api_key=key, base_url=f"{URL}/v1/rerank", top_k=3)
        ),
        "wrong key": lambda: embedder(token=WRONG_KEY).run(QUERY),
        "unknown model": lambda: embedder("nope").run(QUERY),
        "unknown model, reranking": lambda: ranking(
            JinaRanker(model="nope", api_key=key, base_url=f"{URL}/v1/rerank")
        ),
        "wrong task": lambda: embedder(task="nope").run(QUERY),
        "blank query": lambda: ranking(ranker, " "),
    }
)
