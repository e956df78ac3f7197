"""Scores pairs of texts by a language model that is asked for yes or no: the score is P(yes).

Knows the prompt and its lengths, nothing of graphs.
Source of both: QwenLM/Qwen3-Embedding, README and examples/qwen3_reranker_transformers.py.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from service import estimates
from service.scoring import Parts, RankOptions, Scored, logits, sigmoid
from service.tokenization import TEXTS_AT_ONCE, Ids

INSTRUCTION = "Given a web search query, retrieve relevant passages that answer the query"
PREFIX = (
    "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the "
    'Instruct provided. Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n'
)
BODY = "<Instruct>: {instruction}\n<Query>: {query}\n<Document>: {document}"
SUFFIX = "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"


def score(parts: Parts, query: str, documents: Sequence[str], options: RankOptions) -> Scored:
    """Score each document from 0 to 1. Raises InvalidRequest, ModelUnavailable, ModelOutputInvalid."""
    found = sigmoid(logits(parts, prompts(parts, query, documents, options.instruction)))
    encoded = parts.tokenizer.encode([query, *documents], parts.manifest.max_tokens)
    return Scored(found, sum(len(tokens.ids) for tokens in encoded))


def estimate(parts: Parts, query: str, documents: Sequence[str], options: RankOptions) -> int:
    """Estimate the tokens of all prompts before any is made."""
    limit = parts.manifest.max_tokens
    head = BODY.format(instruction=options.instruction or INSTRUCTION, query=query, document="")
    num_every = estimates.num_tokens(PREFIX + SUFFIX, limit) + estimates.num_tokens(head, limit)
    return sum(min(limit, num_every + estimates.num_tokens(text, limit)) for text in documents)


def prompts(parts: Parts, query: str, documents: Sequence[str], instruction: str | None) -> list[Ids]:
    """Make the token ids of each document's prompt; only its body is cut, on the right."""
    tokenizer = parts.tokenizer
    prefix, suffix = _frame(parts)
    limit = room(parts)
    head = BODY.format(instruction=instruction or INSTRUCTION, query=query, document="")
    if len(tokenizer.encode_bare([head], 2 * limit)[0]) == 2 * limit:  # no document gets into the prompt
        (body,) = tokenizer.encode_bare([head], limit)
        return [np.concatenate([prefix, body, suffix])] * len(documents)
    made: list[Ids] = []
    for begin in range(0, len(documents), TEXTS_AT_ONCE):  # the query is in every body: they take memory
        bodies = [head + document for document in documents[begin : begin + TEXTS_AT_ONCE]]
        made += [np.concatenate([prefix, body, suffix]) for body in tokenizer.encode_bare(bodies, limit)]
    return made


def room(parts: Parts) -> int:
    """Return the tokens that a prompt leaves for query and document."""
    return parts.manifest.max_tokens - sum(map(len, _frame(parts)))


def _frame(parts: Parts) -> tuple[Ids, Ids]:
    """Return what stands before and behind the body of every prompt, whole."""
    prefix, suffix = parts.tokenizer.encode_bare([PREFIX, SUFFIX], len(PREFIX))  # never more than characters
    return prefix, suffix
