"""The HTTP API over a tiny bundle, in one process: what is promised for right and for wrong requests."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import logging
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from falcon.testing import Result, TestClient
from tokenizers import Tokenizer

from service import manifest as contract
from service.app import make_app
from service.bundles import check_start
from service.config import Settings
from service.graphs import Graphs
from service.logs import LOGGER_NAME, JsonFormatter
from service.registry import Registry
from service.scheduler import Scheduler
from tests.checkpoints import HIDDEN, MAX_TOKENS
from tests.conftest import MODEL

ROUTE = "/v1/embeddings"
TEXT = "a red fox"
LONG = "word " * MAX_TOKENS
NAMES = ["vulpes", "canis", "felis"]
MAX_INPUTS, MAX_BODY_BYTES = 100, 1 << 20  # of the client fixture


def post(client: TestClient, body: object, **headers: str) -> Result:
    """Send a body, bytes as they are and anything else as JSON."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return client.simulate_post(ROUTE, body=content, headers={"Content-Type": "application/json"} | named)


def request(given: object = TEXT, **fields: object) -> dict[str, object]:
    return {"model": MODEL, "input": given, **fields}


def embeddings(client: TestClient, given: object, **fields: object) -> list[Any]:
    answer = post(client, request(given, **fields))
    assert answer.status_code == 200, answer.text
    return [item["embedding"] for item in answer.json["data"]]


def vectors(client: TestClient, given: object, **fields: object) -> np.ndarray:
    return np.array(embeddings(client, given, **fields), dtype=np.float32)


