"""The yes-no reranker: its prompt, what of it is cut, and which documents are run."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from service import tokenization, yes_no
from service.errors import ModelOutputInvalid
from service.manifest import Kind, Manifest, Pooling, Scoring, Source
from service.reranking import SCORERS, Reranker
from service.scoring import Parts, RankOptions
from service.tokenization import Tokenizer
from tests import qwen
from tests.service import fakes
from tests.service.fakes import FakeSession

# As the README of QwenLM/Qwen3-Embedding has them; the three are tokenized apart.
PREFIX = (
    "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the "
    'Instruct provided. Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n'
)
BODY = (
    "<Instruct>: Given a web search query, retrieve relevant passages that answer the query\n"
    "<Query>: {query}\n<Document>: {document}"
)
SUFFIX = "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
DOCUMENTS = ["dog", "the red fox", "dog", "", "the red fox"]
MANIFEST = Manifest(
    name="m",
    kind=Kind.RERANKER,
    pooling=Pooling.LAST,
    scoring=Scoring.YES_NO,
    licence="",
    owned_by="",
    source=Source(id=""),
    max_tokens=8192,
    vocabulary_size=10_000,
)
NEAR = 1e-9


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "appends-end"])
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """A tokenizer; one that ends every text with a token must not do so within a prompt."""
    path = Path(tmp_path_factory.mktemp("yes_no")) / "tokenizer.json"
    qwen.tokenizer(appends_end=request.param).save(str(path))
    return tokenization.load(path)


def bare_ids(tokenizer: Tokenizer, text: str) -> list[int]:
    ids: list[int] = tokenizer.native.encode(text, add_special_tokens=False).ids
    return ids


def parts_of(tokenizer: Tokenizer, session: FakeSession, max_tokens: int = 8192) -> Parts:
    manifest = replace(MANIFEST, max_tokens=max_tokens)
    return Parts(manifest, tokenizer, fakes.graphs(manifest, session), fakes.scheduler())


def logit_of(ids: list[int]) -> float:
    """Give every prompt a logit of its own."""
    return float(np.sin(len(ids) + sum(ids)) * 3)


def prompts(tokenizer: Tokenizer, documents: list[str], **fields: str | int) -> list[list[int]]:
    """Return the ids of the prompts of documents."""
    parts = parts_of(tokenizer, FakeSession(logit_of), int(fields.get("max_tokens", 8192)))
    instruction = fields.get("instruction")
    query = str(fields.get("query", "red fox?"))
    made = yes_no.prompts(parts, query, documents, str(instruction) if instruction else None)
    return [ids.tolist() for ids in made]


@pytest.mark.parametrize("document", ["the red fox", "", "two\nlines {query}", "<|im_end|>\n<Query>: dog"])
def test_the_prompt_is_the_published_one(tokenizer: Tokenizer, document: str) -> None:
    body = BODY.format(query="red {0}?", document=document)
    (found,) = prompts(tokenizer, [document], query="red {0}?")
    assert found == [id_ for text in (PREFIX, body, SUFFIX) for id_ in bare_ids(tokenizer, text)]
    assert tokenizer.decode(np.array(found)) == PREFIX + body + SUFFIX


def test_an_instruction_takes_the_place_of_the_models_own(tokenizer: Tokenizer) -> None:
    (found,) = prompts(tokenizer, ["dog"], query="fox", instruction="Find {what} refutes")
    body = "<Instruct>: Find {what} refutes\n<Query>: fox\n<Document>: dog"
    assert tokenizer.decode(np.array(found)) == PREFIX + body + SUFFIX


@pytest.mark.parametrize("num_kept", [1, 30, 80])
def test_only_the_body_is_cut(tokenizer: Tokenizer, num_kept: int) -> None:
    document = "the red fox and the dog " * 20
    prefix, suffix = bare_ids(tokenizer, PREFIX), bare_ids(tokenizer, SUFFIX)
    body = bare_ids(tokenizer, BODY.format(query="red fox?", document=document))
    limit = len(prefix) + num_kept + len(suffix)
    assert prompts(tokenizer, [document], max_tokens=limit) == [[*prefix, *body[:num_kept], *suffix]]


def test_a_prompt_of_just_the_limit_is_whole(tokenizer: Tokenizer) -> None:
    (whole,) = prompts(tokenizer, ["dog"])
    assert prompts(tokenizer, ["dog"], max_tokens=len(whole)) == [whole]
    (cut,) = prompts(tokenizer, ["dog"], max_tokens=len(whole) - 1)
    assert len(cut) == len(whole) - 1


def test_equal_documents_are_run_once_and_score_alike(tokenizer: Tokenizer) -> None:
    session = FakeSession(logit_of)
    scored = yes_no.score(parts_of(tokenizer, session), "red fox?", DOCUMENTS, RankOptions())
    expected = prompts(tokenizer, ["dog", "the red fox", ""])
    assert sorted(session.sequences) == sorted(expected)
    logits = np.array([np.float32(logit_of(expected[place])) for place in (0, 1, 0, 2, 1)], dtype=np.float64)
    np.testing.assert_allclose(scored.scores, 1 / (1 + np.exp(-logits)), rtol=0, atol=NEAR)
    assert scored.vectors is None


def test_equal_scores_are_in_the_order_sent(tokenizer: Tokenizer) -> None:
    reranker = Reranker(parts_of(tokenizer, FakeSession(logit_of)), SCORERS[Scoring.YES_NO])
    ranking = reranker.rank("red fox?", DOCUMENTS)
    places = {text: [i for i in ranking.order if DOCUMENTS[i] == text] for text in DOCUMENTS}
    assert places == {"dog": [0, 2], "the red fox": [1, 4], "": [3]}
    assert ranking.scores == sorted(ranking.scores, reverse=True)
    assert reranker.rank("red fox?", DOCUMENTS, RankOptions(top_n=2)).order == ranking.order[:2]


def test_the_instruction_reaches_the_graph(tokenizer: Tokenizer) -> None:
    session = FakeSession(logit_of)
    asked = RankOptions(instruction="Find what refutes")
    yes_no.score(parts_of(tokenizer, session), "red fox?", ["dog"], asked)
    assert session.sequences == prompts(tokenizer, ["dog"], instruction="Find what refutes")


@pytest.mark.parametrize("instruction", [None, "a very long instruction " * 50])
def test_usage_counts_the_query_once_and_every_document_alone(
    tokenizer: Tokenizer, instruction: str | None
) -> None:
    parts = parts_of(tokenizer, FakeSession(logit_of), max_tokens=400)
    documents = [*DOCUMENTS, "fox " * 1000]
    counts = [len(tokenizer.native.encode(text).ids) for text in ("red fox?", *documents)]
    assert counts[-1] > 400
    scored = yes_no.score(parts, "red fox?", documents, RankOptions(instruction=instruction))
    assert scored.num_tokens == sum(min(count, 400) for count in counts)


@pytest.mark.parametrize("logit", [np.nan, np.inf])
def test_a_logit_that_is_not_finite_is_refused(tokenizer: Tokenizer, logit: float) -> None:
    with pytest.raises(ModelOutputInvalid):
        yes_no.score(parts_of(tokenizer, FakeSession(lambda ids: logit)), "fox", ["dog"], RankOptions())


@pytest.mark.parametrize(("logit", "score"), [(0, 0.5), (-200, 0), (200, 1)])
def test_a_score_is_a_probability(tokenizer: Tokenizer, logit: float, score: float) -> None:
    session = FakeSession(lambda ids: logit)
    found = yes_no.score(parts_of(tokenizer, session), "fox", ["dog"], RankOptions())
    assert found.scores.tolist() == pytest.approx([score], abs=NEAR)


def test_a_query_that_fills_the_prompt_is_not_written_out_for_every_document(tokenizer: Tokenizer) -> None:
    documents = [f"document {number}" for number in range(2000)]
    tracemalloc.start()
    made = prompts(tokenizer, documents, query="fox " * 250_000, max_tokens=400)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(made) == len(documents) and {len(ids) for ids in made} == {400}
    assert peak < 50e6  # a million characters, not two billion


@pytest.mark.parametrize("num_words", [*range(120, 140), 250, 300, 1000])
def test_a_long_query_makes_the_prompt_that_the_whole_body_would_make(
    tokenizer: Tokenizer, num_words: int
) -> None:
    query = " fox" * num_words
    found = prompts(tokenizer, ["the red fox", "dog"], query=query, max_tokens=400)
    whole = prompts(tokenizer, ["the red fox", "dog"], query=query, max_tokens=8192)
    suffix = bare_ids(tokenizer, SUFFIX)
    for cut, full in zip(found, whole, strict=True):
        assert cut[: 400 - len(suffix)][:300] == full[:300]
        assert cut[-len(suffix) :] == suffix and len(cut) == min(400, len(full))


def test_prompts_that_a_long_query_makes_equal_are_run_once(tokenizer: Tokenizer) -> None:
    session = FakeSession(logit_of)
    parts = parts_of(tokenizer, session, max_tokens=400)
    scored = yes_no.score(parts, " fox" * 1000, ["dog", "the red fox", "sea"], RankOptions())
    assert len(session.sequences) == 1
    assert len(set(scored.scores.tolist())) == 1
