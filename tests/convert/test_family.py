"""The XLM-R family in every precision: measured, shared, kept, and answered by the service."""

from __future__ import annotations

import random
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from convert import quality
from convert.bake import BakeRequest, Verification, bake
from convert.catalog import RECIPES
from convert.recipe import DEFAULT_PRECISIONS
from service import files
from service import manifest as contract
from service.bundles import Bundle
from service.config import Settings
from service.errors import BakeError
from service.figures import RankQuality
from service.manifest import Manifest, Precision
from service.options import EmbedOptions
from service.registry import Registry
from service.scheduler import Scheduler
from service.selection import Site, choose
from tests import xlmr
from tests.xlmr import BGE_M3, BGE_RERANKER, V3

TASKS = ("retrieval.query", "text-matching")
LOWEST_COSINE = {Precision.FP32: 0.999999, Precision.INT8_BLOCK: 0.99999, Precision.INT8: 0.999}
TEXTS = [" ".join(xlmr.WORDS[: 3 + number % 11]) + f" {number}" for number in range(40)]


@pytest.fixture(scope="module", autouse=True)
def few_texts() -> Any:
    """Measure on few texts: what is tested here is not the models."""
    with pytest.MonkeyPatch.context() as patch:
        for kind in ("search", "evaluation"):
            patch.setattr(f"convert.texts.{kind}", lambda: TEXTS)
        yield


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sources")
    xlmr.write_jina_v3(folder / V3)
    xlmr.write_bge_m3(folder / BGE_M3)
    xlmr.write_bge_reranker(folder / BGE_RERANKER)
    return folder


