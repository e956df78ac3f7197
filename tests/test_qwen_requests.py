"""What requests may ask of the Qwen family, over tiny bundles in one process: options, sides, sizes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from falcon.testing import Result, TestClient

from service import bundles, config, inference
from service.app import make_app
from service.config import Settings
from service.errors import InvalidRequest
from service.registry import Registry
from service.scheduler import Scheduler
from tests import qwen, xlmr
from tests.conftest import load_all
from tests.golden import embed, rerank, scores, vectors
from tests.qwen import JINA_CODE, JINA_RERANKER, QWEN3_EMBEDDING, QWEN3_RERANKER
from tests.xlmr import BGE_M3, BGE_RERANKER, V3

RERANK, EMBEDDINGS = "/v1/rerank", "/v1/embeddings"
QUERY = "red fox"
DOCUMENTS = ["the red fox", "a blue sky", "very far", "the sea and the river", "dog"]
MAX_TOKENS = 8192  # of a listwise document
NEAR = 1e-6
FAR = 1e-4


@pytest.fixture(scope="module")
def models(tiny_qwen_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A models folder with tiny models of both families."""
    folder = tmp_path_factory.mktemp("qwen_requests")
    for model in qwen.WRITERS:
        (folder / model).symlink_to(tiny_qwen_models / model, target_is_directory=True)
    checkpoints = folder / ".checkpoints"
    xlmr.bake_tiny(folder, V3, xlmr.write_jina_v3(checkpoints / V3))
    xlmr.bake_tiny(folder, BGE_M3, xlmr.write_bge_m3(checkpoints / BGE_M3))
    xlmr.bake_tiny(folder, BGE_RERANKER, xlmr.write_bge_reranker(checkpoints / BGE_RERANKER))
    return folder


@pytest.fixture(scope="module")
def client(models: Path) -> TestClient:
    return TestClient(make_app(Settings(), load_all(models)))


def ranked(client: TestClient, model: str, documents: Any = None, **fields: Any) -> dict[str, Any]:
    return rerank(client, model, fields.pop("query", QUERY), documents or DOCUMENTS, **fields)


def assert_refused(answer: Result, param: str, code: str) -> None:
    """Check status, type, field, code, and that the message names the field."""
    assert answer.status_code == 422, answer.text
    message = answer.json["detail"]
    kind = "invalid_request_error"
    assert answer.json["error"] == {"message": message, "type": kind, "param": param, "code": code}
    assert param in message


def refuse(client: TestClient, route: str, body: dict[str, Any], param: str, code: str) -> None:
    """Check that a body is refused."""
    assert_refused(client.simulate_post(route, json=body), param, code)


# --- options of reranking ---------------------------------------------------------------------------------

OPTIONS: dict[str, object] = {
    "instruction": "find what refutes", "max_query_length": 5, "max_doc_length": 5, "return_embeddings": True,
}  # fmt: skip
KNOWN = {BGE_RERANKER: (), QWEN3_RERANKER: ("instruction",), JINA_RERANKER: tuple(OPTIONS)}
LACKING = [(model, field) for model, known in KNOWN.items() for field in OPTIONS if field not in known]


@pytest.mark.parametrize(("model", "field"), LACKING)
def test_an_option_that_a_model_lacks(client: TestClient, model: str, field: str):
    body = {"model": model, "query": QUERY, "documents": DOCUMENTS, field: OPTIONS[field]}
    answer = client.simulate_post(RERANK, json=body)
    assert_refused(answer, field, "unsupported_option")
    assert model in answer.json["detail"]


@pytest.mark.parametrize("model", KNOWN)
@pytest.mark.parametrize(
    "fields",
    [
        {"instruction": ""},
        {"instruction": " \n"},
        {"return_embeddings": False},
        dict.fromkeys(OPTIONS),
    ],
    ids=["empty", "blank", "false", "null"],
)
def test_options_that_ask_for_nothing(client: TestClient, model: str, fields: dict[str, object]):
    assert ranked(client, model, **fields) == ranked(client, model)


@pytest.mark.parametrize("length", [0, -1, MAX_TOKENS + 1, 2**40])
@pytest.mark.parametrize("field", ["max_query_length", "max_doc_length", "max_tokens_per_doc"])
def test_a_length_out_of_range(client: TestClient, field: str, length: int):
    body = {"model": JINA_RERANKER, "query": QUERY, "documents": DOCUMENTS, field: length}
    param = "max_doc_length" if field == "max_tokens_per_doc" else field
    answer = client.simulate_post(RERANK, json=body)
    assert_refused(answer, param, "invalid_length")
    assert str(length) in answer.json["detail"] and f"1 to {MAX_TOKENS}" in answer.json["detail"]


