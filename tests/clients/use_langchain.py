"""LangChain: JinaEmbeddings and JinaRerank, whose addresses are constants, and OpenAIEmbeddings."""

from __future__ import annotations

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
from langchain_community.document_compressors import jina_rerank
from langchain_community.embeddings import jina
from langchain_core.documents import Document
from langchain_openai import OpenAIEmbeddings

jina.JINA_API_URL = f"{URL}/v1/embeddings"
jina_rerank.JINA_API_URL = f"{URL}/v1/rerank"
embeddings = jina.JinaEmbeddings(model_name="jina-embeddings-v3", jina_api_key=KEY)
reranker = jina_rerank.JinaRerank(model="jina-reranker-v3", jina_api_key=KEY)
openai = OpenAIEmbeddings(
    model="jina-embeddings-v3", base_url=f"{URL}/v1", api_key=KEY, check_embedding_ctx_length=False
)


def embedder(model: str, key: str = KEY) -> Any:
    return jina.JinaEmbeddings(model_name=model, jina_api_key=key)


def ranker(model: str, key: str = KEY) -> Any:
    return jina_rerank.JinaRerank(model=model, jina_api_key=key)


def ranking(documents: list[Any], asked: Any = reranker, query: str = QUERY, top_n: int | None = None) -> Any:
    results = asked.rerank(documents, query, top_n=top_n)
    return [[result["index"], result["relevance_score"]] for result in results]


def compressed() -> Any:
    documents = [Document(text, metadata={"index": index}) for index, text in enumerate(DOCUMENTS)]
    found = ranker(RERANKER).compress_documents(documents, QUERY)
    return [[document.metadata["index"], document.metadata["relevance_score"]] for document in found]


report(
    {
        "texts": lambda: embeddings.embed_documents(TEXTS),
        "texts, by OpenAIEmbeddings": lambda: openai.embed_documents(TEXTS),
        "query": lambda: embeddings.embed_query(QUERY),
        "query, by OpenAIEmbeddings": lambda: openai.embed_query(QUERY),
        "picture": lambda: embedder(MULTIMODAL).embed_images([PICTURE])[0],
        "ranking": lambda: ranking(DOCUMENTS),
        "ranking, of objects": lambda: ranking([{"text": text} for text in DOCUMENTS]),
        "best three": compressed,
        "wrong key": lambda: embedder(EMBEDDING, WRONG_KEY).embed_query(QUERY),
        "wrong key, reranking": lambda: ranking(DOCUMENTS, ranker(RERANKER, WRONG_KEY)),
        "unknown model": lambda: embedder("nope").embed_documents(TEXTS),
        "unknown model, reranking": lambda: ranking(DOCUMENTS, ranker("nope")),
        "nothing": lambda: embeddings.embed_documents([]),
        "blank query": lambda: ranking(DOCUMENTS, query=" "),
    }
)
