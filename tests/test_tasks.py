"""Tasks, sizes, late chunking and the extra vectors of the XLM-R family, over tiny bundles in one process."""

from __future__ import annotations

import base64
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from falcon.testing import Result, TestClient
from tokenizers import Tokenizer

from service import bundles, config
from service.app import make_app
from service.embedding import MAX_COLBERT_TOKENS
from service.errors import ConfigError
from service.registry import Registry
from service.scheduler import Scheduler
from tests import xlmr
from tests.conftest import MODEL
from tests.xlmr import BGE_M3, BGE_RERANKER, BGE_TOKENS, PREFIXES, TINY, V3, V3_TOKENS

TASKS = tuple(PREFIXES)
BGE_TASKS = ("retrieval.query", "retrieval.passage", "text-matching")
DEFAULT_TASK = "text-matching"
TEXT = "the red fox"
TEXTS = ["the red fox", "a blue sky and the sea", "tree"]
BERLIN = (
    "Berlin is the capital of Germany. Its population is 3.85 million. The city is known for its history."
)
NEAR = 1e-6
FAR = 1e-3
REFUSAL = (
    "Model bge-m3 does not support late_chunking. BGE-M3's architecture causes embedding space collapse when "
    "late chunking is applied. Use jina-embeddings-v4 or voyage-context-3 for contextual embeddings."
)


def client_of(models: Path, **settings: str) -> TestClient:
    """Make a client of the whole application over a models folder, settings as in the environment."""
    read = config.from_environment({"MODELS_DIR": str(models), **settings})
    bundles.check_start(read)
    registry = Registry(read, Scheduler(read.max_batch_tokens))
    registry.load()
    assert not registry.failed()
    return TestClient(make_app(read, registry))


