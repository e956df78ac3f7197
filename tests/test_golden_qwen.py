"""The embedding models of the Qwen family against the reference implementations, as test_golden.py.

Over HTTP; what no request can express (a small limit, prompts that the service does not have, texts of any
length in one run) goes through the objects that serve HTTP.
"""

from __future__ import annotations

import base64
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from falcon.testing import TestClient

from service.embedding import EmbeddingModel
from service.errors import InvalidRequest
from service.manifest import Output, Task
from service.options import EmbedOptions
from service.registry import Registry
from service.session import pad
from tests import golden
from tests.golden import assert_near, embed, vectors

CODE, QWEN3 = "jina-code-embeddings-0.5b", "qwen3-embedding-0.6b"
DEFAULT_CODE_TASK = "nl2code.query"
DOCUMENT, QUERY = "document", "retrieval.query"  # of qwen3's golden cases
AS_DOCUMENTS = (None, "retrieval.passage", "code.passage")  # tasks of the service that put nothing in front

pytestmark = pytest.mark.reference


def tasks_of(model: str) -> list[Any]:
    """List the tasks of the golden cases; one that skips where there are none."""
    cases = golden.cases(model, "cases")
    return list(dict.fromkeys(case["task"] for case in cases)) if golden.is_there() else cases


def is_of(*tasks: str):
    """Keep the cases of some tasks."""
    return lambda case: case["task"] in tasks


def is_published(case: dict[str, Any]) -> bool:
    return case["task"] not in (DOCUMENT, QUERY)


def sizes_of(case: dict[str, Any]) -> dict[int | None, str]:
    """Name the array of every size that a case has; None is the model's own."""
    slices = case["outputs"].get("dimensions", {})
    return {None: case["outputs"]["embedding"]} | {int(size): name for size, name in slices.items()}


def task_of(case: dict[str, Any]) -> str | None:
    """Return what a golden task is called in the service; none for a document."""
    return None if case["task"] == DOCUMENT else case["task"]


def check_token_ids(model: EmbeddingModel, texts: dict[str, str], case: dict[str, Any]) -> None:
    """Compare the ids of a text with the prompt of its task, alone and beside another text."""
    prefixes = {task.name: task.prefix for task in model.manifest.tasks}
    assert prefixes.get(task_of(case) or "", "") == case["prompt"]
    encoded = model.tokenizer.encode([case["prompt"] + texts[case["text"]], "other"], 32_768)
    assert encoded[0].ids.tolist() == case["ids"]


def check_truncation(
    model: EmbeddingModel, texts: dict[str, str], case: dict[str, Any], vector: np.ndarray
) -> None:
    """Compare the ids and the vector of a text that is cut; refuse it where it may not be."""
    limited = replace(model, manifest=replace(model.manifest, max_tokens=case["max_tokens"]))
    text, task = texts[case["text"]], task_of(case)
    (cut,) = model.tokenizer.encode([case["prompt"] + text], case["max_tokens"])
    assert cut.ids.tolist() == case["ids"]
    computed = limited.embed([text], EmbedOptions(task=task, truncate=True))
    assert_near(computed.vectors[0], vector, golden.UNIT)
    assert computed.num_tokens == case["max_tokens"]
    with pytest.raises(InvalidRequest, match=r"input\[0\] has (at least )?\d+ tokens"):
        limited.embed([text], EmbedOptions(task=task))


def check_one_run_of_all_lengths(
    model: EmbeddingModel, cases: list[dict[str, Any]], arrays: dict[str, np.ndarray]
) -> None:
    """Run all texts of a task padded to the longest: each has the vector of its own run."""
    session = model.graphs.session(None)
    sequences = [np.array(case["ids"]) for case in cases]
    assert len({len(ids) for ids in sequences}) > 4
    (together,) = session.run(pad(sequences), [Output.POOLED])
    for row, ids, case in zip(together, sequences, cases, strict=True):
        (alone,) = session.run(pad([ids]), [Output.POOLED])
        assert golden.cosine(row, alone[0]) >= golden.SAME_COSINE
        assert_near(row / np.linalg.norm(row), arrays[case["outputs"]["embedding"]], golden.UNIT)


@pytest.fixture(scope="module")
def code_arrays(golden_qwen_models: object) -> dict[str, np.ndarray]:
    return golden.arrays(CODE)


@pytest.fixture(scope="module")
def qwen3_arrays(golden_qwen_models: object) -> dict[str, np.ndarray]:
    return golden.arrays(QWEN3)


@pytest.fixture(scope="module")
def code(golden_qwen_registry: Registry) -> EmbeddingModel:
    return golden_qwen_registry.embedding(CODE)


