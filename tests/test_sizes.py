"""The sizes of the documentation: those computed of shapes are those of bundles."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest

from convert.catalog import RECIPES
from convert.source import locate
from service import manifest
from service.manifest import Precision
from tests import qwen, qwen_vl, xlmr
from tests.bench import full_size_qwen, sizes
from tests.bench.full_size_qwen import JINA_CODE_15B, QWEN3_4B, RERANKER_4B
from tests.bench.full_size_v4 import ADAPTERS, JINA_V4
from tests.conftest import MODEL

WRITERS: dict[str, Callable[[Path], Path]] = {
    xlmr.V3: xlmr.write_jina_v3,
    qwen.QWEN3_EMBEDDING: qwen.write_qwen3_embedding,
    qwen_vl.JINA_V4: qwen_vl.write_jina_v4,
}
TINY, REAL = 1.3, 1.02  # at most so much larger: weights begin at whole pages, which counts in tiny models


def disk_bytes(bundle: Path, precision: Precision) -> int:
    folders = (bundle / precision, bundle / "vision")
    return sum(path.stat().st_size for folder in folders for path in folder.glob("*.data"))


@pytest.mark.parametrize("model", WRITERS)
def test_a_computed_size_is_that_of_a_tiny_bundle(model: str, tmp_path: Path) -> None:
    source = WRITERS[model](tmp_path / "checkpoint")
    bundle = xlmr.bake_tiny(tmp_path, model, source)
    found = sizes.of_checkpoint(RECIPES[model], source, [Precision.FP32])[Precision.FP32].disk
    assert found <= disk_bytes(bundle, Precision.FP32) <= TINY * found


def test_a_computed_size_is_that_of_the_default_model(real_models: Path) -> None:
    recipe, precisions = RECIPES[MODEL], manifest.load(real_models / MODEL).precisions
    source, _ = locate(recipe, None, offline=False)
    for precision, found in sizes.of_checkpoint(recipe, source, precisions).items():
        assert found.disk <= disk_bytes(real_models / MODEL, precision) <= REAL * found.disk


def test_the_full_sizes_have_the_parameters_of_the_published_checkpoints() -> None:
    full = {
        "jina-code-embeddings-1.5b": JINA_CODE_15B,
        "qwen3-embedding-4b": QWEN3_4B,
        "qwen3-reranker-4b": RERANKER_4B,
    }
    for name, decoder in full.items():
        shapes = full_size_qwen.decoder_shapes(decoder, decoder.layers)
        assert sum(map(math.prod, shapes.values())) == RECIPES[name].num_parameters
    assert JINA_V4.num_parameters(ADAPTERS) == RECIPES[qwen_vl.JINA_V4].num_parameters


def test_every_model_has_a_size() -> None:
    assert {*sizes.XLMR_WRITERS, *sizes.QWEN_WRITERS, MODEL} == set(RECIPES)