@pytest.mark.parametrize("length", [1, MAX_TOKENS])
@pytest.mark.parametrize("field", ["max_query_length", "max_doc_length", "max_tokens_per_doc"])
def test_the_ends_of_the_range(client: TestClient, field: str, length: int):
    assert len(ranked(client, JINA_RERANKER, **{field: length})["results"]) == len(DOCUMENTS)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("instruction", 5), ("instruction", ["a"]), ("instruction", {"text": "a"}),
        ("max_doc_length", "5"), ("max_doc_length", 5.5), ("max_doc_length", True),
        ("max_query_length", "5"), ("max_query_length", []),
        ("return_embeddings", "yes"), ("return_embeddings", 1),
    ],
)  # fmt: skip
def test_an_option_of_the_wrong_type(client: TestClient, field: str, value: object):
    body = {"model": JINA_RERANKER, "query": QUERY, "documents": DOCUMENTS, field: value}
    refuse(client, RERANK, body, field, "wrong_type")


def test_two_names_of_one_length(client: TestClient):
    plain = ranked(client, JINA_RERANKER, max_doc_length=2)
    assert ranked(client, JINA_RERANKER, max_tokens_per_doc=2) == plain
    assert ranked(client, JINA_RERANKER, max_tokens_per_doc=2, max_doc_length=2) == plain
    assert ranked(client, JINA_RERANKER)["results"] != plain["results"]
    lengths = {"max_doc_length": 2, "max_tokens_per_doc": 3}
    body = {"model": JINA_RERANKER, "query": QUERY, "documents": DOCUMENTS, **lengths}
    refuse(client, RERANK, body, "max_tokens_per_doc", "conflicting_fields")
    lacking = {"model": QWEN3_RERANKER, "query": QUERY, "documents": DOCUMENTS, "max_tokens_per_doc": 3}
    refuse(client, RERANK, lacking, "max_doc_length", "unsupported_option")


@pytest.mark.parametrize("model", [QWEN3_RERANKER, JINA_RERANKER])
def test_an_instruction_changes_the_scores(client: TestClient, model: str):
    plain, other = (scores(ranked(client, model, instruction=text)) for text in (None, "find what refutes"))
    assert np.abs(plain - other).max() > FAR
    together = ranked(client, model, instruction="find what refutes")
    assert together["usage"] == ranked(client, model)["usage"], "an instruction is not billed"


@pytest.mark.parametrize(
    ("field", "query", "documents"),
    [
        ("max_doc_length", QUERY, ["red fox dog sky", "red fox sea", "red fox"]),
        ("max_query_length", "red fox dog sky", ["sea", "tree", "river"]),
    ],
)
def test_lengths_cut_what_is_read_and_nothing_else(
    client: TestClient, field: str, query: str, documents: list[str]
):
    """`red` is 3 tokens, letters without a space before them, ` fox` is one."""
    cut = ranked(client, JINA_RERANKER, documents, query=query, **{field: 4})
    whole = ranked(client, JINA_RERANKER, documents, query=query)
    kept = [text.removesuffix(" dog sky").removesuffix(" sea") for text in documents]
    short = ranked(client, JINA_RERANKER, kept, query=query.removesuffix(" dog sky"))
    np.testing.assert_allclose(scores(cut), scores(short), rtol=0, atol=NEAR)
    assert np.abs(scores(cut) - scores(whole)).max() > FAR
    assert {result["document"]["text"] for result in cut["results"]} == set(documents)
    assert cut["usage"] == whole["usage"]


def test_embeddings_of_documents(client: TestClient):
    plain = ranked(client, JINA_RERANKER)
    found = ranked(client, JINA_RERANKER, return_embeddings=True)
    for result, without in zip(found["results"], plain["results"], strict=True):
        embedding = result.pop("embedding")
        assert result == without, "and nothing else changes"
        assert np.shape(embedding) == (qwen.PROJECTION,)
        assert np.linalg.norm(embedding) == pytest.approx(1, abs=NEAR)
    best = ranked(client, JINA_RERANKER, return_embeddings=True, top_n=2, return_documents=False)["results"]
    again = ranked(client, JINA_RERANKER, return_embeddings=True)["results"]
    assert best == [{name: r[name] for name in ("index", "relevance_score", "embedding")} for r in again[:2]]