def assert_error(answer: Result, status: int, param: str | None, code: str) -> None:
    """Check the one body of all errors."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"].startswith("application/json")
    assert set(answer.json) == {"error", "detail"}
    error = answer.json["error"]
    kind = "internal_error" if status >= 500 else "invalid_request_error"
    assert error == {"message": error["message"], "type": kind, "param": param, "code": code}
    assert isinstance(error["message"], str) and error["message"]
    assert answer.json["detail"] == error["message"]
    assert re.fullmatch("[a-z0-9_]+", error["code"])


# --- right requests -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "texts"),
    [
        pytest.param(TEXT, [TEXT], id="string"),
        pytest.param([TEXT], [TEXT], id="list"),
        pytest.param({"text": TEXT}, [TEXT], id="object"),
        pytest.param([{"text": TEXT}], [TEXT], id="list-of-objects"),
        pytest.param([TEXT, {"text": "other"}, TEXT], [TEXT, "other", TEXT], id="mixed"),
        pytest.param({"text": TEXT, "image": None, "note": 1}, [TEXT], id="object-with-more"),
    ],
)
def test_input_forms_give_equal_vectors(client: TestClient, given: object, texts: list[str]):
    expected = np.concatenate([vectors(client, [text]) for text in texts])
    np.testing.assert_allclose(vectors(client, given), expected, rtol=0, atol=1e-6)


def test_response_body(client: TestClient):
    answer = post(client, request([TEXT, "b"]))
    assert answer.headers["content-type"].startswith("application/json")
    assert list(answer.json) == ["object", "model", "data", "usage"]
    assert (answer.json["object"], answer.json["model"]) == ("list", MODEL)
    for index, item in enumerate(answer.json["data"]):
        assert item == {"object": "embedding", "index": index, "embedding": item["embedding"]}
        assert len(item["embedding"]) == HIDDEN and all(type(x) is float for x in item["embedding"])
    assert len(answer.json["data"]) == 2


@pytest.mark.parametrize(
    "texts",
    [[TEXT], ["a", "bcd", TEXT], [""], [LONG], [TEXT, LONG, "fuchs 🦊", "x" * 47, "x" * 46, "x" * 45]],
    ids=["one", "several", "empty", "truncated", "around-the-limit"],
)
def test_usage_counts_tokens(client: TestClient, tiny_models: Path, texts: list[str]):
    tokenizer = Tokenizer.from_file(str(tiny_models / MODEL / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    expected = sum(min(len(tokenizer.encode(text).ids), MAX_TOKENS) for text in texts)
    usage = post(client, request(texts, truncate=True)).json["usage"]
    assert usage == {"prompt_tokens": expected, "total_tokens": expected}


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("x " * 60, "x " * (MAX_TOKENS - 2)),
        ("x " * 100_000, "x " * (MAX_TOKENS - 2)),
        ("word " * 2_000 + "end", "word " * 11 + "wo"),
        (" " * 100_000 + "fox", "fox"),
        ("\x00" * 100_000 + "fox", "fox"),
        ("fox" + "\t" * 100_000 + "hen", "fox hen"),
    ],
    ids=["little", "far", "words", "blanks", "nuls", "gap"],
)
def test_truncation_keeps_the_first_tokens(client: TestClient, text: str, same: str):
    cut, whole = (post(client, request(given, truncate=True)).json for given in (text, same))
    assert cut["usage"] == whole["usage"]
    np.testing.assert_allclose(cut["data"][0]["embedding"], whole["data"][0]["embedding"], rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "text",
    [" " * 100_000 + "x" * 47, "x " * 100_000, "\x00" * 100_000 + "x " * 60],
    ids=["blanks", "far", "nuls"],
)
def test_very_long_text_is_refused(client: TestClient, text: str):
    assert_error(post(client, request(["a", text])), 422, "input[1]", "input_too_long")


@pytest.mark.parametrize("text", [TEXT, "", "\x00", LONG], ids=["text", "empty", "nul", "truncated"])
def test_vectors_have_unit_length(client: TestClient, text: str):
    np.testing.assert_allclose(np.linalg.norm(vectors(client, text, truncate=True)), 1, rtol=0, atol=1e-6)


def test_order_is_that_of_the_request(client: TestClient):
    lengths = np.random.default_rng(0).permutation(np.arange(MAX_INPUTS) % 60)
    texts = [f"{index} " + "abcdefghij"[index % 10] * length for index, length in enumerate(lengths)]
    together = vectors(client, texts, truncate=True)
    alone = np.concatenate([vectors(client, text, truncate=True) for text in texts])
    np.testing.assert_allclose(together, alone, rtol=0, atol=1e-6)
    assert (together.astype(np.float64) * alone).sum(axis=1).min() >= 0.999999
    assert len(np.unique(alone.round(4), axis=0)) > MAX_INPUTS / 2, "the texts are too alike to show an order"


@pytest.mark.parametrize(
    "text",
    ["", " ", "\x00", "a\x00b", "\t\n\r", "🦊👩‍👩‍👧", "\u202e\ufeff", "한국어 עברית", "\U0010ffff"],
    ids=["empty", "blank", "nul", "nul-inside", "whitespace", "emoji", "invisible", "scripts", "last-plane"],
)
def test_unusual_texts_are_embedded(client: TestClient, text: str):
    assert np.isfinite(vectors(client, [text, TEXT])).all()


# --- embedding_type, dimensions, ignored fields ---------------------------------------------------------


def test_base64_is_little_endian_float32(client: TestClient):
    for encoded, vector in zip(
        embeddings(client, NAMES, embedding_type="base64"), vectors(client, NAMES), strict=True
    ):
        np.testing.assert_array_equal(np.frombuffer(base64.b64decode(encoded, validate=True), "<f4"), vector)


def test_binary_is_packed_signs_minus_128(client: TestClient):
    binary = embeddings(client, NAMES, embedding_type="binary")
    expected = np.packbits(vectors(client, NAMES) > 0, axis=1, bitorder="big").astype(int) - 128
    assert binary == expected.tolist()
    assert all(type(number) is int for row in binary for number in row)


@pytest.mark.parametrize("embedding_type", ["float", "base64", "binary"])
def test_one_element_list_is_unwrapped(client: TestClient, embedding_type: str):
    assert embeddings(client, TEXT, embedding_type=[embedding_type]) == embeddings(
        client, TEXT, embedding_type=embedding_type
    )


def test_refusal_of_ubinary_says_how_to_get_it(client: TestClient):
    message = post(client, request(embedding_type="ubinary")).json["detail"]
    assert all(word in message for word in ("ubinary", "binary", "128"))


@pytest.mark.parametrize(
    "fields",
    [
        {"normalized": False},
        {"normalized": True},
        {"dimensions": HIDDEN},
        {"late_chunking": False},
        {"return_multivector": False},
        {"truncate": False},
        {"prompt_name": "query"},
        {"embedding_type": "float"},
        {"user": "me", "unknown": {"deep": [1]}},
        dict.fromkeys(
            ("embedding_type", "task", "dimensions", "prompt_name", "late_chunking", "truncate"), None
        ),
        dict.fromkeys(("normalized", "return_multivector", "texts", "task_type", "truncation"), None),
    ],
    ids=lambda fields: "-".join(fields),
)
def test_fields_without_effect(client: TestClient, fields: dict[str, object]):
    assert post(client, request(**fields)).json == post(client, request()).json


# --- aliases --------------------------------------------------------------------------------------------

ALIASES = [
    # field, alias, value with an effect, contradicting value
    ("input", "texts", [TEXT], ["other"]),
    ("input", "content", TEXT, "other"),
    ("task", "task_type", "retrieval.query", "separation"),
    ("dimensions", "output_dimension", 16, HIDDEN),
    ("dimensions", "output_dimensionality", 16, HIDDEN),
    ("truncate", "truncation", True, False),
    ("embedding_type", "encoding_type", "base64", "float"),
    ("embedding_type", "encoding_format", "base64", "float"),
    ("embedding_type", "embedding_types", ["base64"], ["float"]),
]
each_alias = pytest.mark.parametrize(
    ("field", "alias", "value", "other"), ALIASES, ids=[alias for _, alias, _, _ in ALIASES]
)


def aliased(field: str, **fields: object) -> dict[str, object]:
    given = {} if field == "input" else {"input": LONG if field == "truncate" else TEXT}
    return {"model": MODEL, **given, **fields}


@each_alias
def test_alias_does_what_its_field_does(
    client: TestClient, field: str, alias: str, value: object, other: object
):
    plain = post(client, aliased(field, **{field: value}))
    for body in (aliased(field, **{alias: value}), aliased(field, **{field: None, alias: value})):
        assert (post(client, body).status_code, post(client, body).json) == (plain.status_code, plain.json)
    assert post(client, aliased(field)).json != plain.json, "the value has no effect"


@each_alias
def test_alias_beside_its_field(client: TestClient, field: str, alias: str, value: object, other: object):
    plain = post(client, aliased(field, **{field: value}))
    assert post(client, aliased(field, **{field: value, alias: value})).json == plain.json
    assert post(client, aliased(field, **{field: value, alias: None})).json == plain.json
    contradicting = post(client, aliased(field, **{field: value, alias: other}))
    assert_error(contradicting, 422, alias, "conflicting_fields")
    assert field in contradicting.json["detail"]


def test_aliases_that_contradict_each_other(client: TestClient):
    assert post(client, {"model": MODEL, "texts": ["a"], "content": ["b"]}).status_code == 422


def test_alias_equal_but_of_another_type(client: TestClient):
    assert post(client, request(truncate=True, truncation=1)).status_code == 422


# --- models ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["sentence-transformers/all-MiniLM-L6-v2", "ALL-minilm-L6-V2", f"x/{MODEL}"])
def test_other_spellings_find_the_model(client: TestClient, name: str):
    answer = post(client, {"model": name, "input": TEXT})
    assert (answer.status_code, answer.json) == (200, post(client, request()).json)


@pytest.mark.parametrize("name", ["nope", "", "jinaai/jina-embeddings-v3", MODEL + "/", MODEL[:-1]])
def test_unknown_model(client: TestClient, name: str):
    answer = post(client, {"model": name, "input": TEXT})
    assert_error(answer, 404, "model", "model_not_found")
    assert f"Loaded models: {MODEL}. Name one of these" in answer.json["detail"]


def test_an_unknown_model_gets_the_near_one_and_those_of_its_kind(client: TestClient):
    answer = post(client, {"model": "x/all-minilm-l6-v3", "input": TEXT})
    assert f"Did you mean {MODEL}?" in answer.json["detail"]
    answer = client.simulate_post("/v1/rerank", json={"query": TEXT, "documents": [TEXT]})
    assert answer.status_code == 404
    assert (
        f"Loaded models: {MODEL}, none of which is a reranker: have the server bake" in answer.json["detail"]
    )


def test_a_wrong_method_is_answered_with_the_right_ones(client: TestClient):
    answer = client.simulate_get("/v1/embeddings")
    assert_error(answer, 405, None, "method_not_allowed")
    assert answer.json["detail"].endswith(f"It takes {answer.headers['allow']}.")
    assert "POST" in answer.headers["allow"]


def test_models_list(client: TestClient, tiny_models: Path):
    created = json.loads((tiny_models / MODEL / "manifest.json").read_text())["created"]
    expected = {
        "id": MODEL,
        "object": "model",
        "created": created,
        "owned_by": "sentence-transformers",
        "type": "embedding",
        "max_tokens": MAX_TOKENS,
        "dimensions": HIDDEN,
        "supports_multimodal": False,
        "tasks": None,
    }
    body = client.simulate_get("/v1/models").json
    assert body["object"] == "list" and len(body["data"]) == 1
    assert body["data"][0] | expected == body["data"][0]
    assert (body["data"][0]["precision"], body["data"][0]["verified"]) == ("fp32", True)


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/livez"])
def test_health(client: TestClient, path: str):
    answer = client.simulate_get(path)
    assert (answer.status_code, answer.json) == (200, {"status": "ok"})


def test_root_names_the_service_and_its_models(client: TestClient):
    answer = client.simulate_get("/")
    assert (answer.status_code, answer.json["name"]) == (200, "jina-onnx-server")
    assert answer.json["models"] == [MODEL]


# --- wrong requests -------------------------------------------------------------------------------------

NOT_JSON = {
    "invalid": b"{input: 'x'}",
    "empty": b"",
    "blank": b"  \n",
    "cut-off": b'{"model": "m", "input": "a',
    "two-documents": b"{}{}",
    "nan": b'{"dimensions": NaN}',
    "raw-nul": b'{"input": "a\x00b"}',
    "deep": b"[" * 100_000,
    "deep-inside": b'{"input": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "deep-objects": b'{"a":' * 100_000,
    "utf-8": b'{"input": "\xff\xfe"}',
    "utf-16": '{"input": "a"}'.encode("utf-16"),
    "utf-8-surrogate": b'{"input": "\xed\xa0\x80"}',
    "surrogate-high": rb'{"model": "all-minilm-l6-v2", "input": "a \ud800 b and more"}',
    "surrogate-low": rb'{"model": "all-minilm-l6-v2", "input": "a \udc00 b and more"}',
    "surrogate-end": rb'{"model": "all-minilm-l6-v2", "input": "\ud800"}',
    "surrogate-pair-swapped": rb'{"model": "all-minilm-l6-v2", "input": ["ok", "\ude00\ud83d"]}',
    "surrogate-in-model": rb'{"model": "\ud800", "input": "a"}',
    "surrogate-in-unknown-field": rb'{"model": "all-minilm-l6-v2", "input": "a", "user": "\ud800 x"}',
    "list": [request()],
    "string": TEXT,
    "number": 5,
    "null": None,
}
# name: body, param, code; the status of all is 422
INVALID: dict[str, tuple[object, str, str]] = {
    "model-missing": ({"input": TEXT}, "model", "missing_field"),
    "model-null": ({"model": None, "input": TEXT}, "model", "missing_field"),
    "model-number": ({"model": 5, "input": TEXT}, "model", "wrong_type"),
    "model-list": ({"model": [MODEL], "input": TEXT}, "model", "wrong_type"),
    "input-missing": ({"model": MODEL}, "input", "missing_field"),
    "input-null": (request(None), "input", "missing_field"),
    "input-number": (request(5), "input", "wrong_type"),
    "input-boolean": (request(True), "input", "wrong_type"),
    "input-empty-list": (request([]), "input", "empty_input"),
    "input-empty-object": (request({}), "input.text", "missing_field"),
    "input-object-number": (request({"text": 5}), "input.text", "wrong_type"),
    "input-image": (request([{"image": "a.png"}]), "input[0].image", "images_unsupported"),
    "input-token-ids": (request([101, 102]), "input[0]", "wrong_type"),
    "input-item-number": (request([TEXT, 5]), "input[1]", "wrong_type"),
    "input-item-null": (request([TEXT, TEXT, None]), "input[2]", "wrong_type"),
    "input-item-list": (request([TEXT, [TEXT]]), "input[1]", "wrong_type"),
    "input-item-object-number": (request([TEXT, {"text": 5}]), "input[1].text", "wrong_type"),
    "input-item-object-null": (request([{"text": None}]), "input[0].text", "missing_field"),
    "too-many-inputs": (request(["a"] * (MAX_INPUTS + 1)), "input", "too_many_inputs"),
    "too-long": (request(LONG), "input[0]", "input_too_long"),
    "too-long-item": (request([TEXT, LONG, LONG], truncate=False), "input[1]", "input_too_long"),
    "embedding-type-number": (request(embedding_type=5), "embedding_type", "wrong_type"),
    "embedding-type-object": (request(embedding_type={"float": True}), "embedding_type", "wrong_type"),
    "embedding-type-list-number": (request(embedding_type=[5]), "embedding_type[0]", "wrong_type"),
    "embedding-type-two": (
        request(embedding_type=["float", "binary"]), "embedding_type", "invalid_embedding_type"
    ),
    "embedding-type-none": (request(embedding_type=[]), "embedding_type", "invalid_embedding_type"),
    "embedding-type-unknown": (request(embedding_type="int4"), "embedding_type", "invalid_embedding_type"),
    "embedding-type-case": (request(embedding_type="Float"), "embedding_type", "invalid_embedding_type"),
    "embedding-type-empty": (request(embedding_type=""), "embedding_type", "invalid_embedding_type"),
    "ubinary": (request(embedding_type="ubinary"), "embedding_type", "invalid_embedding_type"),
    "ubinary-in-list": (request(embedding_type=["ubinary"]), "embedding_type", "invalid_embedding_type"),
    "dimensions-string": (request(dimensions="32"), "dimensions", "wrong_type"),
    "dimensions-fraction": (request(dimensions=31.5), "dimensions", "wrong_type"),
    "dimensions-boolean": (request(dimensions=True), "dimensions", "wrong_type"),
    "dimensions-list": (request(dimensions=[32]), "dimensions", "wrong_type"),
    "dimensions-zero": (request(dimensions=0), "dimensions", "invalid_dimensions"),
    "dimensions-negative": (request(dimensions=-HIDDEN), "dimensions", "invalid_dimensions"),
    "dimensions-less": (request(dimensions=HIDDEN // 2), "dimensions", "invalid_dimensions"),
    "dimensions-more": (request(dimensions=HIDDEN + 1), "dimensions", "invalid_dimensions"),
    "dimensions-huge": (request(dimensions=2**40), "dimensions", "invalid_dimensions"),
    "task": (request(task="text-matching"), "task", "unknown_task"),
    "task-number": (request(task=5), "task", "wrong_type"),
    "prompt-name-number": (request(prompt_name=5), "prompt_name", "wrong_type"),
    "late-chunking-string": (request(late_chunking="yes"), "late_chunking", "wrong_type"),
    "late-chunking-number": (request(late_chunking=1), "late_chunking", "wrong_type"),
    "truncate-string": (request(truncate="true"), "truncate", "wrong_type"),
    "truncate-number": (request(truncate=0), "truncate", "wrong_type"),
    "normalized-string": (request(normalized="yes"), "normalized", "wrong_type"),
    "multivector-string": (request(return_multivector="yes"), "return_multivector", "wrong_type"),
    "multivector": (request(return_multivector=True), "return_multivector", "unsupported_option"),
}  # fmt: skip


@pytest.mark.parametrize("body", NOT_JSON.values(), ids=NOT_JSON)
def test_body_that_is_no_json_object(client: TestClient, body: object):
    assert_error(post(client, body), 422, None, "invalid_json")


@pytest.mark.parametrize(("body", "param", "code"), INVALID.values(), ids=INVALID)
def test_invalid_request(client: TestClient, body: object, param: str, code: str):
    answer = post(client, body)
    assert_error(answer, 422, param, code)
    assert param in answer.json["detail"], "the message must name the field"


@pytest.mark.parametrize("number", [2**63, 2**64, 10**30, -(10**30), 1e300])
def test_numbers_beyond_64_bits(client: TestClient, number: float):
    answer = post(client, request(dimensions=number))
    assert (answer.status_code, answer.json["error"]["param"]) == (422, "dimensions")


def test_too_long_names_tokens_limit_and_remedy(client: TestClient):
    message = post(client, request(["a", "x" * 100])).json["detail"]
    assert all(part in message for part in ("input[1]", "102 tokens", str(MAX_TOKENS), "truncate"))


def test_texts_up_to_the_limit_pass(client: TestClient):
    assert post(client, request("x" * (MAX_TOKENS - 2))).status_code == 200
    assert post(client, request("x" * (MAX_TOKENS - 1))).status_code == 422
    assert post(client, request(["a"] * MAX_INPUTS)).status_code == 200


def test_late_chunking_is_refused_in_its_own_form(client: TestClient):
    answer = post(client, request(late_chunking=True))
    message = f"Model {MODEL} does not support late_chunking."
    assert answer.status_code == 422
    assert answer.json["detail"] == {"error": {"message": message, "type": "internal_error"}}
    assert answer.json["error"] == {
        "message": message,
        "type": "invalid_request_error",
        "param": "late_chunking",
        "code": "late_chunking_unsupported",
    }


# --- HTTP ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH"])
@pytest.mark.parametrize("path", [ROUTE, ROUTE + "/"])
def test_wrong_method(client: TestClient, method: str, path: str):
    answer = client.simulate_request(method, path)
    assert_error(answer, 405, None, "method_not_allowed")
    assert "POST" in answer.headers["allow"]


@pytest.mark.parametrize("path", ["/nope", "/v1", "/v1/rerankers", "/v1/embeddings/x"])
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_unknown_route(client: TestClient, method: str, path: str):
    assert_error(client.simulate_request(method, path), 404, None, "route_not_found")


@pytest.mark.parametrize(
    ("method", "path", "meant"),
    [
        ("POST", "/v1/embedding", ROUTE),
        ("POST", "/embeddings", ROUTE),
        ("POST", "/V1/Embeddings", ROUTE),
        ("POST", "/v1/embeddings/x", ROUTE),
        ("POST", "/rerank", "/v1/rerank"),
        ("POST", "/v1/reranker", "/v1/rerank"),
        ("POST", "/v1/tokenise", "/v1/tokenize"),
        ("POST", "/v1/multivector", "/v1/multi-vector"),
        ("GET", "/models", "/v1/models"),
        ("GET", "/health", "/healthz"),
        ("GET", "/v1/embedding", ROUTE),  # with a 405 that says POST
        ("GET", "/doc", "/docs"),
    ],
)
def test_an_unknown_route_that_is_nearly_one(client: TestClient, method: str, path: str, meant: str):
    answer = client.simulate_request(method, path)
    assert_error(answer, 404, None, "route_not_found")
    assert answer.json["detail"].endswith(f" Did you mean {meant}?")


@pytest.mark.parametrize("path", ["/nope", "/v1/chat/completions", "/x" * 4000, "/static/nope.js"])
def test_an_unknown_route_that_is_far_from_all(client: TestClient, path: str):
    answer = client.simulate_get(path)
    assert_error(answer, 404, None, "route_not_found")
    assert "Did you mean" not in answer.text


@pytest.mark.parametrize(
    "content_type",
    ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "application/xml"],
)
def test_wrong_content_type(client: TestClient, content_type: str):
    answer = post(client, request(), Content_Type=content_type)
    assert_error(answer, 415, None, "unsupported_media_type")
    assert "application/json" in answer.json["detail"]


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Content-Type": ""},
        {"Content-Type": "application/json; charset=utf-8"},
        {"Content-Type": "application/json;charset=UTF-8"},
        {"Content-Type": "Application/JSON"},
    ],
    ids=["missing", "empty", "charset", "charset-upper", "upper"],
)
def test_content_type_of_json(client: TestClient, headers: dict[str, str]):
    answer = client.simulate_post(ROUTE, body=json.dumps(request()).encode(), headers=headers)
    assert answer.status_code == 200, answer.text


def test_body_size_limit(client: TestClient):
    empty = len(json.dumps(request("", truncate=True)))
    largest = request("x" * (MAX_BODY_BYTES - empty), truncate=True)
    assert len(json.dumps(largest)) == MAX_BODY_BYTES
    assert post(client, largest).status_code == 200
    answer = post(client, json.dumps(largest).encode() + b" ")
    assert_error(answer, 413, None, "body_too_large")
    assert str(MAX_BODY_BYTES) in answer.json["detail"]


SENT_WRONG: dict[str, Callable[[TestClient, str], Result]] = {
    "ok": lambda client, given: post(client, request(), X_Request_ID=given),
    "422": lambda client, given: post(client, b"{", X_Request_ID=given),
    "404": lambda client, given: client.simulate_get("/nope", headers={"X-Request-ID": given}),
    "405": lambda client, given: client.simulate_get(ROUTE, headers={"X-Request-ID": given}),
    "415": lambda client, given: post(client, b"", X_Request_ID=given, Content_Type="text/plain"),
}


@pytest.mark.parametrize("send", SENT_WRONG.values(), ids=SENT_WRONG)
def test_request_id(client: TestClient, send: Callable[[TestClient, str], Result]):
    for sane in ("8f3c-1", "a" * 128, "Trace.1:2_3"):
        assert send(client, sane).headers["x-request-id"] == sane
    made = {send(client, odd).headers["x-request-id"] for odd in ("", "a b", "a" * 129, '"><', "\xe9")}
    assert len(made) == 5 and all(re.fullmatch("[0-9a-f]{32}", request_id) for request_id in made)


# --- the log ---------------------------------------------------------------------------------------------


class Recorder(logging.Handler):
    """Keeps what is logged."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> list[logging.LogRecord]:
    """The service's log records, whatever logging another test has set up."""
    recorder = Recorder()
    logger = logging.getLogger(LOGGER_NAME)
    monkeypatch.setattr(logger, "handlers", [recorder])
    monkeypatch.setattr(logger, "propagate", False)
    caplog.set_level(logging.INFO, logger=LOGGER_NAME)
    return recorder.records


