"""A tiny checkpoint of every kind of model in the catalog, and their bundles. Makes no tensors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from convert.bake import BakeRequest, Verification, bake
from convert.catalog import RECIPES
from service.manifest import Manifest, Precision
from tests import checkpoints, qwen, qwen_vl, xlmr

MINILM, JINA_V3, BGE_M3, BGE_RERANKER = (
    "all-minilm-l6-v2", "jina-embeddings-v3", "bge-m3", "bge-reranker-v2-m3",
)  # fmt: skip
WRITERS: dict[str, Callable[[Path], Path]] = {
    MINILM: checkpoints.write_bert,
    JINA_V3: xlmr.write_jina_v3,
    BGE_M3: xlmr.write_bge_m3,
    BGE_RERANKER: xlmr.write_bge_reranker,
    **qwen.WRITERS,
    qwen_vl.JINA_V4: qwen_vl.write_jina_v4,
}


def write_and_bake(
    out: Path, model: str, precisions: Sequence[Precision], verification: Verification = Verification.SKIP
) -> Manifest:
    """Write a model's tiny checkpoint beside its bundle, where it is missing, and bake it."""
    source = out / ".checkpoints" / model
    if not source.exists():
        source.parent.mkdir(parents=True, exist_ok=True)
        WRITERS[model](source)
    request = BakeRequest(
        out=out, source=str(source), precisions=tuple(precisions), verification=verification
    )
    return bake(RECIPES[model], request)
