"""Scores pairs of texts by a classifier: the query and a document, joined by the tokenizer's own template.

Knows the template and the lengths, nothing of graphs. Source of the lengths: FlagEmbedding, BaseReranker: the
query takes at most three quarters of the limit, the document what is left.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from service import estimates
from service.scoring import Parts, RankOptions, Scored, logits, sigmoid
from service.tokenization import Ids


def score(parts: Parts, query: str, documents: Sequence[str], options: RankOptions) -> Scored:
    """Score each document from 0 to 1. Raises ModelUnavailable, ModelOutputInvalid."""
    encoded = parts.tokenizer.encode([query, *documents], parts.manifest.max_tokens)
    first, *others = [tokens.ids for tokens in encoded]
    found = sigmoid(logits(parts, [pair(parts, first, other) for other in others]))
    return Scored(found, sum(len(tokens.ids) for tokens in encoded))


def estimate(parts: Parts, query: str, documents: Sequence[str], options: RankOptions) -> int:
    """Estimate the tokens of all pairs before any is made."""
    limit = parts.manifest.max_tokens
    num_query_tokens = estimates.num_tokens(query, limit * 3 // 4)
    return sum(min(limit, num_query_tokens + estimates.num_tokens(text, limit)) for text in documents)


def pair(parts: Parts, query: Ids, document: Ids) -> Ids:
    """Join token ids of two texts, each with its special tokens, cut to the limit."""
    tokenizer, limit = parts.tokenizer, parts.manifest.max_tokens
    template = tokenizer.pair
    first = tokenizer.bare(query)[: limit * 3 // 4]
    specials = (template.opening, template.between, template.closing)
    room = max(0, limit - len(first) - sum(map(len, specials)))
    second = tokenizer.bare(document)[:room]
    return np.concatenate([template.opening, first, template.between, second, template.closing])