SECRET = "my secret words"
LOGGED: dict[str, tuple[object, int, dict[str, object]]] = {
    "ok": (request([SECRET, "a"]), 200, {"model": MODEL, "inputs": 2, "tokens": 17 + 1}),
    "not-json": (b'{"input": "my secret words', 422, {"code": "invalid_json"}),
    "wrong-type": (request([SECRET, 5]), 422, {"code": "wrong_type"}),
    "too-long": (request(SECRET * 9), 422, {"model": MODEL, "inputs": 1, "code": "input_too_long"}),
    "unknown-model": ({"model": "nope", "input": SECRET}, 404, {"code": "model_not_found"}),
}


@pytest.mark.parametrize(("body", "status", "fields"), LOGGED.values(), ids=LOGGED)
def test_one_line_per_request_without_its_texts(
    client: TestClient,
    lines: list[logging.LogRecord],
    body: object,
    status: int,
    fields: dict[str, object],
):
    post(client, body, X_Request_ID="call-1")
    (line,) = lines
    expected = {"request_id": "call-1", "method": "POST", "path": ROUTE, "status": status, **fields}
    assert vars(line)["fields"] | expected == vars(line)["fields"]
    written = JsonFormatter().format(line)
    assert "secret" not in written and "secret" not in repr(vars(line))
    assert "\n" not in written and json.loads(written)["request_id"] == "call-1"


