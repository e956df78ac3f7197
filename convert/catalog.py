"""RECIPES: the models of the catalog, by name. Data only."""

from __future__ import annotations

from convert.decoder_recipes import (
    JINA_CODE_EMBEDDINGS_0_5B,
    JINA_CODE_EMBEDDINGS_1_5B,
    JINA_RERANKER_V3,
    QWEN3_EMBEDDING_0_6B,
    QWEN3_EMBEDDING_4B,
    QWEN3_EMBEDDING_8B,
    QWEN3_RERANKER_0_6B,
    QWEN3_RERANKER_4B,
)  # fmt: skip
from convert.encoder_recipes import ALL_MINILM_L6_V2, BGE_M3, BGE_RERANKER_V2_M3, JINA_EMBEDDINGS_V3
from convert.multimodal_recipes import JINA_EMBEDDINGS_V4
from convert.recipe import Recipe

RECIPES: dict[str, Recipe] = {
    recipe.manifest.name: recipe
    for recipe in (
        ALL_MINILM_L6_V2, JINA_EMBEDDINGS_V3, JINA_EMBEDDINGS_V4, JINA_CODE_EMBEDDINGS_0_5B,
        JINA_CODE_EMBEDDINGS_1_5B, BGE_M3,
        QWEN3_EMBEDDING_0_6B, QWEN3_EMBEDDING_4B, QWEN3_EMBEDDING_8B, JINA_RERANKER_V3, BGE_RERANKER_V2_M3,
        QWEN3_RERANKER_0_6B, QWEN3_RERANKER_4B,
    )
}  # fmt: skip
