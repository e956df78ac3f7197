"""POST /v1/rerank over tiny bundles, in one process: order, forms, lengths, usage, and what is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from falcon.testing import Result, TestClient
from tokenizers import Tokenizer

from service.app import make_app
from service.config import Settings
from service.registry import Registry
from service.scheduler import Scheduler
from tests import xlmr
from tests.conftest import MODEL
from tests.xlmr import BGE_M3, BGE_RERANKER, BGE_TOKENS, WORDS

ROUTE = "/v1/rerank"
DEFAULT = "jina-reranker-v3"
QUERY = "red fox"
DOCUMENTS = ["the red fox", "a blue sky", "very far", "the sea and the river", "dog"]
MAX_INPUTS = 1000
NEAR = 2e-6  # of scores, in fp32
QUERY_ROOM = BGE_TOKENS * 3 // 4
PAIR_SPECIALS = 4


@pytest.fixture(scope="module")
def models(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A models folder with a reranker and two embedding models."""
    folder = tmp_path_factory.mktemp("rerank")
    xlmr.bake_tiny(folder, MODEL, tiny_checkpoint)
    xlmr.bake_tiny(folder, BGE_M3, xlmr.write_bge_m3(folder / ".checkpoints" / BGE_M3))
    xlmr.bake_tiny(folder, BGE_RERANKER, xlmr.write_bge_reranker(folder / ".checkpoints" / BGE_RERANKER))
    return folder


@pytest.fixture(scope="module")
def client(models: Path) -> TestClient:
    """A client of the whole application over the three models."""
    settings = Settings(models_dir=models, max_inputs=MAX_INPUTS)
    registry = Registry(settings, Scheduler(settings.max_batch_tokens))
    registry.load()
    assert not registry.failed()
    return TestClient(make_app(settings, registry))


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_str(xlmr.tokenizer().decode())


def post(client: TestClient, body: object) -> Result:
    """Send a body, bytes as they are and anything else as JSON."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return client.simulate_post(ROUTE, body=content, headers={"Content-Type": "application/json"})


def request(documents: object = None, **fields: object) -> dict[str, object]:
    given = DOCUMENTS if documents is None else documents
    return {"model": BGE_RERANKER, "query": QUERY, "documents": given, **fields}


def rerank(client: TestClient, documents: object = None, **fields: object) -> dict[str, Any]:
    answer = post(client, request(documents, **fields))
    assert answer.status_code == 200, answer.text
    body: dict[str, Any] = answer.json
    return body


def results(client: TestClient, documents: object = None, **fields: object) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = rerank(client, documents, **fields)["results"]
    return found


def scores(client: TestClient, documents: list[Any], **fields: object) -> np.ndarray:
    """Return the scores in the order of the documents."""
    by_index = sorted(results(client, documents, **fields), key=lambda result: result["index"])
    assert [result["index"] for result in by_index] == [*range(len(documents))]
    return np.array([result["relevance_score"] for result in by_index])


def many_documents(count: int, longest: int = 40) -> list[str]:
    draw = np.random.default_rng(0)
    return [" ".join(draw.choice(WORDS, draw.integers(1, longest))) for _ in range(count)]


def assert_error(answer: Result, status: int, param: str | None, code: str) -> None:
    """Check the one body of all errors."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"].startswith("application/json")
    assert set(answer.json) == {"error", "detail"}
    message = answer.json["detail"]
    kind = "invalid_request_error"
    assert answer.json["error"] == {"message": message, "type": kind, "param": param, "code": code}
    assert isinstance(message, str) and message


# --- right requests ---------------------------------------------------------------------------------------


def test_response_body(client: TestClient):
    answer = rerank(client)
    assert set(answer) == {"model", "object", "results", "usage"}
    assert (answer["model"], answer["object"]) == (BGE_RERANKER, "list")
    for result in answer["results"]:
        assert set(result) == {"index", "relevance_score", "document"}
        assert type(result["index"]) is int and type(result["relevance_score"]) is float
        assert 0 <= result["relevance_score"] <= 1
        assert result["document"] == {"text": DOCUMENTS[result["index"]]}
    assert sorted(result["index"] for result in answer["results"]) == [*range(len(DOCUMENTS))]


def test_scores_descend_and_depend_on_query_and_document(client: TestClient):
    found = [result["relevance_score"] for result in results(client)]
    assert found == sorted(found, reverse=True) and len(set(found)) == len(DOCUMENTS)
    by_document = scores(client, DOCUMENTS)
    assert [*np.argsort(-by_document)] != [*range(len(DOCUMENTS))], "sent in order: shows nothing"
    assert np.abs(by_document - scores(client, DOCUMENTS, query="blue sky")).min() > 100 * NEAR


