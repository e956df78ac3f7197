"""What the OpenAPI document shows of bodies, as data: requests that work as they are, and answers to them.

Vectors of answers are cut to three numbers. Knows no HTTP and no model.
"""

from __future__ import annotations

from typing import Any

from service.forms import RED_SQUARE

Examples = dict[str, dict[str, Any]]

QUESTION = "How is bread made?"
DOCUMENTS = ["Bread is baked from dough.", {"text": "Shares fell on Monday."}]
CUT = "vectors cut to three numbers"
MODEL: dict[str, Any] = {
    "id": "all-minilm-l6-v2",
    "object": "model",
    "created": 1795978487,
    "owned_by": "sentence-transformers",
    "type": "embedding",
    "max_tokens": 256,
    "dimensions": 384,
    "supports_multimodal": False,
    "tasks": None,
    "device": "cpu",
    "precision": "int8",
    "verified": True,
    "reason": "fastest verified precision measured on avx512_vnni",
}

EMBEDDINGS: Examples = {
    "texts": {"model": "all-minilm-l6-v2", "input": ["Hello, world!", "How are you?"]},
    "query of retrieval, shorter vectors": {
        "model": "jina-embeddings-v3",
        "input": QUESTION,
        "task": "retrieval.query",
        "dimensions": 8,
    },
    "late chunking": {
        "model": "jina-embeddings-v3",
        "input": "Berlin is the capital of Germany. Its population is 3.85 million.",
        "late_chunking": True,
    },
    "text and image": {
        "model": "jina-embeddings-v4",
        "task": "retrieval.passage",
        "input": ["A red square", {"image": RED_SQUARE}],
    },
    "sparse and colbert vectors": {
        "model": "bge-m3",
        "input": [QUESTION],
        "return_sparse": True,
        "return_colbert": True,
    },
    "as OpenAI's client sends it": {
        "model": "all-minilm-l6-v2",
        "input": "Hello",
        "encoding_format": "base64",
    },
}
EMBEDDINGS_ANSWERS: Examples = {
    CUT: {
        "object": "list",
        "model": "all-minilm-l6-v2",
        "data": [
            {"object": "embedding", "index": 0, "embedding": [-0.0409, 0.0362, -0.003]},
            {"object": "embedding", "index": 1, "embedding": [0.0087, 0.0119, 0.085]},
        ],
        "usage": {"prompt_tokens": 12, "total_tokens": 12},
    }
}
MULTI_VECTOR: Examples = {
    "query": {"model": "bge-m3", "input": QUESTION, "input_type": "query"},
    "documents": {
        "model": "jina-embeddings-v4",
        "input": ["Bread is baked from dough.", {"image": RED_SQUARE}],
        "input_type": "document",
        "embedding_type": "base64",
    },
}
MULTI_VECTOR_ANSWERS: Examples = {
    f"two tokens, {CUT}": {
        "object": "list",
        "model": "bge-m3",
        "data": [
            {
                "object": "embeddings",
                "index": 0,
                "embeddings": [[0.0212, -0.0134, 0.0307], [0.0098, 0.0251, -0.0176]],
            }
        ],
        "usage": {"prompt_tokens": 7, "total_tokens": 7},
    }
}
RERANK: Examples = {
    "documents": {"model": "bge-reranker-v2-m3", "query": QUESTION, "documents": DOCUMENTS, "top_n": 1},
    "instruction": {
        "query": QUESTION,
        "documents": ["Bread is baked from dough.", "Shares fell on Monday."],
        "instruction": "Recipes are relevant.",
        "return_documents": False,
        "return_embeddings": True,
    },
}
RERANK_ANSWERS: Examples = {
    "the best document": {
        "model": "bge-reranker-v2-m3",
        "object": "list",
        "results": [
            {"index": 0, "relevance_score": 0.98, "document": {"text": "Bread is baked from dough."}}
        ],
        "usage": {"prompt_tokens": 24, "total_tokens": 24},
    }
}
TOKENIZE: Examples = {
    "numbers": {"model": "all-minilm-l6-v2", "input": ["Hello, world!", "How are you?"]},
    "ids with a prefix": {
        "model": "jina-embeddings-v3",
        "input": QUESTION,
        "task": "retrieval.query",
        "return_ids": True,
    },
}
TOKENIZE_ANSWERS: Examples = {
    "numbers": {
        "model": "all-minilm-l6-v2",
        "data": [{"index": 0, "tokens": 6}, {"index": 1, "tokens": 6}],
        "usage": {"prompt_tokens": 12, "total_tokens": 12},
    }
}
MODELS_ANSWERS: Examples = {"one model": {"object": "list", "data": [MODEL]}}
MODEL_ANSWERS: Examples = {"a model": MODEL}
READY: Examples = {"ready": {"status": "ok"}}
NONE_READY: Examples = {"loading": {"status": "loading"}, "failed": {"status": "error"}}
NOT_ALL_READY: Examples = {
    "loading": {"status": "loading"},
    "failed": {"status": "error", "failed": {"bge-m3": "onnx_models/bge-m3/manifest.json cannot be read"}},
}
ROOT_ANSWERS: Examples = {
    "some routes": {
        "name": "jina-onnx-server",
        "version": "1.2.3",
        "models": ["all-minilm-l6-v2"],
        "routes": ["POST /v1/embeddings", "POST /v1/rerank", "GET /v1/models", "GET /healthz"],
    }
}
