"""Bakes of the Qwen family: layouts of checkpoints, what manifests say, what is measured."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from convert import describe, quality, running, weights
from convert.bake import BakeRequest, Verification, bake
from convert.catalog import RECIPES
from convert.checkpoint import Checkpoint
from convert.recipe import DEFAULT_PRECISIONS
from service import files
from service import manifest as contract
from service.embedding import EmbeddingModel
from service.errors import BakeError
from service.limits import Listwise
from service.manifest import Kind, Manifest, Precision, Source
from service.options import EmbedOptions
from service.session import Session, SessionSettings, pad
from tests import qwen, qwen_reference, xlmr
from tests.convert.conftest import Copy
from tests.qwen import JINA_CODE, JINA_RERANKER, QWEN3_EMBEDDING, QWEN3_RERANKER, SIZES
from tests.qwen_reference import unit
from tests.xlmr import BF16, F32

TEXTS = [" ".join(xlmr.WORDS[: 3 + number % 11]) + f" {number}" for number in range(16)]
LARGE = "qwen3-embedding-4b"  # baked of the tiny checkpoint: a recipe has no sizes


def unmeasured(name: str, folder: Path, out: Path) -> Manifest:
    precisions = (Precision.FP32, Precision.INT8_BLOCK)
    request = BakeRequest(out=out, source=str(folder), precisions=precisions, verification=Verification.SKIP)
    return bake(RECIPES[name], request)


# --- layouts ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [BF16, F32])
@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("prefix", ["", "model.", "base_model.model.model."])
def test_every_layout_gives_the_same_bundle(
    qwen_sources: Path, tmp_path: Path, prefix: str, shards: int, dtype: str
) -> None:
    plain = unmeasured(QWEN3_EMBEDDING, qwen_sources / QWEN3_EMBEDDING, tmp_path / "plain")
    folder = qwen.write_qwen3_embedding(tmp_path / "other", prefix, shards, dtype)
    other = unmeasured(QWEN3_EMBEDDING, folder, tmp_path / "models")
    assert other.files == plain.files
    assert len(other.source.sha256) == shards
    assert {file.name for file in folder.glob("*.safetensors")} == set(other.source.sha256)


@pytest.mark.parametrize("values_at_once", [1000, 48, 1])
def test_a_table_read_in_parts_is_the_same(
    qwen_sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, values_at_once: int
) -> None:
    plain, parts = (
        BakeRequest(
            out=tmp_path / kind, source=str(qwen_sources / QWEN3_EMBEDDING), verification=Verification.SKIP
        )
        for kind in ("plain", "parts")
    )
    whole = bake(RECIPES[QWEN3_EMBEDDING], plain)
    assert whole.precisions == DEFAULT_PRECISIONS
    monkeypatch.setattr(weights, "VALUES_AT_ONCE", values_at_once)
    assert bake(RECIPES[QWEN3_EMBEDDING], parts).files == whole.files


def test_a_code_model_without_prefix_is_the_same(qwen_sources: Path, tmp_path: Path) -> None:
    plain = unmeasured(JINA_CODE, qwen_sources / JINA_CODE, tmp_path / "plain")
    folder = qwen.write_jina_code(tmp_path / "other", prefix="")
    assert unmeasured(JINA_CODE, folder, tmp_path / "models").files == plain.files


@pytest.mark.parametrize("name", qwen.WRITERS)
def test_other_weights_give_another_bundle(qwen_sources: Path, tmp_path: Path, name: str) -> None:
    plain = unmeasured(name, qwen_sources / name, tmp_path / "plain").files
    folder = qwen.WRITERS[name](tmp_path / "other", seed=1)
    other = unmeasured(name, folder, tmp_path / "models").files
    assert {file for file in plain if plain[file] != other[file]} >= {"fp32/weights.data"}


@pytest.mark.parametrize("name", [JINA_CODE, QWEN3_EMBEDDING, QWEN3_RERANKER])
def test_the_head_of_a_tied_model_is_not_read(
    qwen_sources: Path, qwen_copy: Copy, tmp_path: Path, name: str
) -> None:
    folder = qwen_copy(name)
    qwen.change_tensors(folder, **qwen.lm_head(SIZES[name]))
    plain = unmeasured(name, qwen_sources / name, tmp_path / "plain")
    assert unmeasured(name, folder, tmp_path / "models").files == plain.files


def test_an_untied_embedding_model_needs_no_head(qwen_sources: Path, qwen_copy: Copy, tmp_path: Path) -> None:
    """qwen3-embedding-8b says that it is not tied, and has no head."""
    folder = qwen_copy(QWEN3_EMBEDDING)
    qwen.change_json(folder / "config.json", tie_word_embeddings=False)
    plain = unmeasured(QWEN3_EMBEDDING, qwen_sources / QWEN3_EMBEDDING, tmp_path / "plain")
    assert unmeasured(QWEN3_EMBEDDING, folder, tmp_path / "models").files == plain.files


# --- manifests --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", qwen.WRITERS)
def test_limits_are_the_smaller_of_recipe_and_checkpoint(
    qwen_sources: Path, tmp_path: Path, name: str
) -> None:
    unmeasured(name, qwen_sources / name, tmp_path)
    manifest, sizes = contract.load(tmp_path / name), SIZES[name]
    is_embedding = manifest.kind == Kind.EMBEDDING
    assert manifest.max_tokens == (sizes.positions if is_embedding else 8192)
    assert manifest.dimensions == manifest.default_dimensions == sizes.hidden
    assert manifest.tasks == RECIPES[name].manifest.tasks
    files.check_hashes(tmp_path / name, manifest.files)


@pytest.mark.parametrize(
    ("positions", "max_tokens"), [(64, 64), (8192, 8192), (32_768, 32_768), (131_072, 32_768)]
)
def test_an_embedding_model_takes_no_more_than_its_positions(
    qwen_copy: Copy, positions: int, max_tokens: int
) -> None:
    folder = qwen_copy(QWEN3_EMBEDDING)
    qwen.change_json(folder / "config.json", max_position_embeddings=positions)
    assert described(QWEN3_EMBEDDING, folder).max_tokens == max_tokens


def described(name: str, folder: Path) -> Manifest:
    return describe.described(RECIPES[name], Checkpoint(folder), Source(id="here"))


@pytest.mark.parametrize(
    ("name", "hidden", "default"),
    [
        (QWEN3_EMBEDDING, 1024, 1024),
        (LARGE, 2560, 1024),
        ("qwen3-embedding-8b", 4096, 1024),
        (LARGE, 512, 512),
        (JINA_CODE, 896, 896),
        ("jina-code-embeddings-1.5b", 1536, 1536),
    ],
)
def test_default_dimensions(qwen_copy: Copy, name: str, hidden: int, default: int) -> None:
    folder = qwen_copy(JINA_CODE if name.startswith("jina") else QWEN3_EMBEDDING)
    qwen.change_json(folder / "config.json", hidden_size=hidden)
    manifest = described(name, folder)
    assert (manifest.dimensions, manifest.default_dimensions) == (hidden, default)


@pytest.mark.parametrize(
    ("model_max_length", "capacity"),
    [(12_000, 12_000), (1e30, 16_384), (int(1e30), 16_384), (131_072, 16_384), (None, 16_384), (1, 1)],
)
def test_the_capacity_of_a_prompt_comes_from_the_tokenizer(
    tmp_path: Path, model_max_length: float | None, capacity: int
) -> None:
    folder = qwen.write_jina_reranker(tmp_path, model_max_length=model_max_length)
    manifest = described(JINA_RERANKER, folder)
    assert manifest.listwise == Listwise(
        document_marker="<|embed_token|>",
        query_marker="<|rerank_token|>",
        max_query_length=512,
        max_doc_length=2048,
        block_size=125,
        capacity=capacity,
    )
    assert manifest.max_tokens == 8192


def test_the_capacity_of_a_prompt_is_at_most_the_recipes(tmp_path: Path) -> None:
    folder = qwen.write_jina_reranker(tmp_path, model_max_length=262_144)
    qwen.change_json(folder / "config.json", max_position_embeddings=262_144)
    manifest = described(JINA_RERANKER, folder)
    assert manifest.listwise is not None
    assert manifest.listwise.capacity == 131_072


@pytest.mark.parametrize("value", ["long", -1, 0, None, [131_072]], ids=str)
def test_a_wrong_capacity_is_refused(tmp_path: Path, value: object) -> None:
    folder = qwen.write_jina_reranker(tmp_path)
    qwen.change_json(folder / "tokenizer_config.json", model_max_length=value)
    with pytest.raises(BakeError, match="model_max_length"):
        described(JINA_RERANKER, folder)


# --- measured bakes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", qwen.WRITERS)
def test_every_precision_is_measured(
    qwen_sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    for kind in ("search", "evaluation"):
        monkeypatch.setattr(f"convert.texts.{kind}", lambda: TEXTS)
    request = BakeRequest(out=tmp_path, source=str(qwen_sources / name), verification=Verification.REQUIRE)
    manifest = bake(RECIPES[name], request)
    assert [(variant.precision, variant.task) for variant in manifest.variants] == [
        (precision, None) for precision in DEFAULT_PRECISIONS
    ]
    for variant in manifest.variants:
        found = variant.quality if manifest.kind == Kind.EMBEDDING else variant.rank_quality
        assert found is not None
        assert variant.speed is not None
        assert variant.verified == (
            variant.precision == Precision.FP32 or quality.is_good(found, variant.precision)
        )
        assert variant.reference is None  # published cosines are of vectors of another size
    assert manifest.variants[0].verified
    assert contract.load(tmp_path / name) == manifest


def test_a_large_model_is_baked_in_blocks_alone(
    qwen_sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is measured all the same, against an fp32 graph that is not kept."""
    for kind in ("search", "evaluation"):
        monkeypatch.setattr(f"convert.texts.{kind}", lambda: TEXTS)
    manifest = bake(RECIPES[LARGE], BakeRequest(out=tmp_path, source=str(qwen_sources / QWEN3_EMBEDDING)))
    (variant,) = manifest.variants
    assert variant.precision == Precision.INT8_BLOCK
    assert variant.quality is not None
    assert 0.9 < variant.quality.mean_cosine < 1
    assert sorted(path.name for path in (tmp_path / LARGE).iterdir() if path.is_dir()) == ["int8-block"]