@pytest.mark.parametrize("query", [QUERY, "(fox) & 3.85?"])
def test_score_is_the_sigmoid_of_the_pairs_logit(
    client: TestClient, models: Path, tokenizer: Tokenizer, query: str
):
    session = onnxruntime.InferenceSession(models / BGE_RERANKER / "fp32" / "model.onnx")
    logits = []
    for document in [*DOCUMENTS, ""]:
        ids = np.array([tokenizer.encode(query, document).ids])
        inputs = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
        logits += [*session.run(["scores"], inputs)[0]]
    expected = 1 / (1 + np.exp(-np.array(logits)))
    np.testing.assert_allclose(scores(client, [*DOCUMENTS, ""], query=query), expected, rtol=0, atol=NEAR)


def test_equal_scores_are_ordered_by_index(client: TestClient):
    found = results(client, ["dog", "far", "dog", "far", "dog", "sky"])
    places = {text: [r["index"] for r in found if r["document"]["text"] == text] for text in ("dog", "far")}
    assert places == {"dog": [0, 2, 4], "far": [1, 3]}
    assert len({result["relevance_score"] for result in found}) == 3


def test_equal_documents_have_equal_scores_whatever_they_are_run_beside(client: TestClient):
    documents = ["fox " * count for count in range(20, 24)] * 50
    found = results(client, documents)
    for text in documents[:4]:
        same = [result for result in found if result["document"]["text"] == text]
        assert [result["index"] for result in same] == sorted(result["index"] for result in same)
        assert len({result["relevance_score"] for result in same}) == 1


@pytest.mark.parametrize("field", ["top_n", "top_k"])
@pytest.mark.parametrize("count", [1, 3, len(DOCUMENTS), 100, 2**40, None])
def test_top_n(client: TestClient, field: str, count: int | None):
    everything = rerank(client)
    answer = rerank(client, **{field: count})
    assert answer["results"] == everything["results"][:count]
    assert answer["usage"] == everything["usage"]


@pytest.mark.parametrize(
    ("asked", "given"), [(True, True), (None, True), (False, False)], ids=["true", "null", "false"]
)
def test_return_documents(client: TestClient, asked: bool | None, given: bool):
    expected = results(client)
    if not given:
        expected = [{"index": r["index"], "relevance_score": r["relevance_score"]} for r in expected]
    assert results(client, return_documents=asked) == expected


@pytest.mark.parametrize(
    "documents",
    [
        [{"text": text} for text in DOCUMENTS],
        [{"text": text, "metadata": "extra", "n": {"deep": [1]}} for text in DOCUMENTS],
        [DOCUMENTS[0], {"text": DOCUMENTS[1]}, *DOCUMENTS[2:]],
    ],
    ids=["objects", "objects-with-more", "mixed"],
)
def test_document_forms_give_equal_answers(client: TestClient, documents: list[Any]):
    assert rerank(client, documents) == rerank(client)


@pytest.mark.parametrize(
    "text", ["", " ", "\x00", "🦊 שלום", "\U0010ffff"], ids=["empty", "blank", "nul", "scripts", "last-plane"]
)
def test_unusual_documents_are_ranked(client: TestClient, text: str):
    found = results(client, [text, "dog", text])
    assert [r["document"]["text"] for r in found if r["index"] != 1] == [text, text]
    assert all(np.isfinite(r["relevance_score"]) for r in found)


@pytest.mark.parametrize(
    "fields",
    [{"user": "me", "unknown": [1]}, {"model": f"BAAI/{BGE_RERANKER}"}, {"model": BGE_RERANKER.upper()}],
    ids=["unknown-fields", "hub-id", "other-case"],
)
def test_fields_without_effect(client: TestClient, fields: dict[str, object]):
    assert rerank(client, **fields) == rerank(client)


# --- lengths and batches ----------------------------------------------------------------------------------


def test_usage_counts_the_query_once_and_every_document(client: TestClient, tokenizer: Tokenizer):
    documents = [*DOCUMENTS, "", "fox " * 5000, {"text": "blue " * BGE_TOKENS}]
    texts = [QUERY, *DOCUMENTS, "", "fox " * 5000, "blue " * BGE_TOKENS]
    expected = sum(min(len(tokenizer.encode(text).ids), BGE_TOKENS) for text in texts)
    for fields in ({}, {"top_n": 1}, {"return_documents": False}):
        usage = rerank(client, documents, **fields)["usage"]
        assert usage == {"prompt_tokens": expected, "total_tokens": expected}