@pytest.fixture(scope="module")
def models(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A models folder with the three models of the family and one without tasks."""
    folder = tmp_path_factory.mktemp("tasks")
    checkpoints = folder / ".checkpoints"
    xlmr.bake_tiny(folder, V3, xlmr.write_jina_v3(checkpoints / V3))
    xlmr.bake_tiny(folder, BGE_M3, xlmr.write_bge_m3(checkpoints / BGE_M3))
    xlmr.bake_tiny(folder, BGE_RERANKER, xlmr.write_bge_reranker(checkpoints / BGE_RERANKER))
    xlmr.bake_tiny(folder, MODEL, tiny_checkpoint)
    return folder


@pytest.fixture(scope="module")
def client(models: Path) -> TestClient:
    return client_of(models)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_str(xlmr.tokenizer().decode())


def post(client: TestClient, model: str, given: object, **fields: object) -> Result:
    return client.simulate_post("/v1/embeddings", json={"model": model, "input": given, **fields})


def embed(client: TestClient, model: str, given: object, **fields: object) -> dict[str, Any]:
    answer = post(client, model, given, **fields)
    assert answer.status_code == 200, answer.text
    body: dict[str, Any] = answer.json
    assert [item["index"] for item in body["data"]] == [*range(len(body["data"]))]
    return body


def vectors(client: TestClient, model: str, given: object, **fields: object) -> np.ndarray:
    items = embed(client, model, given, **fields)["data"]
    found = np.array([item["embedding"] for item in items])
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=0, atol=NEAR)
    return found


def difference(one: np.ndarray, other: np.ndarray) -> float:
    """Return the largest difference of a component, of the row that differs least."""
    assert one.shape == other.shape
    return float(np.abs(one - other).max(axis=1).min())


def assert_near(one: np.ndarray, other: np.ndarray) -> None:
    np.testing.assert_allclose(one, other, rtol=0, atol=NEAR)


def assert_error(
    answer: Result, param: str, code: str, *, says: Sequence[str] = (), status: int = 422
) -> None:
    """Check the one body of all errors, and that its message holds some words."""
    assert answer.status_code == status, answer.text
    message = answer.json["detail"]
    kind = "internal_error" if status >= 500 else "invalid_request_error"
    assert answer.json["error"] == {"message": message, "type": kind, "param": param, "code": code}
    assert [word for word in says if word not in message] == []


# --- tasks ------------------------------------------------------------------------------------------------


def test_every_task_has_vectors_of_its_own(client: TestClient):
    found = [vectors(client, V3, TEXTS, task=task) for task in TASKS]
    for number, one in enumerate(found):
        assert one.shape == (len(TEXTS), TINY.hidden)
        assert all(difference(one, other) > FAR for other in found[:number])


@pytest.mark.parametrize("fields", [{}, {"task": None}, {"task_type": DEFAULT_TASK}], ids=str)
def test_default_task(client: TestClient, fields: dict[str, object]):
    assert embed(client, V3, TEXTS, **fields) == embed(client, V3, TEXTS, task=DEFAULT_TASK)


@pytest.mark.parametrize("task", TASKS)
def test_texts_together_are_as_alone(client: TestClient, task: str):
    alone = np.concatenate([vectors(client, V3, text, task=task) for text in TEXTS])
    assert_near(vectors(client, V3, TEXTS, task=task), alone)


@pytest.mark.parametrize(
    "task", ["retrieval", "nl2code.query", "none", "None", "", "Text-Matching", "x" * 9999]
)
def test_unknown_task_of_v3(client: TestClient, task: str):
    answer = post(client, V3, TEXT, task=task)
    assert_error(answer, "task", "unknown_task", says=(V3, *TASKS))
    assert len(answer.json["detail"]) < 1000


@pytest.mark.parametrize("task", ["separation", "classification", "none", "retrieval"])
def test_unknown_task_of_bge_m3(client: TestClient, task: str):
    assert_error(post(client, BGE_M3, TEXT, task=task), "task", "unknown_task", says=(BGE_M3, *BGE_TASKS))


@pytest.mark.parametrize("task", TASKS)
def test_model_without_tasks(client: TestClient, task: str):
    assert_error(post(client, MODEL, TEXT, task=task), "task", "unknown_task", says=(MODEL, "no tasks"))


@pytest.mark.parametrize("task", [*BGE_TASKS, None])
def test_tasks_of_bge_m3_change_nothing(client: TestClient, task: str | None):
    fields = {"return_sparse": True, "return_colbert": True}
    assert embed(client, BGE_M3, TEXTS, task=task, **fields) == embed(client, BGE_M3, TEXTS, **fields)


def test_list_of_models(client: TestClient):
    listed = {entry["id"]: entry for entry in client.simulate_get("/v1/models").json["data"]}
    fields = ("type", "dimensions", "tasks", "max_tokens", "owned_by", "supports_multimodal")
    assert {name: tuple(entry[field] for field in fields) for name, entry in listed.items()} == {
        V3: ("embedding", TINY.hidden, list(TASKS), V3_TOKENS, "jinaai", False),
        BGE_M3: ("embedding", TINY.hidden, list(BGE_TASKS), BGE_TOKENS, "BAAI", False),
        BGE_RERANKER: ("reranker", None, None, BGE_TOKENS, "BAAI", False),
        MODEL: ("embedding", listed[MODEL]["dimensions"], None, listed[MODEL]["max_tokens"],
                "sentence-transformers", False),
    }  # fmt: skip


# --- prefixes, lengths, sizes -----------------------------------------------------------------------------


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("given", [TEXT, TEXTS, "", "fox " * 500], ids=["one", "several", "empty", "long"])
def test_usage_does_not_count_the_prefix(client: TestClient, tokenizer: Tokenizer, task: str, given: Any):
    texts = [given] if isinstance(given, str) else given
    expected = sum(min(len(tokenizer.encode(text).ids), V3_TOKENS) for text in texts)
    usage = embed(client, V3, given, task=task, truncate=True)["usage"]
    assert usage == {"prompt_tokens": expected, "total_tokens": expected}


@pytest.mark.parametrize("task", TASKS)
def test_limit_counts_the_prefix(client: TestClient, tokenizer: Tokenizer, task: str):
    num_words = V3_TOKENS - len(tokenizer.encode(PREFIXES[task].strip()).ids)
    assert post(client, V3, "fox " * num_words, task=task).status_code == 200
    answer = post(client, V3, [TEXT, "fox " * (num_words + 1)], task=task)
    says = ("input[1]", f"{V3_TOKENS + 1} tokens", str(V3_TOKENS), "truncate")
    assert_error(answer, "input[1]", "input_too_long", says=says)
    assert ("prefix" in answer.json["detail"]) == bool(PREFIXES[task])


@pytest.mark.parametrize("task", TASKS)
def test_truncate_keeps_the_first_tokens(client: TestClient, tokenizer: Tokenizer, task: str):
    num_words = V3_TOKENS - len(tokenizer.encode(PREFIXES[task].strip()).ids)
    fields = {"task": task, "truncate": True}
    whole = vectors(client, V3, "fox " * num_words, **fields)
    assert_near(vectors(client, V3, "fox " * num_words + "sky " * 5000, **fields), whole)
    assert difference(vectors(client, V3, "fox " * (num_words - 1) + "sky " * 5000, **fields), whole) > NEAR


@pytest.mark.parametrize("size", [1, 2, 7, TINY.hidden - 1, TINY.hidden])
@pytest.mark.parametrize("fields", [{}, {"late_chunking": True}], ids=["plain", "late-chunking"])
def test_dimensions_are_slices_of_length_one(client: TestClient, size: int, fields: dict[str, object]):
    kept = vectors(client, V3, TEXTS, **fields)[:, :size]
    expected = kept / np.linalg.norm(kept, axis=1, keepdims=True)
    assert_near(vectors(client, V3, TEXTS, dimensions=size, **fields), expected)


@pytest.mark.parametrize("model", [V3, BGE_M3])
@pytest.mark.parametrize("size", [0, -1, TINY.hidden + 1, 1024])
def test_sizes_that_no_model_gives(client: TestClient, model: str, size: int):
    says = (model, str(size), str(TINY.hidden))
    assert_error(post(client, model, TEXT, dimensions=size), "dimensions", "invalid_dimensions", says=says)


def test_bge_m3_is_not_truncatable(client: TestClient):
    assert vectors(client, BGE_M3, TEXT, dimensions=TINY.hidden).shape == (1, TINY.hidden)
    answer = post(client, BGE_M3, TEXT, dimensions=TINY.hidden // 2)
    assert_error(answer, "dimensions", "invalid_dimensions", says=(BGE_M3,))


# --- bundles and starts with fewer tasks ------------------------------------------------------------------


def test_bundle_baked_for_one_task(tmp_path: Path, client: TestClient):
    xlmr.bake_tiny(tmp_path, V3, xlmr.write_jina_v3(tmp_path / ".checkpoint"), ("retrieval.query",))
    limited = client_of(tmp_path)
    found = vectors(limited, V3, TEXTS, task="retrieval.query")
    assert_near(found, vectors(client, V3, TEXTS, task="retrieval.query"))
    says = (V3, "default task", "retrieval.query", "'task'")
    assert_error(post(limited, V3, TEXT), "task", "unknown_task", says=says)
    assert_error(post(limited, V3, TEXT, task=DEFAULT_TASK), "task", "unknown_task", says=says[:1])
    (listed,) = limited.simulate_get("/v1/models").json["data"]
    assert listed["tasks"] == ["retrieval.query"]


@pytest.mark.parametrize("also", ["", f",{BGE_M3}", f", {MODEL} ,{BGE_M3}"])
@pytest.mark.parametrize(
    "tasks", ["retrieval.query,retrieval.passage", "separation", f"{DEFAULT_TASK},separation"]
)
def test_models_to_load_limits_tasks(models: Path, tasks: str, also: str):
    limited = client_of(models, MODELS_TO_LOAD=f"{V3}:{tasks}{also}")
    listed = {entry["id"]: entry["tasks"] for entry in limited.simulate_get("/v1/models").json["data"]}
    assert sorted(listed[V3]) == sorted(tasks.split(","))
    assert {*listed} == {V3, *(name.strip() for name in also.split(",") if name.strip())}
    for task in TASKS:
        answer = post(limited, V3, TEXT, task=task)
        if task in tasks:
            assert answer.status_code == 200
        else:
            assert_error(answer, "task", "unknown_task", says=(V3, *tasks.split(",")))
    assert post(limited, V3, TEXT).status_code == (200 if DEFAULT_TASK in tasks else 422)
    if BGE_M3 in listed:
        assert listed[BGE_M3] == list(BGE_TASKS)


@pytest.mark.parametrize(
    ("wanted", "unknown"),
    [
        (f"{V3}:retrieval.quer", "retrieval.quer"),
        (f"{V3}:retrieval.query,nope", "nope"),
        (f"{V3}:none", "none"),
        (f"{V3}:retrieval.query,bge-m33", "bge-m33"),
        (f"{BGE_M3}:separation", "separation"),
        (f"{MODEL}:retrieval.query", "retrieval.query"),
    ],
)
def test_unknown_task_stops_the_start(models: Path, wanted: str, unknown: str):
    with pytest.raises(ConfigError, match="MODELS_TO_LOAD") as raised:
        client_of(models, MODELS_TO_LOAD=wanted)
    model = wanted.partition(":")[0]
    assert f" {unknown}," in str(raised.value) and model in str(raised.value)


@pytest.fixture
def copied(models: Path, tmp_path: Path) -> Path:
    """A models folder with a bundle of v3 that may be damaged."""
    shutil.copytree(models / V3, tmp_path / V3)
    return tmp_path


def test_tasks_are_opened_when_first_asked_for(client: TestClient, copied: Path):
    lazy = client_of(copied)
    opened = vectors(lazy, V3, TEXT, task="retrieval.query")
    graph = copied / V3 / "fp32" / "separation.onnx"
    content = graph.read_bytes()
    for task in ("separation", "retrieval.query"):
        (copied / V3 / "fp32" / f"{task}.onnx").unlink()
    answer = post(lazy, V3, TEXT, task="separation")
    assert_error(answer, "model", "model_failed", says=(V3, "separation.onnx"), status=503)
    for late in (True, False):
        assert_error(
            post(lazy, V3, TEXT, task="separation", late_chunking=late), "model", "model_failed", status=503
        )
    for task in set(TASKS) - {"separation"}:
        assert_near(vectors(lazy, V3, TEXT, task=task), vectors(client, V3, TEXT, task=task))
    assert_near(vectors(lazy, V3, TEXT, task="retrieval.query"), opened)
    shutil.copy(graph.with_name("classification.onnx"), graph)  # of another task: its hash tells
    assert post(lazy, V3, TEXT, task="separation").status_code == 503
    graph.write_bytes(content)
    assert post(lazy, V3, TEXT, task="separation").status_code == 200  # it is tried again


def test_tasks_named_at_start_are_opened_at_start(copied: Path):
    eager = client_of(copied, MODELS_TO_LOAD=f"{V3}:retrieval.query,separation")
    for graph in (copied / V3 / "fp32").glob("*.onnx"):
        graph.unlink()
    for task in ("retrieval.query", "separation"):
        assert post(eager, V3, TEXT, task=task).status_code == 200


# --- sparse and ColBERT vectors ---------------------------------------------------------------------------


def test_sparse_vectors(client: TestClient, tokenizer: Tokenizer):
    texts = [*TEXTS, "the the fox 不 the"]
    plain = vectors(client, BGE_M3, texts)
    for text, item, vector in zip(
        texts, embed(client, BGE_M3, texts, return_sparse=True)["data"], plain, strict=True
    ):
        assert set(item) == {"object", "index", "embedding", "sparse_embedding"}
        assert_near(np.array(item["embedding"]), vector)
        indices, values = item["sparse_embedding"]["indices"], item["sparse_embedding"]["values"]
        assert set(item["sparse_embedding"]) == {"indices", "values"}
        assert indices == sorted(set(indices)) and all(type(index) is int for index in indices)
        assert set(indices) <= set(tokenizer.encode(text).ids) - {0, 1, 2, 3}
        assert len(values) == len(indices) > 0 and all(value > 0 for value in values)


def test_colbert_vectors(client: TestClient, tokenizer: Tokenizer):
    for text, item in zip(TEXTS, embed(client, BGE_M3, TEXTS, return_colbert=True)["data"], strict=True):
        assert set(item) == {"object", "index", "embedding", "colbert_embedding"}
        found = np.array(item["colbert_embedding"])
        assert found.shape == (len(tokenizer.encode(text).ids) - 1, TINY.hidden)  # all tokens but <s>
        np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=0, atol=NEAR)


def test_more_vectors_of_texts_that_are_padded(client: TestClient):
    fields = {"return_sparse": True, "return_colbert": True}
    texts = [
        "a red fox " * 7 + "sea " * number for number in range(4)
    ]  # near enough in length to share a run
    together = embed(client, BGE_M3, texts, **fields)["data"]
    alone = [embed(client, BGE_M3, text, **fields)["data"][0] for text in texts]
    for one, other in zip(together, alone, strict=True):
        assert_near(np.array(one["embedding"]), np.array(other["embedding"]))
        assert_near(np.array(one["colbert_embedding"]), np.array(other["colbert_embedding"]))
        (indices, values), (other_indices, other_values) = (
            item["sparse_embedding"].values() for item in (one, other)
        )
        assert indices == other_indices
        np.testing.assert_allclose(values, other_values, rtol=0, atol=1e-5)


@pytest.mark.parametrize("embedding_type", ["float", "base64", "binary"])
def test_more_vectors_beside_every_encoding(client: TestClient, embedding_type: str):
    fields = {"return_sparse": True, "return_colbert": True}
    both = embed(client, BGE_M3, TEXTS, embedding_type=embedding_type, **fields)
    plain = embed(client, BGE_M3, TEXTS, embedding_type=embedding_type)
    more = embed(client, BGE_M3, TEXTS, **fields)
    for item, dense, extra in zip(both["data"], plain["data"], more["data"], strict=True):
        assert item == extra | {"embedding": dense["embedding"]}
    assert both["usage"] == plain["usage"]


@pytest.mark.parametrize("value", [False, None])
def test_more_vectors_only_when_asked_for(client: TestClient, value: bool | None):
    fields = {"return_sparse": value, "return_colbert": value, "return_multivector": value}
    for model in (V3, BGE_M3, MODEL):
        assert embed(client, model, TEXTS, **fields) == embed(client, model, TEXTS)


@pytest.mark.parametrize("field", ["return_sparse", "return_colbert", "return_multivector"])
@pytest.mark.parametrize("model", [V3, MODEL])
def test_models_without_more_vectors(client: TestClient, model: str, field: str):
    says = (model, field)
    assert_error(post(client, model, TEXT, **{field: True}), field, "unsupported_option", says=says)


@pytest.mark.parametrize("field", ["return_sparse", "return_colbert"])
def test_more_vectors_asked_for_wrongly(client: TestClient, field: str):
    for value in ("yes", 1, [True]):
        assert_error(post(client, BGE_M3, TEXT, **{field: value}), field, "wrong_type", says=(field,))


def test_checkpoint_without_heads(tmp_path: Path, client: TestClient, capsys: pytest.CaptureFixture[str]):
    source = xlmr.write_bge_m3(tmp_path / ".checkpoint", with_heads=False, as_torch=False)
    xlmr.bake_tiny(tmp_path, BGE_M3, source)
    warnings = [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning:")]
    assert [name for name in ("sparse_linear.pt", "colbert_linear.pt") if name not in "".join(warnings)] == []
    headless = client_of(tmp_path)
    for field in ("return_sparse", "return_colbert"):
        answer = post(headless, BGE_M3, TEXT, **{field: True})
        assert_error(answer, field, "unsupported_option", says=(BGE_M3, field))
    assert_near(vectors(headless, BGE_M3, TEXTS), vectors(client, BGE_M3, TEXTS))


def test_number_of_colbert_tokens_is_limited(client: TestClient):
    texts = ["fox " * (BGE_TOKENS - 2)] * (MAX_COLBERT_TOKENS // BGE_TOKENS + 1)
    says = ("return_colbert", str(MAX_COLBERT_TOKENS), str(len(texts) * BGE_TOKENS))
    answer = post(client, BGE_M3, texts, return_colbert=True)
    assert_error(answer, "return_colbert", "too_many_tokens", says=says)
    assert post(client, BGE_M3, ["fox"] * len(texts), return_colbert=True).status_code == 200


# --- late chunking ----------------------------------------------------------------------------------------


def test_late_chunking_refused_by_bge_m3(client: TestClient):
    answer = post(client, BGE_M3, TEXTS, late_chunking=True)
    assert answer.status_code == 422
    assert answer.json == {
        "detail": {"error": {"message": REFUSAL, "type": "internal_error"}},
        "error": {
            "message": REFUSAL,
            "type": "invalid_request_error",
            "param": "late_chunking",
            "code": "late_chunking_unsupported",
        },
    }


def test_items_are_chunks_of_one_document(client: TestClient, tokenizer: Tokenizer):
    body = embed(client, V3, TEXTS, late_chunking=True)
    num_tokens = len(tokenizer.encode(" ".join(TEXTS)).ids)
    assert body["usage"] == {"prompt_tokens": num_tokens, "total_tokens": num_tokens}
    found = vectors(client, V3, TEXTS, late_chunking=True)
    assert found.shape == (len(TEXTS), TINY.hidden)
    assert difference(found, vectors(client, V3, TEXTS)) > FAR, "no chunk has seen the others"
    others = vectors(client, V3, [*TEXTS[:2], "a very far river"], late_chunking=True)
    assert difference(found[:2], others[:2]) > FAR, "a chunk has not seen what follows it"


def chunks_by_hand(graph: Path, tokenizer: Tokenizer, texts: list[str], prefix: str) -> np.ndarray:
    """Average token states over the chunks of a document: a token is of the first that ends with it."""
    encoding = tokenizer.encode(prefix + " ".join(texts))
    ids = np.array([encoding.ids])
    session = onnxruntime.InferenceSession(graph)
    inputs = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    (states,) = session.run(["token_embeddings"], inputs)[0]
    ends = np.cumsum([len(prefix)] + [len(text) + 1 for text in texts])[1:] - 1
    chunks = np.array([np.argmax(ends >= end) for _, end in encoding.offsets])
    chunks[-1] = len(texts) - 1  # </s>; <s> and the prefix end before the first chunk does
    means = np.array([states[chunks == chunk].mean(axis=0) for chunk in range(len(texts))])
    return np.asarray(means / np.linalg.norm(means, axis=1, keepdims=True))


@pytest.mark.parametrize("texts", [TEXTS, TEXTS[::-1], ["a", "b"], ["(fox)", "...", "3.85", "sky"]], ids=str)
@pytest.mark.parametrize("task", TASKS)
def test_chunks_are_means_of_their_tokens(
    client: TestClient, models: Path, tokenizer: Tokenizer, task: str, texts: list[str]
):
    expected = chunks_by_hand(models / V3 / "fp32" / f"{task}.onnx", tokenizer, texts, PREFIXES[task])
    assert_near(vectors(client, V3, texts, task=task, late_chunking=True), expected)


@pytest.mark.parametrize("task", ["retrieval.query", "retrieval.passage"])
def test_late_chunking_with_a_prefix(client: TestClient, task: str):
    body = embed(client, V3, TEXTS, task=task, late_chunking=True)
    assert body["usage"] == embed(client, V3, TEXTS, late_chunking=True)["usage"]
    found, default = (vectors(client, V3, TEXTS, late_chunking=True, **more) for more in ({"task": task}, {}))
    assert difference(found, default) > FAR


@pytest.mark.parametrize("given", ["", " ", "\t\n"], ids=["empty", "blank", "whitespace"])
def test_item_without_a_token(client: TestClient, given: str):
    says = ("input[1]", "no token")
    answer = post(client, V3, ["fox", given, "sky", given], late_chunking=True)
    assert_error(answer, "input[1]", "empty_input", says=says)
    assert_error(post(client, V3, given, late_chunking=True), "input[0]", "empty_input", says=("input[0]",))


@pytest.mark.parametrize("options", [{"dimensions": 8}, {"task": "separation"}, {}], ids=str)
@pytest.mark.parametrize("embedding_type", ["base64", "binary"])
def test_late_chunking_in_every_encoding(client: TestClient, embedding_type: str, options: dict[str, object]):
    floats = vectors(client, V3, TEXTS, late_chunking=True, **options).astype(np.float32)
    items = embed(client, V3, TEXTS, late_chunking=True, embedding_type=embedding_type, **options)["data"]
    for item, vector in zip(items, floats, strict=True):
        if embedding_type == "base64":
            decoded = np.frombuffer(base64.b64decode(item["embedding"]), "<f4")
            np.testing.assert_array_equal(decoded, vector)
        else:
            assert item["embedding"] == (np.packbits(vector > 0).astype(int) - 128).tolist()


def test_berlin_has_three_sentences(client: TestClient, tokenizer: Tokenizer):
    forms = [embed(client, V3, given, late_chunking=True) for given in (BERLIN, [BERLIN], [{"text": BERLIN}])]
    assert all(form == forms[0] for form in forms)
    assert len(forms[0]["data"]) == 3
    assert forms[0]["usage"]["total_tokens"] == len(tokenizer.encode(BERLIN).ids)
    split = [part + "." for part in BERLIN.removesuffix(".").split(". ")]
    sentences = np.array([item["embedding"] for item in forms[0]["data"]])
    assert_near(sentences, vectors(client, V3, split, late_chunking=True))


def test_text_of_one_sentence(client: TestClient):
    assert_near(vectors(client, V3, TEXT, late_chunking=True), vectors(client, V3, TEXT))


@pytest.mark.parametrize("task", [DEFAULT_TASK, "retrieval.query"])
@pytest.mark.parametrize("truncate", [True, False, None])
def test_document_longer_than_the_limit(
    client: TestClient, tokenizer: Tokenizer, truncate: bool | None, task: str
):
    texts = ["the red fox is very far"] * 200 + TEXTS
    fields = {"late_chunking": True, "task": task, "truncate": truncate}
    found = vectors(client, V3, texts, **fields)
    assert len(found) == len(texts)
    usage = embed(client, V3, texts, **fields)["usage"]
    assert usage["total_tokens"] == V3_TOKENS < len(tokenizer.encode(" ".join(texts)).ids)
    changed = vectors(client, V3, [*texts[:-1], "river"], **fields)
    assert_near(changed[:100], found[:100])  # windows that the last text is not in
    assert difference(changed[-1:], found[-1:]) > FAR


@pytest.mark.parametrize("fields", [{"late_chunking": "yes"}, {"late_chunking": 1}], ids=str)
def test_late_chunking_asked_for_wrongly(client: TestClient, fields: dict[str, object]):
    assert_error(post(client, V3, TEXT, **fields), "late_chunking", "wrong_type", says=("late_chunking",))


def test_late_chunking_checks_task_and_dimensions(client: TestClient):
    late = {"late_chunking": True}
    assert_error(post(client, V3, TEXTS, task="none", **late), "task", "unknown_task", says=TASKS)
    answer = post(client, V3, TEXTS, dimensions=TINY.hidden + 1, **late)
    assert_error(answer, "dimensions", "invalid_dimensions", says=(V3,))


def test_manifest_names_no_base_weights(models: Path):
    manifest = json.loads((models / V3 / "manifest.json").read_text())
    assert [task["name"] for task in manifest["tasks"]] == list(TASKS)
    assert {variant["task"] for variant in manifest["variants"]} == set(TASKS)


@pytest.mark.parametrize(
    ("name", "limit", "code"),
    [("MAX_CHUNKS", 2, "too_many_chunks"), ("MAX_DOCUMENT_CHARACTERS", 30, "too_many_characters")],
)
def test_late_chunking_of_too_much_is_refused(
    client: TestClient, monkeypatch: pytest.MonkeyPatch, name: str, limit: int, code: str
) -> None:
    monkeypatch.setattr("service.embedding." + name, limit)
    text = "The fox is red. The sea is blue. The town is far."
    body = {"model": V3, "input": text, "late_chunking": True}
    answer = client.simulate_post("/v1/embeddings", json=body)
    assert answer.status_code == 422
    assert (answer.json["error"]["param"], answer.json["error"]["code"]) == ("input", code)
    assert str(limit) in answer.json["detail"]
