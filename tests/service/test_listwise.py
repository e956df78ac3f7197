"""The listwise reranker: what is cut, which documents share a prompt, the prompt, and the final scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from service import listwise, tokenization
from service.errors import InvalidRequest, ModelOutputInvalid
from service.limits import PROMPT_ROOM, Listwise
from service.listwise import Text
from service.manifest import Kind, Manifest, Pooling, Scoring, Source
from service.scoring import Parts, RankOptions
from service.tokenization import Tokenizer
from tests import qwen
from tests.service import fakes
from tests.service.fakes import Compute, FakeSession

DOCUMENT_MARKER, QUERY_MARKER = "<|embed_token|>", "<|rerank_token|>"
LIMITS = Listwise(
    document_marker=DOCUMENT_MARKER,
    query_marker=QUERY_MARKER,
    max_query_length=512,
    max_doc_length=2048,
    block_size=125,
    capacity=131_072,
)
NEAR = 1e-6
# As modeling.py of jinaai/jina-reranker-v3 writes it.
PROMPT = """<|im_start|>system
You are a search relevance expert who can determine a ranking of the passages based on how relevant they are \
to the query. If the query is a question, how relevant a passage is depends on how well it answers the \
question. If not, try to analyze the intent of the query and assess how well each passage satisfies the \
intent. If an instruction is provided, you should follow the instruction when determining the ranking.\
<|im_end|>
<|im_start|>user
I will provide you with 2 passages, each indicated by a numerical identifier. Rank the passages based on \
their relevance to query: What is {{bread}}?
{instruction}<passage id="0">
Flour, {{0}} and
water<|embed_token|>
</passage>
<passage id="1">
<|embed_token|>
</passage>
<query>
What is {{bread}}?<|rerank_token|>
</query><|im_end|>
<|im_start|>assistant
<think>

</think>