def test_pairs_together_score_as_alone(client: TestClient):
    documents = many_documents(60, longest=150)
    alone = np.concatenate([scores(client, [document]) for document in documents])
    np.testing.assert_allclose(scores(client, documents), alone, rtol=0, atol=NEAR)
    assert np.ptp(alone) > 1000 * NEAR, "the scores are too alike to show anything"


@pytest.mark.parametrize(("kept", "is_read"), [(-1, True), (0, False)], ids=["last-token", "beyond"])
def test_document_is_cut_to_what_the_query_leaves(client: TestClient, kept: int, is_read: bool):
    room = BGE_TOKENS - PAIR_SPECIALS - len(QUERY.split()) + kept
    one, other = scores(client, ["fox " * room + end for end in ("river", "sky")])
    assert (abs(one - other) > NEAR) == is_read


@pytest.mark.parametrize(("kept", "is_read"), [(-1, True), (0, False)], ids=["last-token", "beyond"])
def test_query_is_cut_to_three_quarters(client: TestClient, kept: int, is_read: bool):
    queries = ["fox " * (QUERY_ROOM + kept) + f"{end} and a blue sky" for end in ("river", "tree")]
    # The same for both queries where the cut is, whatever follows it.
    one, other = (scores(client, ["dog", "blue " * 500], query=query) for query in queries)
    assert (np.abs(one - other).min() > NEAR) == is_read


def test_long_query_leaves_a_quarter_to_the_document(client: TestClient):
    room = BGE_TOKENS - PAIR_SPECIALS - QUERY_ROOM
    last, beyond = (["fox " * count + end for end in ("river", "sky")] for count in (room - 1, room))
    assert np.ptp(scores(client, last, query="tree " * 10_000)) > NEAR
    assert np.ptp(scores(client, beyond, query="tree " * 10_000)) <= NEAR


def test_long_document_beside_short_ones(client: TestClient):
    long = " ".join(np.random.default_rng(1).choice(WORDS, 20_000))
    found = results(client, [*DOCUMENTS, long])
    texts = {result["index"]: result["document"]["text"] for result in found}
    assert texts[len(DOCUMENTS)] == long, "the text must come back whole"
    together = scores(client, [*DOCUMENTS, long])
    expected = np.concatenate([scores(client, DOCUMENTS), scores(client, [long])])
    np.testing.assert_allclose(together, expected, rtol=0, atol=NEAR)


def test_thousand_documents(client: TestClient):
    documents = many_documents(MAX_INPUTS)
    found = results(client, documents)
    assert [result["relevance_score"] for result in found] == sorted(
        (result["relevance_score"] for result in found), reverse=True
    )
    together = scores(client, documents)
    for index in range(0, MAX_INPUTS, 97):
        np.testing.assert_allclose(together[index], scores(client, [documents[index]])[0], rtol=0, atol=NEAR)
    assert found[:10] == results(client, documents, top_n=10)


# --- wrong requests ---------------------------------------------------------------------------------------

