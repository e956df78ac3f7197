"""The rerankers of the Qwen family against the reference implementations, as test_golden_qwen.py."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from falcon.testing import TestClient

from service import inference, listwise, scoring, yes_no
from service.limits import PROMPT_ROOM
from service.listwise import Block
from service.manifest import Output
from service.pooling import unit
from service.registry import Registry
from service.reranking import Reranker
from service.scoring import Parts, RankOptions
from service.session import pad
from tests import golden
from tests.golden import assert_near, rerank

QWEN3, JINA = "qwen3-reranker-0.6b", "jina-reranker-v3"
NO_REQUEST_HAS = {"block_size", "model_max_length"}  # options of golden cases

pytestmark = pytest.mark.reference


# --- qwen3-reranker ---------------------------------------------------------------------------------------


def is_whole(case: dict[str, Any]) -> bool:
    return case["max_tokens"] is None


def instruction_of(case: dict[str, Any]) -> str | None:
    """Return the instruction that a request must name; none for the model's own."""
    own = golden.expected(QWEN3)["default_instruction"]
    return None if case["instruction"] == own else str(case["instruction"])


@pytest.fixture(scope="module")
def qwen3(golden_qwen_registry: Registry) -> Reranker:
    return golden_qwen_registry.reranker(QWEN3)


@pytest.mark.parametrize("case", golden.cases(QWEN3, "cases", is_whole), ids=golden.by_id)
def test_qwen3_scores_over_http(golden_qwen_client: TestClient, qwen3: Reranker, case: Any) -> None:
    instruction = instruction_of(case)
    body = rerank(golden_qwen_client, QWEN3, case["query"], [case["passage"]], instruction=instruction)
    assert_near(golden.scores(body), np.array([case["score"]]), golden.SCORE)
    alone = qwen3.tokenizer.encode([case["query"], case["passage"]], qwen3.manifest.max_tokens)
    assert body["usage"]["total_tokens"] == sum(len(tokens.ids) for tokens in alone)
    if instruction is None:
        same = {"instruction": case["instruction"]}
        assert rerank(golden_qwen_client, QWEN3, case["query"], [case["passage"]], **same) == body


@pytest.mark.parametrize("case", golden.cases(QWEN3, "cases"), ids=golden.by_id)
def test_qwen3_prompts_logits_and_scores(qwen3: Reranker, case: Any) -> None:
    limit = case["max_tokens"] or qwen3.manifest.max_tokens
    parts = replace(qwen3.parts, manifest=replace(qwen3.manifest, max_tokens=limit))
    prompts = yes_no.prompts(parts, case["query"], [case["passage"]], instruction_of(case))
    assert [ids.tolist() for ids in prompts] == [case["ids"]]
    logit = case["logit_yes"] - case["logit_no"]
    assert_near(scoring.logits(parts, prompts), np.array([logit]), golden.LOGIT)
    asked = RankOptions(instruction=instruction_of(case))
    ranking = replace(qwen3, parts=parts).rank(case["query"], [case["passage"]], asked)
    assert_near(ranking.scores, np.array([case["score"]]), golden.SCORE)


@pytest.mark.parametrize("is_default", [True, False], ids=["default", "custom"])
def test_qwen3_passages_of_a_query_in_one_request(golden_qwen_client: TestClient, is_default: bool) -> None:
    cases = [case for case in golden.expected(QWEN3)["cases"] if is_whole(case)]
    same = [
        case
        for case in cases
        if case["query"] == cases[0]["query"] and (instruction_of(case) is None) == is_default
    ]
    assert len(same) > 1
    passages = [case["passage"] for case in same]
    body = rerank(golden_qwen_client, QWEN3, cases[0]["query"], passages, instruction=instruction_of(same[0]))
    expected = np.array([case["score"] for case in same])
    assert_near(golden.scores(body), expected, golden.SCORE)
    assert [result["index"] for result in body["results"]] == np.argsort(-expected).tolist()


def test_qwen3_prompts_in_one_run_whatever_the_lengths(qwen3: Reranker) -> None:
    cases = golden.expected(QWEN3)["cases"]
    sequences = [np.array(case["ids"]) for case in cases]
    assert max(map(len, sequences)) > 5 * min(map(len, sequences))
    (together,) = qwen3.graphs.session(None).run(pad(sequences), [Output.SCORES])
    logits = np.array([case["logit_yes"] - case["logit_no"] for case in cases])
    assert_near(together, logits, golden.LOGIT)
    assert_near(scoring.sigmoid(together), np.array([case["score"] for case in cases]), golden.SCORE)


