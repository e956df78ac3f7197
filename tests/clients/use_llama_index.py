"""LlamaIndex: JinaEmbedding, which has no setting for its address, and JinaRerank, which has one."""

from __future__ import annotations

import asyncio
import os
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
from llama_index.core.schema import NodeWithScore, TextNode
from llama_index.embeddings.jinaai import JinaEmbedding
from llama_index.postprocessor.jinaai_rerank import JinaRerank

embedding = JinaEmbedding(model="jina-embeddings-v3", api_key=KEY)
embedding._api.api_url = f"{URL}/v1/embeddings"
reranker = JinaRerank(model="jina-reranker-v3", api_key=KEY, base_url=f"{URL}/v1", top_n=3)


def embedder(model: str = EMBEDDING, key: str | None = KEY, **options: Any) -> Any:
    made = JinaEmbedding(model=model, api_key=key, **options)
    made._api.api_url = f"{URL}/v1/embeddings"
    return made


def ranker(model: str = RERANKER, key: str = KEY) -> Any:
    return JinaRerank(model=model, api_key=key, base_url=f"{URL}/v1", top_n=len(DOCUMENTS))


def ranking(asked: Any, query: str = QUERY) -> Any:
    nodes = [NodeWithScore(node=TextNode(text=text, id_=str(index))) for index, text in enumerate(DOCUMENTS)]
    return [
        [int(found.node.node_id), found.score] for found in asked.postprocess_nodes(nodes, query_str=query)
    ]


def later(asked: Any) -> Any:
    return asyncio.run(asked.aget_text_embedding_batch(TEXTS))


def key_of_the_environment() -> Any:
    os.environ["JINAAI_API_KEY"] = KEY
    return embedder(key=None).get_query_embedding(QUERY)


report(
    {
        "texts": lambda: embedding.get_text_embedding_batch(TEXTS),
        "texts, async": lambda: later(embedding),
        "query": lambda: embedding.get_query_embedding(QUERY),
        "query with its task": lambda: embedder(task="retrieval.query").get_query_embedding(QUERY),
        "short": lambda: embedder(dimensions=16).get_text_embedding_batch(TEXTS),
        "chunks": lambda: embedder(late_chunking=True).get_text_embedding_batch(TEXTS),
        "signs": lambda: embedder(encoding_documents="binary").get_text_embedding_batch(TEXTS),
        "picture": lambda: embedder(MULTIMODAL).get_image_embedding(PICTURE),
        "ranking": lambda: ranking(ranker()),
        "best three": lambda: ranking(reranker),
        "wrong key": lambda: embedder(key=WRONG_KEY).get_text_embedding_batch(TEXTS),
        "wrong key, the right one only in the environment": key_of_the_environment,
        "wrong key, async": lambda: later(embedder(key=WRONG_KEY)),
        "wrong key, reranking": lambda: ranking(ranker(key=WRONG_KEY)),
        "unknown model": lambda: embedder("nope").get_query_embedding(QUERY),
        "wrong task": lambda: embedder(task="nope").get_query_embedding(QUERY),
        "wrong task, async": lambda: later(embedder(task="nope")),
        "unsigned binary": lambda: embedder(encoding_queries="ubinary").get_query_embedding(QUERY),
        "blank query": lambda: ranking(ranker(), " "),
    }
)