@pytest.mark.parametrize("task", [None, "retrieval.query"])
def test_the_token_that_the_tokenizer_appends_is_the_pooled_one(
    qwen_sources: Path, tmp_path: Path, task: str | None
) -> None:
    unmeasured(QWEN3_EMBEDDING, qwen_sources / QWEN3_EMBEDDING, tmp_path)
    folder = tmp_path / QWEN3_EMBEDDING
    manifest = contract.load(folder)
    model = running.open_variant(folder, manifest, manifest.variants[0])
    assert isinstance(model, EmbeddingModel)
    made = qwen.tokenizer()
    prefix = {each.name: each.prefix for each in manifest.tasks}[task] if task else ""
    ids = [*made.encode(f"{prefix}the cat").ids, qwen.token_id(made, qwen.END_OF_TEXT)]
    session = Session(folder / "fp32" / "model.onnx", SessionSettings(num_threads=1))
    (pooled,) = session.run(pad([np.array(ids)]), ["pooled"])
    (vector,) = model.embed(["the cat"], EmbedOptions(task=task)).vectors
    assert np.abs(vector - pooled[0] / np.linalg.norm(pooled[0])).max() < 1e-6


@pytest.mark.parametrize(("shift", "passed"), [(0.0, True), (0.02, False)])
def test_published_cosines_are_compared_where_the_sizes_agree(
    qwen_sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shift: float, passed: bool
) -> None:
    """Put cosines of the tiny model, computed by numpy, in the place of the published ones."""
    for kind in ("search", "evaluation"):
        monkeypatch.setattr(f"convert.texts.{kind}", lambda: TEXTS)
    recipe = RECIPES[JINA_CODE]
    published = recipe.published_cosines
    assert published is not None
    exact = qwen_reference.read(qwen_sources / JINA_CODE, SIZES[JINA_CODE])
    prefixes = {task.name: task.prefix for task in recipe.manifest.tasks}
    made = qwen.tokenizer()
    queries, documents = (
        unit(np.stack([exact.states(np.array(made.encode(prefix + text).ids))[-1] for text in texts]))
        for prefix, texts in (
            (prefixes["nl2code.query"], published.queries),
            (prefixes["nl2code.passage"], published.documents),
        )
    )
    cosines = tuple(map(tuple, (queries @ documents.T + shift).tolist()))
    changed = replace(published, cosines=cosines, dimensions=SIZES[JINA_CODE].hidden)
    request = BakeRequest(out=tmp_path, source=str(qwen_sources / JINA_CODE), precisions=(Precision.FP32,))
    (variant,) = bake(replace(recipe, published_cosines=changed), request).variants
    assert variant.reference is not None
    assert (variant.reference.passed, variant.reference.num_texts) == (passed, 4)
    assert variant.reference.max_abs_difference == pytest.approx(shift, abs=1e-5)