"""


def manifest(limits: Listwise = LIMITS, max_tokens: int = 8192) -> Manifest:
    return Manifest(
        name="m",
        kind=Kind.RERANKER,
        pooling=Pooling.MARKERS,
        scoring=Scoring.LISTWISE,
        listwise=limits,
        licence="",
        owned_by="",
        source=Source(id=""),
        max_tokens=max_tokens,
        vocabulary_size=10_000,
    )


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    path = Path(tmp_path_factory.mktemp("listwise")) / "tokenizer.json"
    qwen.tokenizer((DOCUMENT_MARKER, QUERY_MARKER)).save(str(path))
    return tokenization.load(path)


def ids_of(tokenizer: Tokenizer, text: str) -> np.ndarray:
    return tokenizer.encode([text], 10_000)[0].ids


def parts_of(tokenizer: Tokenizer, session: FakeSession, limits: Listwise = LIMITS) -> Parts:
    described = manifest(limits)
    return Parts(described, tokenizer, fakes.graphs(described, session), fakes.scheduler())


def prompts_of(tokenizer: Tokenizer, session: FakeSession) -> list[str]:
    """Return the prompts that a session has run."""
    return [tokenizer.decode(np.array(ids)) for ids in session.sequences]


# --- the prompt -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("instruction", "lines"),
    [
        (None, ""),
        ("", ""),
        ("Prefer {recipes}", "<instruct>\nPrefer {recipes}\n</instruct>\n"),
        (f"Prefer {QUERY_MARKER}recipes", "<instruct>\nPrefer recipes\n</instruct>\n"),
    ],
    ids=["none", "empty", "given", "with-a-marker"],
)
def test_the_prompt_is_the_published_one(instruction: str | None, lines: str) -> None:
    documents = ["Flour, {0} and\nwater", ""]
    prompt = listwise.prompt("What is {bread}?", documents, instruction, LIMITS)
    assert prompt == PROMPT.format(instruction=lines)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain", "plain"),
        (f"a{DOCUMENT_MARKER} b{QUERY_MARKER}", "a b"),
        ("<|rerank<|embed_token|>_token|>", ""),
        ("<|embed<|rerank_token|>_token|>x", "x"),
        ("<|embed<|embed<|embed_token|>_token|>_token|>", ""),
        ("<|rerank<|embed<|rerank_token|>_token|>_token|>", ""),
        ("<|embed_token<|embed_token|>", "<|embed_token"),
        ("<|im_end|> <|embed_token |>", "<|im_end|> <|embed_token |>"),
    ],
)
def test_markers_are_removed_until_none_is_left(text: str, expected: str) -> None:
    assert listwise.without(text, (DOCUMENT_MARKER, QUERY_MARKER)) == expected


@pytest.mark.parametrize("text", ["<|rerank<|embed_token|>_token|>", f"{QUERY_MARKER}{DOCUMENT_MARKER}"])
def test_a_prompt_has_one_marker_for_each_document_and_one_for_the_query(
    tokenizer: Tokenizer, text: str
) -> None:
    ids = ids_of(tokenizer, listwise.prompt(text, [text, "dog", text], text, LIMITS))
    (document,), (query,) = (tokenizer.ids_of([marker]) for marker in (DOCUMENT_MARKER, QUERY_MARKER))
    assert [np.sum(ids == marker) for marker in (document, query)] == [3, 1]
    assert np.flatnonzero(ids == query)[0] > np.flatnonzero(ids == document).max()


# --- lengths ----------------------------------------------------------------------------------------------

COMPOSED, DECOMPOSED = "caf\u00e9 fox dog", "cafe\u0301 fox dog"  # the tokenizer makes one of the other


def test_a_text_is_cut_where_its_tokens_reach_the_limit(tokenizer: Tokenizer) -> None:
    ids = ids_of(tokenizer, DECOMPOSED)
    below = listwise.cut(tokenizer, DECOMPOSED, ids, len(ids) + 1)
    assert below == Text(DECOMPOSED, len(ids)), "it stays as it is"
    reached = listwise.cut(tokenizer, DECOMPOSED, ids, len(ids))
    assert reached == Text(COMPOSED, len(ids)), "it is what its tokens decode to"
    above = listwise.cut(tokenizer, DECOMPOSED, ids, len(ids) - 1)
    assert above == Text(COMPOSED.removesuffix(" dog"), len(ids) - 1)


def test_a_cut_text_keeps_special_tokens(tokenizer: Tokenizer) -> None:
    text = f"<|im_end|>{DOCUMENT_MARKER} fox dog"
    assert listwise.cut(tokenizer, text, ids_of(tokenizer, text), 3) == Text(
        f"<|im_end|>{DOCUMENT_MARKER} fox", 3
    )


def test_limits_of_a_request_stand_in_for_those_of_the_model(tokenizer: Tokenizer) -> None:
    known = replace(LIMITS, max_query_length=7, max_doc_length=9, block_size=3, capacity=50)
    parts = parts_of(tokenizer, FakeSession(lambda ids: []), known)
    assert listwise.limits_of(parts, RankOptions()) == known
    asked = listwise.limits_of(parts, RankOptions(max_query_length=2))
    assert asked == replace(known, max_query_length=2)
    asked = listwise.limits_of(parts, RankOptions(max_doc_length=4, instruction="x", top_n=1))
    assert asked == replace(known, max_doc_length=4)


@pytest.mark.parametrize(
    ("num_query_tokens", "capacity", "block_size", "lengths", "sizes"),
    [
        (5, 1000, 125, [6] * 5, [5]),
        (5, 1000, 2, [6] * 5, [2, 2, 1]),
        (5, 1000, 5, [6] * 5, [5]),
        (5, 30, 125, [6] * 5, [2, 2, 1]),  # 20, 14, 8 are left: another of 8 may not fit
        (5, 31, 125, [6] * 5, [3, 2]),  # 21, 15, 9, 3
        (5, 30, 125, [6, 50, 6, 6, 6], [2, 2, 1]),  # one larger than the room ends its block
        (5, 30, 125, [50, 50, 6], [1, 1, 1]),
        (5, 30, 125, [1] * 14, [12, 2]),
        (20, 30, 125, [1] * 3, [1, 1, 1]),  # the query alone takes more than there is
        (5, 18, 125, [1] * 2, [1, 1]),  # 8 are left from the beginning
        (0, 30, 125, [0] * 4, [4]),
    ],
)
def test_blocks(
    num_query_tokens: int, capacity: int, block_size: int, lengths: list[int], sizes: list[int]
) -> None:
    limits = replace(LIMITS, capacity=capacity, block_size=block_size, max_doc_length=8)
    documents = [Text(str(number), length) for number, length in enumerate(lengths)]
    blocks = listwise.split(num_query_tokens, documents, limits)
    assert [len(block) for block in blocks] == sizes
    assert [text for block in blocks for text in block] == documents


@pytest.mark.parametrize("seed", range(20))
def test_blocks_are_those_of_the_published_loop(seed: int) -> None:
    draw = np.random.default_rng(seed)
    limits = replace(LIMITS, capacity=int(draw.integers(10, 400)), block_size=int(draw.integers(1, 9)),
                     max_doc_length=int(draw.integers(1, 60)))  # fmt: skip
    documents = [Text(str(number), int(draw.integers(0, 60))) for number in range(40)]
    num_query_tokens = int(draw.integers(0, 30))
    expected: list[list[Text]] = [[]]
    room = limits.capacity - 2 * num_query_tokens
    for document in documents:  # append, then close what is full
        expected[-1].append(document)
        room -= document.num_tokens
        if len(expected[-1]) >= limits.block_size or room <= limits.max_doc_length:
            expected.append([])
            room = limits.capacity - 2 * num_query_tokens
    assert listwise.split(num_query_tokens, documents, limits) == [block for block in expected if block]


# --- scores -----------------------------------------------------------------------------------------------

WORDS = ("fox", "dog", "sky", "sea", "tree")
VECTORS = dict(zip(WORDS, np.random.default_rng(0).standard_normal((len(WORDS), 3)), strict=True))


def compute_of(tokenizer: Tokenizer) -> Compute:
    """Make a graph whose vector of a document is that of its word, and of the query their sum."""
    (marker,) = tokenizer.ids_of([DOCUMENT_MARKER])

    def compute(ids: list[int]) -> list[np.ndarray]:
        places = [place for place, token_id in enumerate(ids) if token_id == marker]
        words = [tokenizer.decode(np.array(ids[:place])).rpartition("\n")[2] for place in places]
        found = [VECTORS[word.removesuffix(DOCUMENT_MARKER)] for word in words]
        return [*found, np.sum(found, axis=0)]

    return compute


def expected_scores(blocks: Sequence[Sequence[str]]) -> np.ndarray:
    """Score words as modeling.py of jinaai/jina-reranker-v3 does."""
    documents = [np.array([VECTORS[word] for word in block]) for block in blocks]
    queries = [vectors.sum(axis=0) for vectors in documents]
    weights = [
        max((1 + cosine(query, vector)) / 2 for vector in vectors)
        for query, vectors in zip(queries, documents, strict=True)
    ]
    final = sum(weight * query for weight, query in zip(weights, queries, strict=True)) / sum(weights)
    return np.array([cosine(final, vector) for vector in np.concatenate(documents)])


def cosine(one: np.ndarray, other: np.ndarray) -> float:
    return float(one @ other / np.linalg.norm(one) / np.linalg.norm(other))


@pytest.mark.parametrize(("block_size", "blocks"), [(125, [WORDS]), (2, [WORDS[:2], WORDS[2:4], WORDS[4:]])])
def test_several_blocks_have_one_query_by_their_weights(
    tokenizer: Tokenizer, block_size: int, blocks: list[tuple[str, ...]]
) -> None:
    session = FakeSession(compute_of(tokenizer))
    parts = parts_of(tokenizer, session, replace(LIMITS, block_size=block_size))
    scored = listwise.score(parts, "red", WORDS, RankOptions())
    np.testing.assert_allclose(scored.scores, expected_scores(blocks), rtol=0, atol=NEAR)
    assert scored.vectors is not None
    np.testing.assert_allclose(scored.vectors, [VECTORS[word] for word in WORDS], rtol=0, atol=NEAR)
    assert [prompt.count("<passage id=") for prompt in prompts_of(tokenizer, session)] == [
        len(block) for block in blocks
    ]


def test_equal_documents_stand_in_the_prompt_as_often_as_they_were_sent(tokenizer: Tokenizer) -> None:
    session = FakeSession(compute_of(tokenizer))
    documents = ["fox", "dog", "fox", "fox"]
    scored = listwise.score(parts_of(tokenizer, session), "red", documents, RankOptions())
    np.testing.assert_allclose(scored.scores, expected_scores([documents]), rtol=0, atol=NEAR)
    (prompt,) = prompts_of(tokenizer, session)
    assert prompt.count(f"\nfox{DOCUMENT_MARKER}") == 3 and "with 4 passages" in prompt


def test_query_and_instruction_are_cut_before_they_lose_markers(tokenizer: Tokenizer) -> None:
    session = FakeSession(compute_of(tokenizer))
    parts = parts_of(tokenizer, session, replace(LIMITS, max_query_length=3))
    text = f"{QUERY_MARKER} red fox dog"
    listwise.score(parts, text, ["fox"], RankOptions(instruction=f"{DOCUMENT_MARKER} blue sky sea"))
    (prompt,) = prompts_of(tokenizer, session)
    assert "relevance to query:  red fox\n" in prompt
    assert f"<query>\n red fox{QUERY_MARKER}\n</query>" in prompt
    assert "<instruct>\n blue sky\n</instruct>" in prompt


def test_documents_are_cut_to_the_length_of_the_request(tokenizer: Tokenizer) -> None:
    session = FakeSession(compute_of(tokenizer))
    listwise.score(parts_of(tokenizer, session), "red", ["tree sea", "sky"], RankOptions(max_doc_length=4))
    (prompt,) = prompts_of(tokenizer, session)
    assert f"\ntree{DOCUMENT_MARKER}" in prompt, "4 letters, without a space before them 4 tokens"


def test_usage_counts_the_query_once_and_every_document_alone(tokenizer: Tokenizer) -> None:
    session = FakeSession(lambda ids: np.ones((4, 2)))
    parts = parts_of(tokenizer, session)
    parts = replace(parts, manifest=replace(parts.manifest, max_tokens=20))
    documents = ["fox", "fox", " fox" * 30]
    asked = RankOptions(instruction="dog " * 10, max_doc_length=2)
    expected = sum(min(20, len(ids_of(tokenizer, text))) for text in ["red", *documents])
    assert listwise.score(parts, "red", documents, asked).num_tokens == expected


@pytest.mark.parametrize(
    "vectors", [np.ones((2, 3)), np.ones((4, 3)), [[1, 0, 0], [np.nan, 0, 0], [1, 1, 1]]], ids=str
)
def test_a_graph_that_answers_wrongly_is_refused(tokenizer: Tokenizer, vectors: object) -> None:
    parts = parts_of(tokenizer, FakeSession(lambda ids: vectors))
    with pytest.raises(ModelOutputInvalid):
        listwise.score(parts, "red", ["fox", "dog"], RankOptions())


def test_scores_stay_within_their_range() -> None:
    vectors = np.array([[1, 1, 1], [-1, -1, -1], [3, 3, 3], [0, 0, 0]], dtype=np.float32) / np.float32(3)
    scores = listwise.cosines(vectors[0], vectors)
    np.testing.assert_allclose(scores, [1, -1, 1, 0], rtol=0, atol=NEAR)
    assert np.abs(scores).max() <= 1


def test_a_prompt_has_positions_whatever_the_instruction(tokenizer: Tokenizer) -> None:
    (marker,) = tokenizer.ids_of([DOCUMENT_MARKER])
    session = FakeSession(lambda ids: np.ones((1 + ids.count(marker), 3)))
    limits = replace(LIMITS, capacity=12_000)
    asked = RankOptions(instruction=" fox" * 9000, max_query_length=8192)
    listwise.score(parts_of(tokenizer, session, limits), "fox", [" fox" * 1000] * 12, asked)
    assert max(map(len, session.sequences)) <= limits.capacity + PROMPT_ROOM


def test_texts_are_cut_to_what_the_model_takes(tokenizer: Tokenizer) -> None:
    session = FakeSession(lambda ids: np.ones((2, 3)))
    parts = parts_of(tokenizer, session)
    parts = replace(parts, manifest=replace(parts.manifest, max_tokens=20))
    text = " fox" * 50
    listwise.score(parts, text, [text], RankOptions(instruction=text))
    (prompt,) = prompts_of(tokenizer, session)
    assert prompt.count(" fox") == 4 * 20  # a document, an instruction, and the query twice


def test_a_prompt_beyond_the_positions_names_the_query(tokenizer: Tokenizer) -> None:
    session = FakeSession(lambda ids: np.ones((2, 3)))
    parts = parts_of(tokenizer, session, replace(LIMITS, capacity=2000))
    options = RankOptions(max_query_length=4000, max_doc_length=4000)
    with pytest.raises(InvalidRequest) as refused:
        listwise.score(parts, " fox" * 4000, [" fox" * 4000], options)
    assert (refused.value.param, refused.value.code) == ("query", "prompt_too_long")
    assert not session.sequences
