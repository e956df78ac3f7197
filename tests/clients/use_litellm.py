"""LiteLLM: its providers jina_ai, of vectors and of rankings, and openai."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import litellm
from given import DOCUMENTS, KEY, PICTURE, QUERY, TEXTS, URL, WRONG_KEY, report

OPENAI, MULTIMODAL = "openai/jina-embeddings-v3", "jina_ai/jina-embeddings-v4"


def embedded() -> Any:
    return litellm.embedding(
        model="jina_ai/jina-embeddings-v3", input=TEXTS, api_base=f"{URL}/v1", api_key=KEY
    )


def ranked() -> Any:
    return litellm.rerank(
        model="jina_ai/jina-reranker-v3", query=QUERY, documents=DOCUMENTS, api_base=URL, api_key=KEY
    )


def vectors(given: Any = TEXTS, **options: Any) -> Any:
    asked = {"model": "jina_ai/jina-embeddings-v3", "api_base": f"{URL}/v1", "api_key": KEY, **options}
    return rows(litellm.embedding(input=given, **asked))


def ranking(**options: Any) -> Any:
    asked = {"model": "jina_ai/jina-reranker-v3", "api_base": URL, "api_key": KEY, "query": QUERY, **options}
    return pairs(litellm.rerank(documents=DOCUMENTS, **asked))


def rows(answer: Any) -> Any:
    return [item["embedding"] for item in answer.data]


def pairs(answer: Any) -> Any:
    return [[result["index"], result["relevance_score"]] for result in answer.results]


picture = f"data:image/png;base64,{base64.b64encode(Path(PICTURE).read_bytes()).decode()}"
report(
    {
        "texts": lambda: rows(embedded()),
        "texts, by its OpenAI provider": lambda: vectors(model=OPENAI),
        "query": lambda: vectors(QUERY)[0],
        "query with its task": lambda: vectors(QUERY, task="retrieval.query")[0],
        "short": lambda: vectors(dimensions=16),
        "picture": lambda: vectors([picture], model=MULTIMODAL)[0],
        "ranking": lambda: pairs(ranked()),
        "best three": lambda: ranking(top_n=3),
        "documents": lambda: [result["document"]["text"] for result in ranked().results],
        "wrong key": lambda: vectors(api_key=WRONG_KEY),
        "wrong key, by its OpenAI provider": lambda: vectors(model=OPENAI, api_key=WRONG_KEY),
        "wrong key, reranking": lambda: ranking(api_key=WRONG_KEY),
        "unknown model": lambda: vectors(model="jina_ai/nope"),
        "wrong task": lambda: vectors(task="nope"),
        "wrong task, by its OpenAI provider": lambda: vectors(model=OPENAI, extra_body={"task": "nope"}),
        "blank query": lambda: ranking(query=" "),
    }
)
