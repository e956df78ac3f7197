"""Scores documents in sight of each other: one prompt holds the query and a block of documents.

A vector stands for each of them; the score of a document is its cosine with the query. Several blocks have
several query vectors: their average, weighted by each block's best score, scores all documents.
Source of prompt, lengths and weights: jinaai/jina-reranker-v3, modeling.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from service import inference
from service.errors import ModelOutputInvalid
from service.manifest import Listwise, Output
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
MAX_PROMPT_TOKENS = 1 << 20  # beyond what a block can have: a prompt is never cut


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


def score(parts: Parts, query: str, documents: Sequence[str], asked: RankOptions) -> Scored:
    """Score each document from -1 to 1. Raises ModelUnavailable, ModelOutputInvalid."""
    limits = limits_of(parts, asked)
    encoded = parts.tokenizer.encode([query, *documents], parts.manifest.max_tokens)
    num_billed = sum(len(tokens.ids) for tokens in encoded)
    first, *others = [parts.tokenizer.bare(tokens.ids) for tokens in encoded]
    searched = cut(parts.tokenizer, query, first, limits.max_query_length)
    read = [
        cut(parts.tokenizer, text, ids, limits.max_doc_length)
        for text, ids in zip(documents, others, strict=True)
    ]
    instruction = _cut_instruction(parts, asked.instruction, limits)
    blocks = [
        _run(parts, limits, searched.content, [text.content for text in block], instruction)
        for block in split(searched.num_tokens, read, limits)
    ]
    vectors = np.concatenate([block.documents for block in blocks])
    return Scored(cosines(_query_of(blocks), vectors), num_billed, vectors)


def limits_of(parts: Parts, asked: RankOptions) -> Listwise:
    """Return the model's limits with those of the request in their places."""
    known = parts.manifest.listwise
    assert known, "a listwise model has limits"
    return replace(
        known,
        max_query_length=asked.max_query_length or known.max_query_length,
        max_doc_length=asked.max_doc_length or known.max_doc_length,
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


def _cut_instruction(parts: Parts, instruction: str | None, limits: Listwise) -> str | None:
    """Cut an instruction like a query: a prompt has positions only for so many tokens."""
    if instruction is None:
        return None
    (tokens,) = parts.tokenizer.encode([instruction], parts.manifest.max_tokens)
    return cut(
        parts.tokenizer, instruction, parts.tokenizer.bare(tokens.ids), limits.max_query_length
    ).content


def _run(
    parts: Parts, limits: Listwise, query: str, documents: Sequence[str], instruction: str | None
) -> Block:
    (tokens,) = parts.tokenizer.encode([prompt(query, documents, instruction, limits)], MAX_PROMPT_TOKENS)
    ids = parts.tokenizer.bare(tokens.ids)
    ((vectors,),) = inference.run(parts.graphs, parts.scheduler, None, [ids], [Output.PROJECTED])
    if len(vectors) != len(documents) + 1:
        raise ModelOutputInvalid(parts.manifest.name)
    return Block(vectors[-1], vectors[:-1])


def _query_of(blocks: Sequence[Block]) -> Floats:
    """Average the query vectors of the blocks by their weights: (size,)."""
    if len(blocks) == 1:
        return blocks[0].query
    weights = np.array([block.weight for block in blocks])
    queries = [block.query for block in blocks]
    average = np.average(queries, axis=0, weights=weights if weights.any() else None)
    return np.asarray(average, dtype=np.float32)