@pytest.fixture(scope="module")
def models(sources: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("models")
    for name in (V3, BGE_M3, BGE_RERANKER):
        bake_measured(sources, out, name)
    return out


def bake_measured(sources: Path, out: Path, name: str, *precisions: Precision) -> Manifest:
    request = BakeRequest(
        out=out,
        source=str(sources / name),
        tasks=TASKS if name == V3 else None,
        precisions=precisions or None,
        verification=Verification.REQUIRE,
    )
    return bake(RECIPES[name], request)


def registry_of(models: Path, precision: Precision) -> Registry:
    registry = Registry(Settings(models_dir=models, precision=precision), Scheduler(512))
    registry.load()
    assert registry.failed() == {}
    return registry


@pytest.mark.parametrize("name", [V3, BGE_M3])
def test_every_task_and_precision_is_measured(models: Path, name: str) -> None:
    manifest = contract.load(models / name)
    files.check_hashes(models / name, manifest.files)
    tasks = TASKS if name == V3 else (None,)
    expected = [(precision, task) for precision in DEFAULT_PRECISIONS for task in tasks]
    assert [(variant.precision, variant.task) for variant in manifest.variants] == expected
    for variant in manifest.variants:
        assert variant.quality is not None and variant.speed is not None
        assert variant.quality.num_texts == len(TEXTS)
        is_exact = variant.precision == Precision.FP32
        assert (variant.quality.mean_cosine > 0.999999) == is_exact
        assert variant.verified == (is_exact or quality.is_good(variant.quality, variant.precision))


def test_a_reranker_is_measured_by_its_ranks(models: Path) -> None:
    exact, *quantized = contract.load(models / BGE_RERANKER).variants
    assert exact.rank_quality == RankQuality(rank_correlation=1, worst_score_error=0, num_pairs=8 * 32)
    for variant in quantized:
        assert variant.quality is None and variant.rank_quality is not None
        assert 0 < variant.rank_quality.worst_score_error < 1
        assert variant.verified == quality.is_good(variant.rank_quality, variant.precision)


@pytest.mark.parametrize(
    ("correlation", "error", "is_good"), [(0.97, 0.01, True), (0.95, 0.01, False), (0.97, 0.2, False)]
)
def test_a_reranker_needs_order_and_scores(correlation: float, error: float, is_good: bool) -> None:
    found = RankQuality(rank_correlation=correlation, worst_score_error=error, num_pairs=1)
    assert quality.is_good(found, Precision.INT8) == is_good


def test_rank_quality_sees_order_and_error() -> None:
    exact = np.array([[0.1, 0.2, 0.3], [0.3, 0.2, 0.1]], dtype=np.float32)
    turned = np.array([[0.1, 0.2, 0.3], [0.1, 0.2, 0.3]], dtype=np.float32)
    found = quality.of_scores(turned, exact)
    assert found.rank_correlation == 0
    assert found.worst_score_error == pytest.approx(0.2)


@pytest.mark.parametrize("precision", [Precision.INT8, Precision.INT8_BLOCK])
def test_one_quantized_precision_alone_keeps_no_fp32(
    sources: Path, tmp_path: Path, precision: Precision
) -> None:
    manifest = bake_measured(sources, tmp_path, V3, precision)
    assert [(variant.precision, variant.task) for variant in manifest.variants] == [
        (precision, task) for task in TASKS
    ]
    assert all(variant.quality for variant in manifest.variants)
    assert not (tmp_path / V3 / "fp32").exists()
    assert contract.load(tmp_path / V3) == manifest


@pytest.mark.parametrize("precision", DEFAULT_PRECISIONS)
def test_tasks_share_the_table_in_every_precision(models: Path, precision: Precision) -> None:
    """The second task adds its linears and its small update, not the table: less than the first one took."""
    num_bytes = (models / V3 / precision / "weights.data").stat().st_size
    table = xlmr.TINY.rows * xlmr.TINY.hidden * (4 if precision == Precision.FP32 else 1)
    linears = xlmr.TINY.layers * 32 * (4 * 32 + 2 * 64) * (4 if precision == Precision.FP32 else 1)
    assert table + 2 * linears < num_bytes
    positions = 2 * 130 * 4 * 4
    updates = 2 * xlmr.TINY.rows * xlmr.RANK * 4
    padding = 4096 * 12 * 2 * (xlmr.TINY.layers + 1)  # each tensor begins on a page
    assert num_bytes < 1.3 * table + 2 * 1.3 * linears + updates + positions + padding


@pytest.mark.parametrize("precision", DEFAULT_PRECISIONS)
def test_a_text_does_not_depend_on_its_neighbours(models: Path, precision: Precision) -> None:
    registry = registry_of(models, precision)
    draw = random.Random(3)
    for name in (V3, BGE_M3):
        model = registry.embedding(name)
        alone = {text: model.embed([text], EmbedOptions()).vectors[0] for text in TEXTS}
        for _ in range(20):
            batch = draw.sample(TEXTS, draw.randint(2, 16))
            vectors = model.embed(batch, EmbedOptions()).vectors
            lowest = min(float(alone[text] @ row) for text, row in zip(batch, vectors, strict=True))
            assert lowest >= LOWEST_COSINE[precision] - 2e-7


@pytest.mark.parametrize("precision", DEFAULT_PRECISIONS)
def test_pairs_score_the_same_alone_and_together(models: Path, precision: Precision) -> None:
    model = registry_of(models, precision).reranker(BGE_RERANKER)
    together = model.rank("the blue fox", TEXTS)
    for place, index in enumerate(together.order):
        (alone,) = model.rank("the blue fox", [TEXTS[index]]).scores
        assert together.scores[place] == pytest.approx(alone, abs=2e-6)


def test_a_task_that_is_not_served_does_not_decide_the_precision(models: Path) -> None:
    manifest = contract.load(models / V3)
    variants = tuple(
        replace(variant, verified=variant.task == TASKS[0] or variant.precision == Precision.FP32, speed=None)
        for variant in manifest.variants
    )
    manifest = replace(manifest, variants=variants)
    site = Site("avx512_vnni")
    assert choose(manifest, None, site)[0].precision == Precision.FP32
    assert choose(manifest.limited_to(TASKS[:1]), None, site)[0].precision == Precision.INT8
    assert Bundle(models / V3, TASKS[:1]).load().task_names == TASKS[:1]


def test_a_reranker_is_not_baked_as_an_embedding_model(sources: Path, tmp_path: Path) -> None:
    with pytest.raises(BakeError, match="ForSequenceClassification: bge-m3 is an embedding model"):
        xlmr.bake_tiny(tmp_path, BGE_M3, sources / BGE_RERANKER)


def change(name: str, shape: tuple[int, ...]) -> dict[str, np.ndarray]:
    return {name: np.zeros(shape, dtype=np.float32)}


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        (change("classifier.out_proj.weight", (2, 32)), "classifier.out_proj.weight"),
        (change("classifier.dense.bias", (31,)), "classifier.dense.bias"),
        (change("roberta.encoder.layer.1.output.LayerNorm.weight", (31,)), "output.LayerNorm.weight"),
        (change("roberta.encoder.layer.1.output.dense.weight", (32, 60)), "output.dense.weight"),
        (change("roberta.embeddings.position_embeddings.weight", (99, 32)), "position_embeddings.weight"),
        (change("roberta.encoder.layer.7.output.dense.weight", (32, 64)), "has 8 layers"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_tensor_of_another_shape_is_named(
    sources: Path, tmp_path: Path, changed: dict[str, np.ndarray], reason: str
) -> None:
    copy = Path(shutil.copytree(sources / BGE_RERANKER, tmp_path / "copy"))
    tensors = dict(load_file(copy / "model.safetensors"))
    save_file(tensors | changed, copy / "model.safetensors")
    with pytest.raises(BakeError, match=reason):
        xlmr.bake_tiny(tmp_path / "out", BGE_RERANKER, copy)