def test_each_request_has_its_own_line(client: TestClient, lines: list[logging.LogRecord]):
    paths = ["/healthz", "/nope", "/v1/models"]
    for path in paths:
        client.simulate_get(path)
    assert [(vars(line)["fields"]["path"], vars(line)["fields"]["status"]) for line in lines] == [
        ("/healthz", 200), ("/nope", 404), ("/v1/models", 200),
    ]  # fmt: skip


# --- models that do not serve ----------------------------------------------------------------------------


def service(models: Path, *, load: bool = True, **settings: Any) -> tuple[TestClient, Registry]:
    given = Settings(models_dir=models, **settings)
    registry = Registry(given, Scheduler(given.max_batch_tokens))
    if load:
        registry.load()
    return TestClient(make_app(given, registry)), registry


def test_model_that_is_loading(tiny_models: Path):
    client, registry = service(tiny_models, load=False)
    answer = post(client, request())
    assert_error(answer, 503, "model", "model_loading")
    assert int(answer.headers["retry-after"]) > 0
    health = {path: client.simulate_get(path) for path in ("/healthz", "/readyz", "/livez", "/v1/models")}
    assert {path: found.status_code for path, found in health.items()} == {
        "/healthz": 503, "/readyz": 503, "/livez": 200, "/v1/models": 200,
    }  # fmt: skip
    assert health["/healthz"].json == {"status": "loading"}
    assert health["/v1/models"].json == {"object": "list", "data": []}
    registry.load()
    assert post(client, request()).status_code == client.simulate_get("/healthz").status_code == 200


