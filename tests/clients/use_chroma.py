"""Chroma: JinaEmbeddingFunction, whose address is an attribute, alone and in a collection."""

from __future__ import annotations

import os
from typing import Any

import chromadb
import numpy as np
from chromadb.utils.embedding_functions import JinaEmbeddingFunction
from given import EMBEDDING, KEY, MULTIMODAL, PICTURE, QUERY, TEXTS, URL, WRONG_KEY, report
from PIL import Image

os.environ["JINA_API_KEY"] = KEY
function = JinaEmbeddingFunction(model_name="jina-embeddings-v3")
function._api_url = f"{URL}/v1/embeddings"


def made(model: str = EMBEDDING, key: str = KEY, **options: Any) -> Any:
    os.environ["JINA_API_KEY"] = key
    found = JinaEmbeddingFunction(model_name=model, **options)
    found._api_url = f"{URL}/v1/embeddings"
    return found


def nearest() -> Any:
    collection = database.create_collection("texts", embedding_function=function)
    collection.add(ids=[str(index) for index in range(len(TEXTS))], documents=TEXTS)
    return found_in(collection)


def found_in(collection: Any) -> Any:
    found = collection.query(query_texts=[QUERY], n_results=len(TEXTS))
    return [int(identity) for identity in found["ids"][0]]


database = chromadb.EphemeralClient()
queries = made(task="retrieval.passage", query_config={"task": "retrieval.query"})
report(
    {
        "texts": lambda: function(TEXTS),
        "texts, every option": lambda: made(truncate=True, normalized=True, embedding_type="float")(TEXTS),
        "query": lambda: function.embed_query([QUERY])[0],
        "query with its task": lambda: queries.embed_query([QUERY])[0],
        "short": lambda: made(dimensions=16)(TEXTS),
        "chunks": lambda: made(late_chunking=True)(TEXTS),
        "picture": lambda: made(MULTIMODAL)([np.asarray(Image.open(PICTURE))])[0],
        "nearest": nearest,
        "nearest, opened again": lambda: found_in(database.get_collection("texts", function)),
        "wrong key": lambda: made(key=WRONG_KEY)(TEXTS),
        "unknown model": lambda: made("nope")(TEXTS),
        "wrong task": lambda: made(task="nope")(TEXTS),
    }
)