# --- jina-reranker-v3 -------------------------------------------------------------------------------------


def is_expressible(case: dict[str, Any]) -> bool:
    return not NO_REQUEST_HAS & {*case["options"]}


def lengths_of(case: dict[str, Any]) -> dict[str, int]:
    return {name: value for name, value in case["options"].items() if name not in NO_REQUEST_HAS}


def asked_of(case: dict[str, Any]) -> RankOptions:
    return RankOptions(instruction=case["instruction"], return_embeddings=True, **lengths_of(case))


@pytest.fixture(scope="module")
def jina(golden_qwen_registry: Registry) -> Reranker:
    return golden_qwen_registry.reranker(JINA)


@pytest.fixture(scope="module")
def arrays(golden_qwen_models: object) -> dict[str, np.ndarray]:
    return golden.arrays(JINA)


def parts_of(jina: Reranker, case: dict[str, Any]) -> Parts:
    """Return the reranker's parts with the limits of a case that no request has."""
    known = jina.manifest.listwise
    assert known
    limits = replace(
        known,
        block_size=case["options"].get("block_size", known.block_size),
        capacity=case["options"].get("model_max_length", known.capacity),
    )
    return replace(jina.parts, manifest=replace(jina.manifest, listwise=limits))


@pytest.mark.parametrize("case", golden.cases(JINA, "cases", is_expressible), ids=golden.by_id)
def test_jina_over_http(golden_qwen_client: TestClient, arrays: dict[str, np.ndarray], case: Any) -> None:
    fields = {"instruction": case["instruction"], "return_embeddings": True, **lengths_of(case)}
    body = rerank(golden_qwen_client, JINA, case["query"], case["documents"], **fields)
    assert_near(golden.scores(body), arrays[case["outputs"]["scores"]], golden.SCORE)
    assert [result["index"] for result in body["results"]] == case["order"]
    vectors = arrays[case["outputs"]["document_embeddings"]]
    expected = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    found = [result["embedding"] for result in body["results"]]
    assert_near(found, expected[case["order"]], golden.UNIT)
    if not case["options"]:
        num_tokens = case["query_tokens"] + sum(case["document_tokens"])
        assert body["usage"] == {"prompt_tokens": num_tokens, "total_tokens": num_tokens}
    texts = [case["documents"][index] for index in case["order"]]
    assert [result["document"]["text"] for result in body["results"]] == texts, "never cut, markers kept"


@pytest.mark.parametrize("case", golden.cases(JINA, "cases"), ids=golden.by_id)
def test_jina_scores_order_and_vectors(jina: Reranker, arrays: dict[str, np.ndarray], case: Any) -> None:
    reranker = replace(jina, parts=parts_of(jina, case))
    scored = listwise.score(reranker.parts, case["query"], case["documents"], asked_of(case))
    assert_near(scored.scores, arrays[case["outputs"]["scores"]], golden.SCORE)
    assert scored.vectors is not None
    vectors = arrays[case["outputs"]["document_embeddings"]]
    assert_near(scored.vectors, vectors, golden.UNIT)
    ranking = reranker.rank(case["query"], case["documents"], asked_of(case))
    assert ranking.order == case["order"]
    assert ranking.embeddings is not None
    assert_near(ranking.embeddings, unit(vectors, vectors.shape[1])[case["order"]], golden.UNIT)


def cut_texts(parts: Parts, case: dict[str, Any]) -> tuple[listwise.Text, list[listwise.Text]]:
    """Cut the query and the documents of a case."""
    limits = listwise.limits_of(parts, asked_of(case))
    encoded = parts.tokenizer.encode([case["query"], *case["documents"]], parts.manifest.max_tokens)
    first, *others = [parts.tokenizer.bare(tokens.ids) for tokens in encoded]
    query = listwise.cut(parts.tokenizer, case["query"], first, limits.max_query_length)
    return query, [
        listwise.cut(parts.tokenizer, text, ids, limits.max_doc_length)
        for text, ids in zip(case["documents"], others, strict=True)
    ]