# name: body, param, code; the status of all is 422
INVALID: dict[str, tuple[object, str, str]] = {
    "query-missing": ({"model": BGE_RERANKER, "documents": ["a"]}, "query", "missing_field"),
    "query-null": (request(query=None), "query", "missing_field"),
    "query-empty": (request(query=""), "query", "empty_query"),
    "query-blank": (request(query=" \t\n\u3000"), "query", "empty_query"),
    "query-number": (request(query=5), "query", "wrong_type"),
    "query-list": (request(query=["a"]), "query", "wrong_type"),
    "query-object": (request(query={"text": "a"}), "query", "wrong_type"),
    "documents-missing": ({"model": BGE_RERANKER, "query": "a"}, "documents", "missing_field"),
    "documents-null": (request() | {"documents": None}, "documents", "missing_field"),
    "documents-empty": (request([]), "documents", "empty_documents"),
    "documents-string": (request("dog"), "documents", "wrong_type"),
    "documents-object": (request({"text": "dog"}), "documents", "wrong_type"),
    "documents-number": (request(5), "documents", "wrong_type"),
    "document-number": (request(["a", "b", "c", 5]), "documents[3]", "wrong_type"),
    "document-null": (request(["a", None]), "documents[1]", "wrong_type"),
    "document-list": (request([["a"]]), "documents[0]", "wrong_type"),
    "document-boolean": (request([True]), "documents[0]", "wrong_type"),
    "document-without-text": (request(["a", {}]), "documents[1].text", "missing_field"),
    "document-other-field": (request(["a", {"content": "b"}]), "documents[1].text", "missing_field"),
    "document-text-number": (request(["a", {"text": 5}]), "documents[1].text", "wrong_type"),
    "document-text-null": (request([{"text": None}]), "documents[0].text", "wrong_type"),
    "too-many-documents": (request(["a"] * (MAX_INPUTS + 1)), "documents", "too_many_inputs"),
    "top-n-zero": (request(top_n=0), "top_n", "invalid_top_n"),
    "top-n-negative": (request(top_n=-1), "top_n", "invalid_top_n"),
    "top-n-fraction": (request(top_n=1.5), "top_n", "wrong_type"),
    "top-n-string": (request(top_n="2"), "top_n", "wrong_type"),
    "top-n-boolean": (request(top_n=True), "top_n", "wrong_type"),
    "top-n-huge": (request(top_n=10**30), "top_n", "wrong_type"),
    "top-k-zero": (request(top_k=0), "top_n", "invalid_top_n"),
    "top-k-conflict": (request(top_n=1, top_k=2), "top_k", "conflicting_fields"),
    "return-documents-string": (request(return_documents="yes"), "return_documents", "wrong_type"),
    "return-documents-number": (request(return_documents=1), "return_documents", "wrong_type"),
    "model-number": (request(model=5), "model", "wrong_type"),
    "embedding-model": (request(model=MODEL), "model", "wrong_model_type"),
    "other-embedding-model": (request(model=f"BAAI/{BGE_M3}"), "model", "wrong_model_type"),
}
NOT_JSON = {
    "invalid": b"{query: 'x'}",
    "empty": b"",
    "list": [request()],
    "string": QUERY,
    "null": None,
    "surrogate-in-query": json.dumps(request(query="a \ud800 b")).encode(),
    "surrogate-in-document": json.dumps(request(["ok", {"text": "\udc00"}])).encode(),
}


@pytest.mark.parametrize(("body", "param", "code"), INVALID.values(), ids=INVALID)
def test_invalid_request(client: TestClient, body: object, param: str, code: str):
    answer = post(client, body)
    assert_error(answer, 422, param, code)
    assert param in answer.json["detail"], "the message must name the field"


@pytest.mark.parametrize("body", NOT_JSON.values(), ids=NOT_JSON)
def test_body_that_is_no_json_object(client: TestClient, body: object):
    assert_error(post(client, body), 422, None, "invalid_json")


@pytest.mark.parametrize("documents", ["dog", ["a", {}]], ids=["string", "object-without-text"])
def test_message_says_what_documents_are(client: TestClient, documents: object):
    assert "a list of strings, or objects with a 'text'" in post(client, request(documents)).json["detail"]


@pytest.mark.parametrize("fields", [{}, {"model": None}, {"model": DEFAULT}], ids=["absent", "null", "named"])
def test_default_model_that_is_not_loaded(client: TestClient, fields: dict[str, object]):
    answer = post(client, {"query": QUERY, "documents": DOCUMENTS, **fields})
    assert_error(answer, 404, "model", "model_not_found")
    assert all(name in answer.json["detail"] for name in (DEFAULT, MODEL, BGE_M3))
    assert f"Name one that is a reranker ({BGE_RERANKER}), or" in answer.json["detail"]


def test_models_of_the_wrong_kind_are_told_where_to_go(client: TestClient):
    refused = post(client, request(model=BGE_M3))
    assert "embedding" in refused.json["detail"] and "/v1/embeddings" in refused.json["detail"]
    for name in (BGE_RERANKER, f"BAAI/{BGE_RERANKER}"):
        answer = client.simulate_post("/v1/embeddings", json={"model": name, "input": "a"})
        assert_error(answer, 422, "model", "wrong_model_type")
        assert "reranker" in answer.json["detail"] and ROUTE in answer.json["detail"]


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
def test_wrong_method(client: TestClient, method: str):
    answer = client.simulate_request(method, ROUTE)
    assert_error(answer, 405, None, "method_not_allowed")
    assert re.search(r"\bPOST\b", answer.headers["allow"])


def test_wrong_content_type(client: TestClient):
    answer = client.simulate_post(
        ROUTE, body=json.dumps(request()).encode(), headers={"Content-Type": "text/plain"}
    )
    assert_error(answer, 415, None, "unsupported_media_type")


def test_reranker_in_the_list_of_models(client: TestClient):
    listed = {entry["id"]: entry for entry in client.simulate_get("/v1/models").json["data"]}
    found = {field: listed[BGE_RERANKER][field] for field in ("type", "dimensions", "tasks", "max_tokens")}
    assert found == {"type": "reranker", "dimensions": None, "tasks": None, "max_tokens": BGE_TOKENS}
    assert listed[BGE_RERANKER]["owned_by"] == "BAAI"
