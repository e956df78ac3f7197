"""Scores documents in sight of each other: one prompt holds the query and a block of documents.

A vector stands for each of them; the score of a document is its cosine with the query. Several blocks have
several query vectors: their average, weighted by each block's best score, scores all documents.
Knows the prompt, its lengths and the arithmetic on vectors, nothing of graphs.
Source of prompt, lengths and weights: jinaai/jina-reranker-v3, modeling.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from service import estimates, inference
from service.errors import InvalidRequest, ModelOutputInvalid
from service.limits import PROMPT_ROOM, Listwise
from service.manifest import Output
from service.pooling import unit
from service.scoring import Floats, Parts, RankOptions, Scored, Scores
from service.tokenization import Ids, Tokenizer

SYSTEM = (
    "You are a search relevance expert who can determine a ranking of the passages based on how relevant "
    "they are to the query. If the query is a question, how relevant a passage is depends on how well it "
    "answers the question. If not, try to analyze the intent of the query and assess how well each passage "
    "satisfies the intent. If an instruction is provided, you should follow the instruction when determining "
    "the ranking."
)
OPENING = "<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n"
TASK = (
    "I will provide you with {count} passages, each indicated by a numerical identifier. Rank the passages "
    "based on their relevance to query: {query}\n"
)
INSTRUCTION = "<instruct>\n{instruction}\n</instruct>\n"
PASSAGE = '<passage id="{number}">\n{document}{marker}\n</passage>'
QUERY = "<query>\n{query}{marker}\n</query>"
CLOSING = "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"


@dataclass(frozen=True)
class Text:
    """A text as it stands in a prompt, and the tokens it had when it was cut."""

    content: str
    num_tokens: int


@dataclass(frozen=True)
class Block:
    """What became of one prompt."""

    query: Floats  # (size,)
    documents: Floats  # (documents, size)

    @property
    def weight(self) -> float:
        """Return the weight of the block's query vector: its best score, from 0 to 1."""
        return float(np.max((1 + cosines(self.query, self.documents)) / 2))


def score(parts: Parts, query: str, documents: Sequence[str], options: RankOptions) -> Scored:
    """Score each document from -1 to 1. Raises InvalidRequest, ModelUnavailable, ModelOutputInvalid."""
    limits = limits_of(parts, options)
    encoded = parts.tokenizer.encode([query, *documents], parts.manifest.max_tokens)
    num_billed = sum(len(tokens.ids) for tokens in encoded)
    cut_query, *cut_documents = [
        cut(parts.tokenizer, text, parts.tokenizer.bare(tokens.ids), limit)
        for text, tokens, limit in zip(
            [query, *documents],
            encoded,
            [limits.max_query_length, *[limits.max_doc_length] * len(documents)],
            strict=True,
        )
    ]
    instruction = _cut_instruction(parts, options.instruction)
    blocks = [
        _run(parts, limits, cut_query.content, [text.content for text in block], instruction)
        for block in split(cut_query.num_tokens, cut_documents, limits)
    ]
    vectors = np.concatenate([block.documents for block in blocks])
    return Scored(cosines(_query_of(blocks), vectors), num_billed, vectors)


def estimate(parts: Parts, query: str, documents: Sequence[str], options: RankOptions) -> int:
    """Estimate the tokens of all prompts before any is made; a block has the query twice."""
    limits = limits_of(parts, options)
    num_query_tokens = estimates.num_tokens(query, limits.max_query_length)
    texts = [Text("", estimates.num_tokens(text, limits.max_doc_length)) for text in documents]
    num_blocks = len(split(num_query_tokens, texts, limits))
    num_words = estimates.num_tokens(prompt("", [], options.instruction, limits), limits.capacity)
    num_every = estimates.num_tokens(PASSAGE)
    return num_blocks * (num_words + 2 * num_query_tokens) + sum(
        num_every + text.num_tokens for text in texts
    )


def limits_of(parts: Parts, options: RankOptions) -> Listwise:
    """Return the model's limits with those of the request in their places, none above what it takes."""
    known = parts.manifest.listwise
    assert known, "a listwise model has limits"
    num_special = len(parts.tokenizer.single.opening) + len(parts.tokenizer.single.closing)
    highest = parts.manifest.max_tokens - num_special
    return replace(
        known,
        max_query_length=min(options.max_query_length or known.max_query_length, highest),
        max_doc_length=min(options.max_doc_length or known.max_doc_length, highest),
    )


