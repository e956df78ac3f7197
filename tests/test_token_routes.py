"""The routes of one model, of token counts and of token vectors, over tiny bundles in one process."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from falcon.testing import Result, TestClient
from tokenizers import Tokenizer

from service import embedding, forms, token_counts
from service.app import make_app
from service.config import Settings
from service.media import ImageReader
from service.registry import Registry
from service.scheduler import Scheduler
from tests.conftest import MODEL
from tests.qwen_vl import JINA_V4
from tests.xlmr import BGE_M3, BGE_RERANKER, PREFIXES, V3

TEXTS = ["the red fox", "a blue sky and the sea", ""]
RED_SQUARE = {"image": forms.RED_SQUARE}
MAX_INPUTS = 20


@pytest.fixture(scope="module")
def client(all_kinds_registry: Registry) -> TestClient:
    return TestClient(make_app(Settings(max_inputs=MAX_INPUTS, max_body_bytes=1 << 20), all_kinds_registry))


def post(client: TestClient, route: str, model: str, given: object, **fields: object) -> Result:
    return client.simulate_post(f"/v1/{route}", json={"model": model, "input": given, **fields})


def answer(client: TestClient, route: str, model: str, given: object, **fields: object) -> dict[str, Any]:
    result = post(client, route, model, given, **fields)
    assert result.status_code == 200, result.text
    body: dict[str, Any] = result.json
    return body


def assert_refused(result: Result, status: int, param: str | None, code: str) -> None:
    assert result.status_code == status, result.text
    error = result.json["error"]
    assert (error["param"], error["code"]) == (param, code), error
    assert result.json["detail"] == error["message"]


# --- one model --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [V3, f"jinaai/{V3}", f"jinaai%2F{V3}", V3.upper(), f"{V3}/"])
def test_one_model_is_its_entry_of_the_list(client: TestClient, name: str) -> None:
    (listed,) = (entry for entry in client.simulate_get("/v1/models").json["data"] if entry["id"] == V3)
    found = client.simulate_get(f"/v1/models/{name}")
    assert (found.status_code, found.json) == (200, listed)


@pytest.mark.parametrize("name", ["nope", "jinaai/nope", f"{V3}/nope", "a/b/c", "%00", "%F0%9F%A6%8A"])
def test_an_unknown_model_is_not_found(client: TestClient, name: str) -> None:
    assert_refused(client.simulate_get(f"/v1/models/{name}"), 404, "model", "model_not_found")


def test_a_model_that_is_loading_says_when_to_come_again(all_kinds_models: Path) -> None:
    settings = Settings(models_dir=all_kinds_models)
    client = TestClient(make_app(settings, Registry(settings, Scheduler(settings.max_batch_tokens))))
    found = client.simulate_get(f"/v1/models/{V3}")
    assert_refused(found, 503, "model", "model_loading")
    assert int(found.headers["Retry-After"]) > 0


# --- tokenize ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tokenizer(all_kinds_models: Path) -> Tokenizer:
    return Tokenizer.from_file(str(all_kinds_models / V3 / "tokenizer.json"))


@pytest.mark.parametrize(
    ("task", "prefix"), [(None, ""), *((task, PREFIXES[task]) for task in PREFIXES)], ids=str
)
def test_ids_are_what_the_model_reads(
    client: TestClient, tokenizer: Tokenizer, task: str | None, prefix: str
) -> None:
    found = answer(client, "tokenize", V3, TEXTS, task=task, return_ids=True)
    ids = [tokenizer.encode(prefix + text).ids for text in TEXTS]
    num_own = sum(len(tokenizer.encode(text).ids) for text in TEXTS)
    assert found == {
        "model": V3,
        "data": [{"index": index, "tokens": len(row), "ids": row} for index, row in enumerate(ids)],
        "usage": {"prompt_tokens": num_own, "total_tokens": num_own},
    }


@pytest.mark.parametrize("model", [V3, BGE_M3, MODEL, JINA_V4])
def test_usage_is_that_of_embeddings(client: TestClient, model: str) -> None:
    usage = answer(client, "embeddings", model, TEXTS[:2])["usage"]
    assert answer(client, "tokenize", model, TEXTS[:2])["usage"] == usage


@pytest.mark.parametrize("given", [TEXTS[0], {"text": TEXTS[0]}, [TEXTS[0]], [{"text": TEXTS[0]}]])
def test_forms_of_texts_without_ids(client: TestClient, tokenizer: Tokenizer, given: object) -> None:
    found = answer(client, "tokenize", f"jinaai/{V3}", given, return_ids=False)
    assert found["data"] == [{"index": 0, "tokens": len(tokenizer.encode(TEXTS[0]).ids)}]


def test_a_long_text_is_counted_whole(client: TestClient, tokenizer: Tokenizer) -> None:
    text = "fox " * 50_000
    found = answer(client, "tokenize", V3, text)
    assert found["data"][0]["tokens"] == len(tokenizer.encode(text).ids) > 50_000


def test_tokens_of_a_reranker(client: TestClient, tokenizer: Tokenizer) -> None:
    found = answer(client, "tokenize", BGE_RERANKER, TEXTS[0], return_ids=True)
    assert found["data"][0]["ids"] == tokenizer.encode(TEXTS[0]).ids


@pytest.mark.parametrize(
    ("model", "given", "fields", "status", "param", "code"),
    [
        ("nope", "a", {}, 404, "model", "model_not_found"),
        (V3, [], {}, 422, "input", "empty_input"),
        (V3, ["a"] * (MAX_INPUTS + 1), {}, 422, "input", "too_many_inputs"),
        (V3, "a", {"task": "nope"}, 422, "task", "unknown_task"),
        (BGE_RERANKER, "a", {"task": "text-matching"}, 422, "task", "unknown_task"),
        (V3, "a", {"return_ids": "yes"}, 422, "return_ids", "wrong_type"),
        (V3, RED_SQUARE, {}, 422, "input.text", "missing_field"),
        (V3, "a", {"texts": "b"}, 422, "texts", "conflicting_fields"),
    ],
)
def test_refusals_of_tokenize(
    client: TestClient, model: str, given: object, fields: dict[str, Any], status: int, param: str, code: str
) -> None:
    assert_refused(post(client, "tokenize", model, given, **fields), status, param, code)


def test_too_many_characters_are_refused(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_counts, "MAX_CHARACTERS", 10)
    assert answer(client, "tokenize", V3, ["a" * 5, "a" * 5])
    assert_refused(post(client, "tokenize", V3, ["a" * 5, "a" * 6]), 422, "input", "too_many_characters")


# --- multi-vector -----------------------------------------------------------------------------------------


def plain(client: TestClient, model: str, given: object, input_type: str) -> dict[str, Any]:
    """Ask /v1/embeddings for the same vectors; return the body with the vectors of tokens alone."""
    task = {"query": "retrieval.query", "document": "retrieval.passage"}[input_type]
    field = {JINA_V4: "return_multivector", BGE_M3: "return_colbert"}[model]
    name = {JINA_V4: "embedding", BGE_M3: "colbert_embedding"}[model]
    body = answer(client, "embeddings", model, given, task=task, **{field: True})
    rows = [
        {"object": "embeddings", "index": item["index"], "embeddings": item[name]} for item in body["data"]
    ]
    return body | {"data": rows}


def assert_same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    def bare(body: dict[str, Any]) -> dict[str, Any]:
        return body | {"data": [item | {"embeddings": None} for item in body["data"]]}

    assert bare(found) == bare(expected)
    for one, other in zip(found["data"], expected["data"], strict=True):
        np.testing.assert_allclose(one["embeddings"], other["embeddings"], rtol=0, atol=2e-6)


@pytest.mark.parametrize("model", [JINA_V4, BGE_M3])
@pytest.mark.parametrize("input_type", ["query", "document"])
def test_vectors_are_those_of_embeddings(client: TestClient, model: str, input_type: str) -> None:
    found = answer(client, "multi-vector", model, TEXTS[:2], input_type=input_type)
    assert list(found) == ["object", "model", "data", "usage"]
    assert_same(found, plain(client, model, TEXTS[:2], input_type))
    norms = [np.linalg.norm(vector) for item in found["data"] for vector in item["embeddings"]]
    np.testing.assert_allclose(norms, 1, rtol=0, atol=1e-5)


def test_queries_and_documents_differ(client: TestClient) -> None:
    query, document = (
        answer(client, "multi-vector", JINA_V4, TEXTS[0], input_type=side)["data"][0]["embeddings"]
        for side in ("query", "document")
    )
    assert np.shape(query) != np.shape(document) or np.abs(np.subtract(query, document)).max() > 1e-3


def test_without_an_input_type_it_is_a_document(client: TestClient) -> None:
    assert_same(
        answer(client, "multi-vector", JINA_V4, TEXTS[0]), plain(client, JINA_V4, TEXTS[0], "document")
    )


def test_images_have_vectors_of_tokens(client: TestClient) -> None:
    given = [TEXTS[0], RED_SQUARE]
    assert_same(answer(client, "multi-vector", JINA_V4, given), plain(client, JINA_V4, given, "document"))


@pytest.mark.parametrize("model", [JINA_V4, BGE_M3])
def test_vectors_in_other_encodings(client: TestClient, model: str) -> None:
    floats = np.array(answer(client, "multi-vector", model, TEXTS[0])["data"][0]["embeddings"], np.float32)
    size = floats.shape[1]
    encoded, binary = (
        answer(client, "multi-vector", model, TEXTS[0], embedding_type=kind, dimensions=size)["data"][0]
        for kind in ("base64", "binary")
    )
    decoded = [np.frombuffer(base64.b64decode(row), "<f4") for row in encoded["embeddings"]]
    np.testing.assert_allclose(decoded, floats, rtol=0, atol=2e-6)
    assert binary["embeddings"] == (np.packbits(floats > 0, axis=1).astype(int) - 128).tolist()


@pytest.mark.parametrize(
    ("model", "given", "fields", "status", "param", "code"),
    [
        ("nope", "a", {}, 404, "model", "model_not_found"),
        (V3, "a", {}, 422, "model", "unsupported_model"),
        (MODEL, "a", {}, 422, "model", "unsupported_model"),
        (BGE_RERANKER, "a", {}, 422, "model", "wrong_model_type"),
        (BGE_M3, "a", {"input_type": "passage"}, 422, "input_type", "wrong_type"),
        (BGE_M3, "a", {"dimensions": 7}, 422, "dimensions", "invalid_dimensions"),
        (BGE_M3, "a", {"embedding_type": "ubinary"}, 422, "embedding_type", "invalid_embedding_type"),
        (BGE_M3, [], {}, 422, "input", "empty_input"),
        (BGE_M3, RED_SQUARE, {}, 422, "input.image", "images_unsupported"),
        (BGE_M3, "fox " * 10_000, {}, 422, "input[0]", "input_too_long"),
    ],
)
def test_refusals_of_multi_vector(
    client: TestClient, model: str, given: object, fields: dict[str, Any], status: int, param: str, code: str
) -> None:
    assert_refused(post(client, "multi-vector", model, given, **fields), status, param, code)


@pytest.mark.parametrize("model", [JINA_V4, BGE_M3])
def test_a_size_that_vectors_do_not_have_is_refused_before_any_work(
    client: TestClient, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def compute(*_: object) -> None:
        raise AssertionError("nothing is computed for a request that is refused")

    monkeypatch.setattr(Scheduler, "compute", compute)
    monkeypatch.setattr(ImageReader, "read", compute)
    refused = post(client, "multi-vector", model, TEXTS, dimensions=7)
    assert_refused(refused, 422, "dimensions", "invalid_dimensions")


def test_truncate_cuts_a_long_text(client: TestClient) -> None:
    found = answer(client, "multi-vector", BGE_M3, "fox " * 10_000, truncate=True)
    assert found["usage"]["total_tokens"] == len(found["data"][0]["embeddings"]) + 1


def test_too_many_tokens_name_the_input(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedding, "MAX_COLBERT_TOKENS", 3)
    refused = post(client, "multi-vector", BGE_M3, TEXTS)
    assert_refused(refused, 422, "input", "too_many_tokens")
    assert "return_colbert" not in refused.text


@pytest.mark.parametrize("route", ["tokenize", "multi-vector"])
def test_bodies_pass_the_same_door(client: TestClient, route: str) -> None:
    typed = {"Content-Type": "text/plain"}
    assert client.simulate_post(f"/v1/{route}", body=b"{}", headers=typed).status_code == 415
    large = client.simulate_post(f"/v1/{route}", body=b" " * ((1 << 20) + 1))
    assert_refused(large, 413, None, "body_too_large")
    assert_refused(client.simulate_post(f"/v1/{route}", body=b"{"), 422, None, "invalid_json")
    assert client.simulate_get(f"/v1/{route}").status_code == 405