@pytest.fixture(scope="module")
def qwen3(golden_qwen_registry: Registry) -> EmbeddingModel:
    """The model with the published prompts as tasks beside its own."""
    model = golden_qwen_registry.embedding(QWEN3)
    prompts = {case["task"]: case["prompt"] for case in golden.expected(QWEN3)["cases"] if is_published(case)}
    assert len(prompts) == 2
    published = tuple(Task(name=name, prefix=prompt) for name, prompt in prompts.items())
    return replace(model, manifest=replace(model.manifest, tasks=(*model.manifest.tasks, *published)))


# --- jina-code-embeddings ---------------------------------------------------------------------------------


def is_short(case: dict[str, Any]) -> bool:
    return case["text"] in ("nl", "zh")


def ways_to_ask(task: str) -> list[dict[str, str | None]]:
    """List the fields that ask for one task."""
    bare, _, side = task.rpartition(".")
    ways: list[dict[str, str | None]] = [{"task": task}, {"task": bare, "prompt_name": side}]
    ways.append({"task": task, "prompt_name": side})
    if side == "query":
        ways.append({"task": bare})
    if bare == DEFAULT_CODE_TASK.rpartition(".")[0]:
        ways.append({"prompt_name": side})
    if task == DEFAULT_CODE_TASK:
        ways += [{}, {"task": None}]
    return ways


@pytest.mark.parametrize("case", golden.cases(CODE, "cases"), ids=golden.by_id)
def test_code_vectors_over_http(
    golden_qwen_client: TestClient, code: EmbeddingModel, code_arrays: dict[str, np.ndarray], case: Any
) -> None:
    text = golden.expected(CODE)["texts"][case["text"]]
    (alone,) = code.tokenizer.encode([text], code.manifest.max_tokens)
    for size, name in sizes_of(case).items():
        body = embed(golden_qwen_client, CODE, text, task=case["task"], dimensions=size)
        assert_near(vectors(body)[0], code_arrays[name], golden.UNIT)
        assert body["usage"]["total_tokens"] == len(alone.ids), "the prompt is not billed"


@pytest.mark.parametrize("case", golden.cases(CODE, "cases", is_short), ids=golden.by_id)
def test_code_ways_to_ask_for_a_task(
    golden_qwen_client: TestClient, code_arrays: dict[str, np.ndarray], case: Any
) -> None:
    text = golden.expected(CODE)["texts"][case["text"]]
    for fields in ways_to_ask(case["task"]):
        found = vectors(embed(golden_qwen_client, CODE, {"text": text}, **fields))
        assert_near(found[0], code_arrays[case["outputs"]["embedding"]], golden.UNIT)
        (item,) = embed(golden_qwen_client, CODE, [text], embedding_type="base64", **fields)["data"]
        decoded = np.frombuffer(base64.b64decode(item["embedding"], validate=True), "<f4")
        assert_near(decoded, code_arrays[case["outputs"]["embedding"]], golden.UNIT)


@pytest.mark.parametrize("task", tasks_of(CODE))
@pytest.mark.parametrize("names", golden.cases(CODE, "batches"), ids=str)
def test_code_batches_are_the_single_runs(
    golden_qwen_client: TestClient, code_arrays: dict[str, np.ndarray], names: list[str], task: str
) -> None:
    texts = golden.expected(CODE)["texts"]
    answer = vectors(embed(golden_qwen_client, CODE, [texts[name] for name in names], task=task))
    for row, name in zip(answer, names, strict=True):
        assert_near(row, code_arrays[f"{task}/{name}/embedding"], golden.UNIT)


@pytest.mark.parametrize("case", golden.cases(CODE, "cases"), ids=golden.by_id)
def test_code_token_ids(code: EmbeddingModel, case: Any) -> None:
    check_token_ids(code, golden.expected(CODE)["texts"], case)


@pytest.mark.parametrize("case", golden.cases(CODE, "truncation"), ids=golden.by_id)
def test_code_truncation(code: EmbeddingModel, code_arrays: dict[str, np.ndarray], case: Any) -> None:
    texts = golden.expected(CODE)["texts"]
    check_truncation(code, texts, case, code_arrays[case["outputs"]["embedding"]])


@pytest.mark.parametrize("task", tasks_of(CODE))
def test_code_in_one_run_whatever_the_lengths(
    code: EmbeddingModel, code_arrays: dict[str, np.ndarray], task: str
) -> None:
    cases = [case for case in golden.expected(CODE)["cases"] if case["task"] == task]
    check_one_run_of_all_lengths(code, cases, code_arrays)