def cut(tokenizer: Tokenizer, text: str, ids: Ids, limit: int) -> Text:
    """Cut a text whose token ids reach the limit; one below it stays as it is."""
    if len(ids) < limit:
        return Text(text, len(ids))
    return Text(tokenizer.decode(ids[:limit]), limit)


def split(num_query_tokens: int, documents: Sequence[Text], limits: Listwise) -> list[list[Text]]:
    """Fill blocks with documents in their order.

    A block is full when it has its number of documents, or when the longest one may no longer fit.
    """
    blocks: list[list[Text]] = []
    room = 0
    for document in documents:
        is_full = not blocks or len(blocks[-1]) == limits.block_size or room <= limits.max_doc_length
        if is_full:
            blocks.append([])
            room = limits.capacity - 2 * num_query_tokens
        blocks[-1].append(document)
        room -= document.num_tokens
    return blocks


def prompt(query: str, documents: Sequence[str], instruction: str | None, limits: Listwise) -> str:
    """Write the prompt of a block. Texts lose the markers that they contain themselves."""
    markers = (limits.query_marker, limits.document_marker)
    query = without(query, markers)
    passages = [
        PASSAGE.format(number=number, document=without(document, markers), marker=limits.document_marker)
        for number, document in enumerate(documents)
    ]
    parts = [OPENING.format(system=SYSTEM), TASK.format(count=len(documents), query=query)]
    if instruction:
        parts.append(INSTRUCTION.format(instruction=without(instruction, markers)))
    parts.append("\n".join([*passages, QUERY.format(query=query, marker=limits.query_marker)]))
    return "".join([*parts, CLOSING])


def without(text: str, markers: Sequence[str]) -> str:
    """Remove markers until none is left: a removal can join two halves to another one."""
    before = None
    while text != before:
        before = text
        for marker in markers:
            text = text.replace(marker, "")
    return text


def cosines(query: Floats, documents: Floats) -> Scores:
    """Return the cosine of (size,) with each row of (documents, size), from -1 to 1."""
    found = unit(documents, documents.shape[1]).astype(np.float64) @ unit(query[None], len(query))[0]
    return np.asarray(np.clip(found, -1, 1))


def _cut_instruction(parts: Parts, instruction: str | None) -> str | None:
    """Cut an instruction to the length of a query, whatever the request's lengths.

    The capacity of a prompt does not count it, and there are positions only for so many tokens.
    """
    if instruction is None:
        return None
    limit = limits_of(parts, RankOptions()).max_query_length
    (ids,) = parts.tokenizer.encode_bare([instruction], limit)
    return cut(parts.tokenizer, instruction, ids, limit).content


def _run(
    parts: Parts, limits: Listwise, query: str, documents: Sequence[str], instruction: str | None
) -> Block:
    highest = limits.capacity + PROMPT_ROOM
    (ids,) = parts.tokenizer.encode_bare([prompt(query, documents, instruction, limits)], highest + 1)
    if len(ids) > highest:
        raise InvalidRequest(
            f"'query' and documents make a prompt of more than {highest} tokens, the most that "
            f"{parts.manifest.name} has positions for; send a shorter query, or smaller max_query_length and "
            "max_doc_length.",
            param="query",
            code="prompt_too_long",
        )
    ((vectors,),) = inference.run(parts.graphs, parts.scheduler, None, [ids], [Output.PROJECTED])
    if len(vectors) != len(documents) + 1:
        reason = "another number of vectors than there are texts"
        raise ModelOutputInvalid(parts.manifest.name, reason, "model_output_invalid")
    return Block(vectors[-1], vectors[:-1])


def _query_of(blocks: Sequence[Block]) -> Floats:
    """Average the query vectors of the blocks by their weights: (size,)."""
    if len(blocks) == 1:
        return blocks[0].query
    weights = np.array([block.weight for block in blocks])
    queries = [block.query for block in blocks]
    average = np.average(queries, axis=0, weights=weights if weights.any() else None)
    return np.asarray(average, dtype=np.float32)
