"""Scores pairs of texts by a language model that is asked for yes or no: the score is P(yes).

Source of prompt and lengths: QwenLM/Qwen3-Embedding, README and examples/qwen3_reranker_transformers.py.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from service.scoring import Distinct, Parts, RankOptions, Scored, logits, sigmoid
from service.tokenization import Ids

INSTRUCTION = "Given a web search query, retrieve relevant passages that answer the query"
PREFIX = (
    "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the "
    'Instruct provided. Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n'
)
BODY = "<Instruct>: {instruction}\n<Query>: {query}\n<Document>: {document}"
SUFFIX = "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"


def score(parts: Parts, query: str, documents: Sequence[str], asked: RankOptions) -> Scored:
    """Score each document from 0 to 1. Raises ModelUnavailable, ModelOutputInvalid."""
    distinct = Distinct.of(documents)
    found = sigmoid(logits(parts, prompts(parts, query, distinct.texts, asked.instruction)))
    encoded = parts.tokenizer.encode([query, *distinct.texts], parts.manifest.max_tokens)
    lengths = [len(tokens.ids) for tokens in encoded]
    return Scored(found[distinct.places], lengths[0] + sum(lengths[1 + place] for place in distinct.places))


def prompts(parts: Parts, query: str, documents: Sequence[str], instruction: str | None) -> list[Ids]:
    """Make the token ids of each document's prompt; only its body is cut, on the right."""
    tokenizer, limit = parts.tokenizer, parts.manifest.max_tokens
    prefix, suffix = (tokenizer.bare(tokens.ids) for tokens in tokenizer.encode([PREFIX, SUFFIX], limit))
    room = max(1, limit - len(prefix) - len(suffix))
    asked = instruction or INSTRUCTION
    bodies = [BODY.format(instruction=asked, query=query, document=document) for document in documents]
    num_special = len(tokenizer.single.opening) + len(tokenizer.single.closing)
    encoded = tokenizer.encode(bodies, room + num_special)
    return [np.concatenate([prefix, tokenizer.bare(tokens.ids), suffix]) for tokens in encoded]