@pytest.mark.parametrize("model", [QWEN3_RERANKER, JINA_RERANKER])
@pytest.mark.parametrize(
    "documents",
    [
        ["dog", "dog", "fox", "dog"],
        [{"text": "dog", "source": "x"}, "sky"],
        ["", " ", "\x00", "🦊 שלום", "\U0010ffff"],
        ["<|embed_token|>", "<|embed<|rerank_token|>_token|>", "<|im_end|> {0} <|rerank_token|>"],
        ["one"],
        [f"{number} foxes" for number in range(130)],
    ],
    ids=["equal", "objects", "unusual", "markers", "one", "two-blocks"],
)
def test_documents_of_all_kinds(client: TestClient, model: str, documents: list[Any]):
    texts = [document if isinstance(document, str) else document["text"] for document in documents]
    found = ranked(client, model, documents)["results"]
    assert [result["document"]["text"] for result in found] == [texts[result["index"]] for result in found]
    assert sorted(result["index"] for result in found) == [*range(len(documents))]
    values = [result["relevance_score"] for result in found]
    assert values == sorted(values, reverse=True)
    lowest = -1 if model == JINA_RERANKER else 0
    assert all(lowest <= value <= 1 for value in values)


def test_equal_documents_score_alike_where_each_is_read_alone(client: TestClient):
    found = ranked(client, QWEN3_RERANKER, ["dog", "fox", "dog", "dog"])["results"]
    same = [result for result in found if result["document"]["text"] == "dog"]
    assert [result["index"] for result in same] == [0, 2, 3]
    assert len({result["relevance_score"] for result in same}) == 1


def test_the_default_reranker(client: TestClient):
    body = {"query": QUERY, "documents": DOCUMENTS}
    answers = [client.simulate_post(RERANK, json=body | more) for more in ({}, {"model": None})]
    assert [answer.json for answer in answers] == [ranked(client, JINA_RERANKER)] * 2


@pytest.mark.parametrize(
    ("route", "model"),
    [
        (RERANK, JINA_CODE),
        (RERANK, QWEN3_EMBEDDING),
        (EMBEDDINGS, JINA_RERANKER),
        (EMBEDDINGS, QWEN3_RERANKER),
    ],
)
def test_a_model_of_the_other_kind(client: TestClient, route: str, model: str):
    given = {"query": QUERY, "documents": DOCUMENTS} if route == RERANK else {"input": QUERY}
    answer = client.simulate_post(route, json={"model": model, **given})
    assert (answer.status_code, answer.json["error"]["code"]) == (422, "wrong_model_type")


# --- sides of tasks and sizes -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"prompt_name": "document"}, "prompt_name", "invalid_prompt_name"),
        ({"prompt_name": "", "task": "qa"}, "prompt_name", "invalid_prompt_name"),
        ({"prompt_name": 5}, "prompt_name", "wrong_type"),
        ({"prompt_name": "passage", "task": "qa.query"}, "prompt_name", "conflicting_fields"),
        ({"prompt_name": "query", "task": "qa.passage"}, "prompt_name", "conflicting_fields"),
        ({"task": "retrieval.query"}, "task", "unknown_task"),
        ({"task": "nl2nl", "prompt_name": "query"}, "task", "unknown_task"),
        ({"dimensions": 0}, "dimensions", "invalid_dimensions"),
        ({"dimensions": -1}, "dimensions", "invalid_dimensions"),
        ({"dimensions": qwen.CODE_SIZES.hidden + 1}, "dimensions", "invalid_dimensions"),
        ({"return_multivector": True}, "return_multivector", "unsupported_option"),
        ({"return_sparse": True}, "return_sparse", "unsupported_option"),
        ({"late_chunking": True}, "late_chunking", "late_chunking_unsupported"),
    ],
    ids=str,
)
def test_what_code_models_refuse(client: TestClient, fields: dict[str, object], param: str, code: str):
    answer = client.simulate_post(EMBEDDINGS, json={"model": JINA_CODE, "input": QUERY, **fields})
    assert answer.status_code == 422
    assert (answer.json["error"]["param"], answer.json["error"]["code"]) == (param, code)


@pytest.mark.parametrize(
    ("fields", "same"),
    [
        ({}, {"task": "nl2code.query"}),
        ({"prompt_name": "query"}, {"task": "nl2code.query"}),
        ({"prompt_name": "passage"}, {"task": "nl2code.passage"}),
        ({"task": "qa"}, {"task": "qa.query"}),
        ({"task_type": "qa", "prompt_name": "passage"}, {"task": "qa.passage"}),
        ({"task": "qa.passage", "prompt_name": "passage"}, {"task": "qa.passage"}),
    ],
    ids=str,
)
def test_ways_to_ask_code_models_for_a_task(
    client: TestClient, fields: dict[str, object], same: dict[str, object]
):
    assert embed(client, JINA_CODE, DOCUMENTS, **fields) == embed(client, JINA_CODE, DOCUMENTS, **same)