@pytest.mark.parametrize("case", golden.cases(JINA, "cases"), ids=golden.by_id)
def test_jina_cuts_counts_and_splits(jina: Reranker, case: Any) -> None:
    parts = parts_of(jina, case)
    query, documents = cut_texts(parts, case)
    assert query.content == case.get("truncated_query", case["query"])
    assert [text.content for text in documents] == case.get("truncated_documents", case["documents"])
    assert query.num_tokens == case["query_tokens"]
    assert [text.num_tokens for text in documents] == case["document_tokens"]
    blocks = listwise.split(query.num_tokens, documents, listwise.limits_of(parts, asked_of(case)))
    members = [[documents[index] for index in block["documents"]] for block in case["blocks"]]
    assert blocks == members


def block_ids(parts: Parts, case: dict[str, Any], number: int) -> np.ndarray:
    """Make the token ids of a block's prompt."""
    limits = listwise.limits_of(parts, asked_of(case))
    query, documents = cut_texts(parts, case)
    texts = [documents[index].content for index in case["blocks"][number]["documents"]]
    prompt = listwise.prompt(query.content, texts, case["instruction"], limits)
    (ids,) = parts.tokenizer.encode_bare([prompt], limits.capacity + PROMPT_ROOM)
    return ids


BLOCKS = [
    pytest.param(case, number, id=f"{case['id']}-{number}")
    for case in (golden.cases(JINA, "cases") if golden.is_there() else [])
    for number in range(len(case["blocks"]))
] or [pytest.param(None, 0, marks=pytest.mark.skip(reason=golden.MISSING), id="absent")]


@pytest.mark.parametrize(("case", "number"), BLOCKS)
def test_jina_prompt_of_a_block(jina: Reranker, case: Any, number: int) -> None:
    parts, expected = parts_of(jina, case), case["blocks"][number]
    ids = block_ids(parts, case, number)
    assert len(ids) == expected["num_tokens"]
    if "ids" in expected:
        assert ids.tolist() == expected["ids"]
    else:
        assert hashlib.sha256(ids.astype("<i8").tobytes()).hexdigest() == expected["ids_sha256"]
    limits = parts.manifest.listwise
    assert limits
    (document_marker,) = parts.tokenizer.ids_of([limits.document_marker])
    (query_marker,) = parts.tokenizer.ids_of([limits.query_marker])
    assert np.flatnonzero(ids == document_marker).tolist() == expected["embed_at"]
    assert np.flatnonzero(ids == query_marker).tolist() == [expected["rerank_at"]]


@pytest.mark.parametrize(("case", "number"), BLOCKS)
def test_jina_vectors_and_weight_of_a_block(
    jina: Reranker, arrays: dict[str, np.ndarray], case: Any, number: int
) -> None:
    parts, expected = parts_of(jina, case), case["blocks"][number]
    ids = block_ids(parts, case, number)
    ((vectors,),) = inference.run(parts.graphs, parts.scheduler, None, [ids], [Output.PROJECTED])
    block = Block(vectors[-1], vectors[:-1])
    assert_near(block.query, arrays[expected["query_embedding"]], golden.UNIT)
    documents = arrays[case["outputs"]["document_embeddings"]][expected["documents"]]
    assert_near(block.documents, documents, golden.UNIT)
    assert_near(listwise.cosines(block.query, block.documents), arrays[expected["scores"]], golden.SCORE)
    assert block.weight == pytest.approx(expected["weight"], abs=golden.SCORE)


@pytest.mark.parametrize("names", [("small-blocks", "small-blocks"), ("one", "small-blocks")], ids=" ".join)
def test_jina_blocks_in_one_run_whatever_the_lengths(jina: Reranker, names: tuple[str, str]) -> None:
    """Rows of a run hold as many markers each: the first blocks of two cases, or two blocks of one."""
    by_name = {case["id"]: case for case in golden.expected(JINA)["cases"]}
    numbers = (0, 1) if names[0] == names[1] else (0, 2)  # the last of the small blocks has one document
    blocks = [by_name[name]["blocks"][number] for name, number in zip(names, numbers, strict=True)]
    sequences = [np.array(block["ids"]) for block in blocks]
    assert len(sequences[0]) != len(sequences[1])
    session = jina.graphs.session(None)
    (together,) = session.run(pad(sequences), [Output.PROJECTED])
    for row, ids in zip(together, sequences, strict=True):
        (alone,) = session.run(pad([ids]), [Output.PROJECTED])
        assert_near(row, alone[0], golden.UNIT)
        assert min(golden.cosine(one, other) for one, other in zip(row, alone[0], strict=True)) >= (
            golden.SAME_COSINE
        )