# --- qwen3-embedding --------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", AS_DOCUMENTS)
@pytest.mark.parametrize("case", golden.cases(QWEN3, "cases", is_of(DOCUMENT)), ids=golden.by_id)
def test_qwen3_documents_over_http(
    golden_qwen_client: TestClient, qwen3_arrays: dict[str, np.ndarray], case: Any, task: str | None
) -> None:
    text = golden.expected(QWEN3)["texts"][case["text"]]
    for size, name in sizes_of(case).items():
        body = embed(golden_qwen_client, QWEN3, text, task=task, dimensions=size)
        assert_near(vectors(body)[0], qwen3_arrays[name], golden.UNIT)
        assert body["usage"]["total_tokens"] == len(case["ids"])


@pytest.mark.parametrize("case", golden.cases(QWEN3, "cases", is_of(QUERY)), ids=golden.by_id)
def test_qwen3_queries_over_http(
    golden_qwen_client: TestClient, qwen3_arrays: dict[str, np.ndarray], case: Any
) -> None:
    golden_set = golden.expected(QWEN3)
    (document,) = (other for other in golden_set["cases"] if other["id"] == f"{DOCUMENT}/{case['text']}")
    for size, name in sizes_of(case).items():
        body = embed(
            golden_qwen_client, QWEN3, golden_set["texts"][case["text"]], task=QUERY, dimensions=size
        )
        assert_near(vectors(body)[0], qwen3_arrays[name], golden.UNIT)
        assert body["usage"]["total_tokens"] == len(document["ids"]), "the instruction is not billed"


@pytest.mark.parametrize("case", golden.cases(QWEN3, "cases", is_published), ids=golden.by_id)
def test_qwen3_published_prompts_in_the_text(
    golden_qwen_client: TestClient, qwen3_arrays: dict[str, np.ndarray], case: Any
) -> None:
    text = case["prompt"] + golden.expected(QWEN3)["texts"][case["text"]]
    body = embed(golden_qwen_client, QWEN3, text)
    assert_near(vectors(body)[0], qwen3_arrays[case["outputs"]["embedding"]], golden.UNIT)
    assert body["usage"]["total_tokens"] == len(case["ids"])


@pytest.mark.parametrize("case", golden.cases(QWEN3, "cases"), ids=golden.by_id)
def test_qwen3_prompts_of_tasks(
    qwen3: EmbeddingModel, qwen3_arrays: dict[str, np.ndarray], case: Any
) -> None:
    text = golden.expected(QWEN3)["texts"][case["text"]]
    for size, name in sizes_of(case).items():
        computed = qwen3.embed([text], EmbedOptions(task=task_of(case), dimensions=size)).vectors
        assert_near(computed[0], qwen3_arrays[name], golden.UNIT)


@pytest.mark.parametrize("task", tasks_of(QWEN3))
@pytest.mark.parametrize("names", golden.cases(QWEN3, "batches"), ids=str)
def test_qwen3_batches_are_the_single_runs(
    golden_qwen_client: TestClient, qwen3_arrays: dict[str, np.ndarray], names: list[str], task: str
) -> None:
    golden_set = golden.expected(QWEN3)
    prompts = {case["task"]: case["prompt"] for case in golden_set["cases"] if is_published(case)}
    texts = [prompts.get(task, "") + golden_set["texts"][name] for name in names]
    answer = vectors(embed(golden_qwen_client, QWEN3, texts, task=QUERY if task == QUERY else None))
    for row, name in zip(answer, names, strict=True):
        assert_near(row, qwen3_arrays[f"{task}/{name}/embedding"], golden.UNIT)


@pytest.mark.parametrize("case", golden.cases(QWEN3, "cases"), ids=golden.by_id)
def test_qwen3_token_ids(qwen3: EmbeddingModel, case: Any) -> None:
    check_token_ids(qwen3, golden.expected(QWEN3)["texts"], case)


@pytest.mark.parametrize("case", golden.cases(QWEN3, "truncation"), ids=golden.by_id)
def test_qwen3_truncation(qwen3: EmbeddingModel, qwen3_arrays: dict[str, np.ndarray], case: Any) -> None:
    texts = golden.expected(QWEN3)["texts"]
    check_truncation(qwen3, texts, case, qwen3_arrays[case["outputs"]["embedding"]])


@pytest.mark.parametrize("task", tasks_of(QWEN3))
def test_qwen3_in_one_run_whatever_the_lengths(
    qwen3: EmbeddingModel, qwen3_arrays: dict[str, np.ndarray], task: str
) -> None:
    cases = [case for case in golden.expected(QWEN3)["cases"] if case["task"] == task]
    check_one_run_of_all_lengths(qwen3, cases, qwen3_arrays)