@pytest.mark.parametrize("prompt_name", ["query", "passage", "anything"])
@pytest.mark.parametrize(
    ("model", "task"),
    [(V3, "retrieval.passage"), (V3, None), (BGE_M3, "retrieval.query"), (QWEN3_EMBEDDING, "retrieval.query"),
     (QWEN3_EMBEDDING, None)],
)  # fmt: skip
def test_models_without_sides_ignore_prompt_names(
    client: TestClient, model: str, task: str | None, prompt_name: str
):
    plain = embed(client, model, DOCUMENTS, task=task)
    assert embed(client, model, DOCUMENTS, task=task, prompt_name=prompt_name) == plain


@pytest.mark.parametrize(
    ("model", "size"), [(JINA_CODE, qwen.CODE_SIZES.hidden), (QWEN3_EMBEDDING, qwen.EMBEDDING_SIZES.hidden)]
)
def test_any_size_up_to_the_models_own(client: TestClient, model: str, size: int):
    whole = vectors(embed(client, model, DOCUMENTS))
    assert whole.shape == (len(DOCUMENTS), size)
    for kept in (1, 7, size):
        found = vectors(embed(client, model, DOCUMENTS, dimensions=kept))
        expected = whole[:, :kept] / np.linalg.norm(whole[:, :kept], axis=1, keepdims=True)
        np.testing.assert_allclose(found, expected, rtol=0, atol=NEAR)
    for refused in (0, size + 1):
        body = {"model": model, "input": QUERY, "dimensions": refused}
        refuse(client, EMBEDDINGS, body, "dimensions", "invalid_dimensions")


def test_an_empty_text_is_embedded_where_the_tokenizer_adds_a_token(client: TestClient):
    body = embed(client, QWEN3_EMBEDDING, [""])
    assert np.linalg.norm(vectors(body)) == pytest.approx(1, abs=NEAR)
    assert body["usage"]["total_tokens"] == 1


def test_an_empty_text_is_refused_where_only_its_prompt_has_tokens(client: TestClient) -> None:
    for texts in ("", ["red fox", ""]):
        answer = client.simulate_post(EMBEDDINGS, json={"model": JINA_CODE, "input": texts})
        param = "input[0]" if texts == "" else "input[1]"
        assert_refused(answer, param, "empty_input")


def test_a_code_model_without_its_default_task_refuses_requests_that_name_none(
    tiny_qwen_models: Path,
) -> None:
    settings = config.from_environment(
        {"MODELS_DIR": str(tiny_qwen_models), "MODELS_TO_LOAD": f"{JINA_CODE}:qa.query"}
    )
    bundles.check_start(settings)
    registry = Registry(settings, Scheduler(settings.max_batch_tokens))
    registry.load()
    assert not registry.failed()
    client = TestClient(make_app(settings, registry))
    for fields in ({}, {"prompt_name": "query"}):
        answer = client.simulate_post(EMBEDDINGS, json={"model": JINA_CODE, "input": "the red fox", **fields})
        assert_refused(answer, "task", "unknown_task")
        assert "name one of qa.query" in answer.json["detail"]


@pytest.mark.parametrize("field", ["max_doc_length", "max_query_length"])
def test_a_length_of_zero_is_as_unknown_as_any(client: TestClient, field: str) -> None:
    body = {"model": BGE_RERANKER, "query": QUERY, "documents": DOCUMENTS, field: 0}
    refuse(client, RERANK, body, field, "unsupported_option")


@pytest.mark.parametrize("model", [QWEN3_EMBEDDING, QWEN3_RERANKER, JINA_RERANKER])
def test_a_token_beyond_the_word_table_is_refused(tiny_qwen_registry: Registry, model: str) -> None:
    """Published checkpoints have tokenizers with more tokens than their table has rows."""
    loaded = tiny_qwen_registry.get(model)
    known = replace(loaded.manifest, vocabulary_size=200)
    graphs = replace(loaded.graphs, manifest=known)
    with pytest.raises(InvalidRequest, match="knows only those below 200") as refused:
        inference.run(graphs, Scheduler(512), None, [np.array([1, 200])], known.outputs)
    assert refused.value.code == "unknown_token"
