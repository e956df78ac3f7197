"""The XLM-R family against the reference implementations: golden checkpoints, baked by the command.

Over HTTP; what no request can express (base weights, a small limit, given spans) goes through the objects
that serve HTTP.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from falcon.testing import TestClient

from service import pairs, scoring
from service.config import Settings
from service.embedding import EmbeddingModel
from service.late_chunking import Document
from service.manifest import Output
from service.options import EmbedOptions
from service.registry import Registry
from service.reranking import Reranker
from service.scheduler import Scheduler
from tests import golden
from tests.conftest import bake_golden
from tests.golden import assert_near, embed, vectors

V3, BGE, RERANKER = "jina-embeddings-v3", "bge-m3", "bge-reranker-v2-m3"

pytestmark = pytest.mark.reference


def has_task(case: dict[str, Any]) -> bool:
    return bool(case["task"])


def options_of(case: dict[str, Any], **more: Any) -> EmbedOptions:
    return EmbedOptions(task=case["task"], without_adapter=case["task"] is None, **more)


@pytest.fixture(scope="module")
def v3_arrays(golden_models: Path) -> dict[str, np.ndarray]:
    return golden.arrays(V3)


@pytest.fixture(scope="module")
def bge_arrays(golden_models: Path) -> dict[str, np.ndarray]:
    return golden.arrays(BGE)


@pytest.fixture(scope="module")
def v3(golden_registry: Registry) -> EmbeddingModel:
    return golden_registry.embedding(V3)


@pytest.fixture(scope="module")
def reranker(golden_registry: Registry) -> Reranker:
    return golden_registry.reranker(RERANKER)


@pytest.mark.parametrize("case", golden.cases(V3, "cases", has_task), ids=golden.by_id)
def test_v3_vectors_over_http(golden_client: TestClient, v3_arrays: dict[str, np.ndarray], case: Any) -> None:
    text = golden.expected(V3)["texts"][case["text"]]
    answer = vectors(embed(golden_client, V3, text, task=case["task"]))
    assert_near(answer[0], v3_arrays[case["outputs"]["embedding"]], golden.UNIT)
    for size, name in case["outputs"].get("dimensions", {}).items():
        cut = vectors(embed(golden_client, V3, [text], task=case["task"], dimensions=int(size)))
        assert_near(cut[0], v3_arrays[name], golden.UNIT)


@pytest.mark.parametrize("case", golden.cases(V3, "cases", lambda case: not has_task(case)), ids=golden.by_id)
def test_v3_vectors_without_adapter(v3: EmbeddingModel, v3_arrays: dict[str, np.ndarray], case: Any) -> None:
    text = golden.expected(V3)["texts"][case["text"]]
    sizes = {
        str(v3.manifest.dimensions): case["outputs"]["embedding"],
        **case["outputs"].get("dimensions", {}),
    }
    for size, name in sizes.items():
        computed = v3.embed([text], options_of(case, dimensions=int(size))).vectors
        assert_near(computed[0], v3_arrays[name], golden.UNIT)


@pytest.mark.parametrize("case", golden.cases(V3, "cases"), ids=golden.by_id)
def test_v3_token_ids(v3: EmbeddingModel, case: Any) -> None:
    text = case["prompt"] + golden.expected(V3)["texts"][case["text"]]
    prefixes = {task.name: task.prefix for task in v3.manifest.tasks}
    assert prefixes.get(case["task"], "") == case["prompt"]
    assert v3.tokenizer.encode([text], 8192)[0].ids.tolist() == case["ids"]
    assert v3.tokenizer.locate(text).ids.tolist() == case["ids"]


@pytest.mark.parametrize("case", golden.cases(V3, "truncation"), ids=golden.by_id)
def test_v3_truncation(v3: EmbeddingModel, v3_arrays: dict[str, np.ndarray], case: Any) -> None:
    limited = replace(v3, manifest=replace(v3.manifest, max_tokens=case["max_tokens"]))
    text = golden.expected(V3)["texts"][case["text"]]
    computed = limited.embed([text], options_of(case, truncate=True)).vectors[0]
    assert_near(computed, v3_arrays[case["outputs"]["embedding"]], golden.UNIT)
    cut = v3.tokenizer.encode([case["prompt"] + text], case["max_tokens"])
    assert cut[0].ids.tolist() == case["ids"]


@pytest.mark.parametrize("task", ["retrieval.query", "text-matching"])
@pytest.mark.parametrize("names", golden.cases(V3, "batches"), ids=str)
def test_v3_batches_are_the_single_runs(
    golden_client: TestClient, v3_arrays: dict[str, np.ndarray], names: list[str], task: str
) -> None:
    texts = golden.expected(V3)["texts"]
    answer = vectors(embed(golden_client, V3, [texts[name] for name in names], task=task))
    for row, name in zip(answer, names, strict=True):
        assert_near(row, v3_arrays[f"{task}/{name}/embedding"], golden.UNIT)


def is_expressible(case: dict[str, Any]) -> bool:
    return bool(case["task"]) and case["form"] == "items" and case["join"] == " "


@pytest.mark.parametrize("case", golden.cases(V3, "late_chunking", is_expressible), ids=golden.by_id)
def test_v3_late_chunking_over_http(
    golden_client: TestClient, v3_arrays: dict[str, np.ndarray], case: Any
) -> None:
    body = embed(golden_client, V3, case["items"], task=case["task"], late_chunking=True)
    assert_near(vectors(body), v3_arrays[case["outputs"]["embedding"]], golden.UNIT)


@pytest.mark.parametrize("case", golden.cases(V3, "late_chunking"), ids=golden.by_id)
def test_v3_late_chunking_of_given_spans(
    v3: EmbeddingModel, v3_arrays: dict[str, np.ndarray], case: Any
) -> None:
    ends = np.array([end for _, end in case["char_spans"]])
    whole = Document(case["text"], ends, is_one_text=case["form"] == "sentences")
    computed = v3.embed_document(whole, options_of(case)).vectors
    assert_near(computed, v3_arrays[case["outputs"]["embedding"]], golden.UNIT)
    located = v3.tokenizer.locate(case["prompt"] + case["text"])
    assert located.ids.tolist() == case["ids"]


def test_v3_first_token_masked_is_the_text_without_it(v3: EmbeddingModel) -> None:
    ids = golden.expected(V3)["cases"][0]["ids"]
    session = v3.graphs.session("separation")
    masked = {"input_ids": np.array([ids]), "attention_mask": np.array([[0] + [1] * (len(ids) - 1)])}
    shorter = {name: value[:, 1:] for name, value in masked.items()}
    for output, begin in ((Output.TOKEN_EMBEDDINGS, 1), (Output.POOLED, 0)):
        (found,), (alone,) = (session.run(inputs, [output]) for inputs in (masked, shorter))
        assert_near(found[0][begin:], alone[0], golden.UNIT)  # rotary positions are relative


def test_v3_both_layouts_give_the_same_bundle(
    golden_checkpoints: Path, golden_models: Path, golden_registry: Registry, tmp_path: Path
) -> None:
    bake_golden(golden_checkpoints / f"{V3}-hf", tmp_path)
    other = Registry(Settings(models_dir=tmp_path), Scheduler(1024))
    other.load()
    ours, theirs = golden_registry.embedding(V3), other.embedding(V3)
    text = golden.expected(V3)["texts"]["de"]
    for task in ours.manifest.task_names:
        one, two = (model.embed([text], EmbedOptions(task=task)).vectors for model in (ours, theirs))
        assert_near(one, two, 2e-6)
    sizes = [model.manifest.files["fp32/weights.data"].size for model in (ours, theirs)]
    assert sizes[0] == sizes[1]
    assert ours.manifest.tasks == theirs.manifest.tasks


@pytest.mark.parametrize("task", [None, "retrieval.query", "retrieval.passage", "text-matching"])
@pytest.mark.parametrize("case", golden.cases(BGE, "cases"), ids=golden.by_id)
def test_bge_m3_over_http(
    golden_client: TestClient, bge_arrays: dict[str, np.ndarray], case: Any, task: str | None
) -> None:
    text, outputs = golden.expected(BGE)["texts"][case["text"]], case["outputs"]
    body = embed(golden_client, BGE, text, task=task, return_sparse=True, return_colbert=True)
    (item,) = body["data"]
    assert_near(item["embedding"], bge_arrays[outputs["embedding"]], golden.UNIT)
    assert item["sparse_embedding"]["indices"] == outputs["sparse_ids"]
    assert_near(item["sparse_embedding"]["values"], bge_arrays[outputs["sparse_weights"]], golden.HEADS)
    assert_near(item["colbert_embedding"], bge_arrays[outputs["colbert"]], golden.HEADS)
    assert body["usage"]["total_tokens"] == len(case["ids"])


@pytest.mark.parametrize("names", golden.cases(BGE, "batches"), ids=str)
def test_bge_m3_batches_are_the_single_runs(
    golden_client: TestClient, bge_arrays: dict[str, np.ndarray], names: list[str]
) -> None:
    texts = golden.expected(BGE)["texts"]
    fields = {"return_sparse": True, "return_colbert": True}
    body = embed(golden_client, BGE, [texts[name] for name in names], **fields)
    for item, name in zip(body["data"], names, strict=True):
        assert_near(item["embedding"], bge_arrays[f"None/{name}/embedding"], golden.UNIT)
        assert_near(item["sparse_embedding"]["values"], bge_arrays[f"None/{name}/sparse"], golden.HEADS)
        assert_near(item["colbert_embedding"], bge_arrays[f"None/{name}/colbert"], golden.HEADS)


@pytest.mark.parametrize("case", golden.cases(BGE, "truncation"), ids=golden.by_id)
def test_bge_m3_truncation(golden_registry: Registry, bge_arrays: dict[str, np.ndarray], case: Any) -> None:
    model = golden_registry.embedding(BGE)
    limited = replace(model, manifest=replace(model.manifest, max_tokens=case["max_tokens"]))
    text = golden.expected(BGE)["texts"][case["text"]]
    computed = limited.embed([text], EmbedOptions(truncate=True)).vectors[0]
    assert_near(computed, bge_arrays[case["outputs"]["embedding"]], golden.UNIT)


def test_bge_m3_safetensors_and_torch_files_give_the_same_weights(
    golden_checkpoints: Path, golden_models: Path, tmp_path: Path
) -> None:
    bake_golden(golden_checkpoints / BGE, tmp_path)
    ours, theirs = (folder / BGE / "fp32" / "weights.data" for folder in (golden_models, tmp_path))
    # The order of tensors in the file may differ, their bytes may not.
    assert sorted(pages(ours)) == sorted(pages(theirs))


def pages(path: Path) -> list[bytes]:
    content = path.read_bytes()
    return [content[begin : begin + 4096] for begin in range(0, len(content), 4096)]


def is_whole(case: dict[str, Any]) -> bool:
    return "max_tokens" not in case


@pytest.mark.parametrize("case", golden.cases(RERANKER, "cases", is_whole), ids=golden.by_id)
def test_reranker_scores_over_http(golden_client: TestClient, case: Any) -> None:
    body = {"model": RERANKER, "query": case["query"], "documents": [case["passage"]]}
    answer = golden_client.simulate_post("/v1/rerank", json=body)
    assert answer.status_code == 200, answer.text
    assert answer.json["results"][0]["relevance_score"] == pytest.approx(case["score"], abs=golden.SCORE)


@pytest.mark.parametrize("case", golden.cases(RERANKER, "cases"), ids=golden.by_id)
def test_reranker_pairs_logits_and_scores(reranker: Reranker, case: Any) -> None:
    limit = case.get("max_tokens", reranker.manifest.max_tokens)
    parts = replace(reranker.parts, manifest=replace(reranker.manifest, max_tokens=limit))
    query, document = (
        tokens.ids for tokens in parts.tokenizer.encode([case["query"], case["passage"]], limit)
    )
    ids = pairs.pair(parts, query, document)
    assert ids.tolist() == case["ids"]
    assert scoring.logits(parts, [ids])[0] == pytest.approx(case["logit"], abs=golden.LOGIT)
    ranking = replace(reranker, parts=parts).rank(case["query"], [case["passage"]])
    assert ranking.scores[0] == pytest.approx(case["score"], abs=golden.SCORE)


def test_reranker_orders_all_pairs_of_a_query_in_one_request(golden_client: TestClient) -> None:
    cases = [case for case in golden.expected(RERANKER)["cases"] if is_whole(case)]
    query = cases[0]["query"]
    same = [case for case in cases if case["query"] == query]
    documents = [case["passage"] for case in same]
    body = {"model": RERANKER, "query": query, "documents": documents}
    results = golden_client.simulate_post("/v1/rerank", json=body).json["results"]
    assert len(results) == len(same) > 1
    for result in results:
        assert result["relevance_score"] == pytest.approx(same[result["index"]]["score"], abs=golden.SCORE)
    assert all(one["relevance_score"] >= two["relevance_score"] for one, two in pairwise(results))


def test_the_base_weights_are_never_listed_nor_accepted(golden_client: TestClient) -> None:
    listed = {entry["id"]: entry["tasks"] for entry in golden_client.simulate_get("/v1/models").json["data"]}
    assert "none" not in listed[V3]
    for task in ("none", "None", ""):
        body = {"model": V3, "input": "x", "task": task}
        answer = golden_client.simulate_post("/v1/embeddings", json=body)
        assert (answer.status_code, answer.json["error"]["param"]) == (422, "task")
        assert "retrieval.query" in answer.json["detail"]