def edit_manifest(bundle: Path, **fields: object) -> None:
    path = bundle / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def cut(path: Path, num_bytes: int = 100) -> None:
    path.write_bytes(path.read_bytes()[:-num_bytes])


def fill(path: Path, content: bytes) -> None:
    """Replace a file's content, keep its size."""
    path.write_bytes(content * (path.stat().st_size // len(content)))


def bake_nan(bundle: Path) -> None:
    """Fill the weights with NaN as a bake would have: with their hash in the manifest."""
    name = "fp32/weights.data"
    fill(bundle / name, b"\xff\xff\xff\xff")
    records = json.loads((bundle / "manifest.json").read_bytes())["files"]
    records[name]["sha256"] = hashlib.sha256((bundle / name).read_bytes()).hexdigest()
    edit_manifest(bundle, files=records)


# damage, what the reason says
DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "manifest-cut": (lambda bundle: cut(bundle / "manifest.json"), "not a valid manifest"),
    "manifest-empty": (lambda bundle: (bundle / "manifest.json").write_bytes(b""), "not a valid manifest"),
    "manifest-list": (lambda bundle: (bundle / "manifest.json").write_text("[]"), "not a valid manifest"),
    "manifest-utf-8": (lambda bundle: (bundle / "manifest.json").write_bytes(b'{"a": "\xff"}'), "manifest"),
    "manifest-deep": (lambda bundle: (bundle / "manifest.json").write_text('{"a":' * 99_999), "manifest"),
    "manifest-type": (lambda bundle: edit_manifest(bundle, dimensions="wide"), "dimensions"),
    "manifest-negative": (lambda bundle: edit_manifest(bundle, max_tokens=-1), "max_tokens"),
    "manifest-other-name": (lambda bundle: edit_manifest(bundle, name="other"), "other"),
    "newer-format": (
        lambda bundle: edit_manifest(bundle, format_version=contract.FORMAT_VERSION + 1),
        "format_version",
    ),
    "no-variants": (lambda bundle: edit_manifest(bundle, variants=[]), "variants"),
    "weights-cut": (lambda bundle: cut(bundle / "fp32/weights.data"), "fp32/weights.data"),
    "graph-missing": (lambda bundle: (bundle / "fp32/model.onnx").unlink(), "fp32/model.onnx"),
    "graph-garbage": (lambda bundle: fill(bundle / "fp32/model.onnx", b"x"), "fp32/model.onnx"),
    "tokenizer-garbage": (lambda bundle: fill(bundle / "tokenizer.json", b"x"), "tokenizer.json"),
    "weights-flipped": (
        lambda bundle: fill(bundle / "fp32/weights.data", b"\xff\xff\xff\xff"),
        "fp32/weights.data does not have its recorded sha256",
    ),
    "weights-nan": (bake_nan, "not finite"),
}


@pytest.mark.parametrize(("damage", "reason"), DAMAGE.values(), ids=DAMAGE)
def test_broken_bundle(
    tiny_models: Path,
    tmp_path: Path,
    lines: list[logging.LogRecord],
    damage: Callable[[Path], object],
    reason: str,
):
    for name in (MODEL, "good"):
        shutil.copytree(tiny_models / MODEL, tmp_path / name)
    edit_manifest(tmp_path / "good", name="good")
    damage(tmp_path / MODEL)
    check_start(Settings(models_dir=tmp_path))  # a broken bundle does not stop the start
    client, _ = service(tmp_path)
    health = client.simulate_get("/healthz")
    assert (health.status_code, health.json["status"], list(health.json["failed"])) == (503, "error", [MODEL])
    assert reason in health.json["failed"][MODEL]
    refused = post(client, request())
    assert_error(refused, 503, "model", "model_failed")
    assert health.json["failed"][MODEL] in refused.json["detail"]
    assert client.simulate_get("/readyz").status_code == 200
    assert [model["id"] for model in client.simulate_get("/v1/models").json["data"]] == ["good"]
    assert post(client, {"model": "good", "input": TEXT}).status_code == 200
    assert [line.levelname for line in lines if "failed" in line.getMessage()] == ["ERROR"]


def test_only_bundle_is_broken(tiny_models: Path, tmp_path: Path):
    shutil.copytree(tiny_models / MODEL, tmp_path / MODEL)
    cut(tmp_path / MODEL / "manifest.json")
    client, _ = service(tmp_path)
    assert client.simulate_get("/readyz").status_code == 503
    assert client.simulate_get("/livez").status_code == 200


@dataclasses.dataclass(eq=False)
class ConstantSession:
    """A graph that answers one number everywhere."""

    may_pad = True
    has_narrow = False

    number: float

    def run(self, inputs: dict[str, np.ndarray], outputs: Sequence[str]) -> list[np.ndarray]:
        return [np.full((len(inputs["input_ids"]), HIDDEN), self.number, dtype=np.float32) for _ in outputs]


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_withheld(
    tiny_models: Path, monkeypatch: pytest.MonkeyPatch, lines: list[logging.LogRecord], number: float
):
    client, registry = service(tiny_models)
    monkeypatch.setattr(Graphs, "session", lambda graphs, task: ConstantSession(number))
    assert_error(post(client, request()), 500, None, "model_output_not_finite")
    assert lines[-1].levelname == "ERROR"


def test_unforeseen_failure(
    tiny_models: Path, monkeypatch: pytest.MonkeyPatch, lines: list[logging.LogRecord]
):
    client, registry = service(tiny_models)
    secret = "an inner secret"

    def fail(*_: object) -> None:
        raise RuntimeError(secret)

    monkeypatch.setattr(registry, "get", fail)
    answer = post(client, request(), X_Request_ID="call-2")
    assert_error(answer, 500, None, "internal_error")
    assert "secret" not in answer.text and "call-2" in answer.json["detail"]
    (written,) = (vars(line)["fields"] for line in lines if line.getMessage() == "unexpected error")
    assert written["request_id"] == "call-2"
    assert "RuntimeError" in written["error"] and "in fail" in written["error"]
    assert secret not in written["error"], "a message may quote the request"


@pytest.mark.parametrize("route", ["/healthz", "/readyz", "/livez"])
def test_health_answers_head(client: TestClient, route: str):
    answer = client.simulate_head(route)
    assert (answer.status_code, answer.text) == (200, "")
