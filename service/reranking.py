"""One reranker: a query and documents to scores. Knows tokens and graphs, nothing of HTTP.

Source of the lengths: FlagEmbedding, BaseReranker: the query takes at most three quarters of the limit, the
document what is left.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from service import tokenization
from service.errors import ModelOutputInvalid
from service.graphs import WARM_UP_TEXTS, Graphs
from service.manifest import TOKENIZER_FILE, Manifest, Output
from service.scheduler import Scheduler
from service.tokenization import Tokenizer

Ids = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Ranking:
    """Documents by score, best first, and the tokens they are billed for."""

    order: list[int]  # indices of documents; equal scores by index
    scores: list[float]  # in that order, 0 to 1
    num_tokens: int


@dataclass(frozen=True)
class Reranker:
    """A loaded reranker that scores pairs."""

    manifest: Manifest
    tokenizer: Tokenizer
    graphs: Graphs
    scheduler: Scheduler

    def rank(self, query: str, documents: Sequence[str], top_n: int | None = None) -> Ranking:
        """Score documents, at least one, and return the best `top_n`, all without it.

        Raises ModelUnavailable when the graph is broken, ModelOutputInvalid for NaN and infinity.
        """
        limit = self.manifest.max_tokens
        distinct = {text: place for place, text in enumerate(dict.fromkeys(documents))}
        asked, *read = [tokens.ids for tokens in self.tokenizer.encode([query, *distinct], limit)]
        places = [distinct[text] for text in documents]  # equal documents run once: their scores are equal
        scores = 1 / (1 + np.exp(-self.logits(asked, read)[places].astype(np.float64)))
        order = np.argsort(-scores, kind="stable")[:top_n]
        num_tokens = len(asked) + sum(len(read[place]) for place in places)
        return Ranking(order.tolist(), scores[order].tolist(), num_tokens)

    def logits(self, query: Ids, documents: Sequence[Ids]) -> Floats:
        """Score token ids, each text with its special tokens: (documents,)."""
        pairs = [self.pair(query, document) for document in documents]
        rows = self.scheduler.submit(self.graphs.session(None), pairs, [Output.SCORES])
        logits = np.array([value for (value,) in rows], dtype=np.float32)
        if not np.isfinite(logits).all():
            raise ModelOutputInvalid(self.manifest.name)
        return logits

    def pair(self, query: Ids, document: Ids) -> Ids:
        """Join token ids of two texts by the tokenizer's own template, cut to the limit."""
        template, limit = self.tokenizer.pair, self.manifest.max_tokens
        first = self.tokenizer.bare(query)[: limit * 3 // 4]
        specials = (template.opening, template.between, template.closing)
        room = max(0, limit - len(first) - sum(map(len, specials)))
        second = self.tokenizer.bare(document)[:room]
        return np.concatenate([template.opening, first, template.between, second, template.closing])

    def warm_up(self) -> None:
        """Run both ways through the graph once. Raises ModelOutputInvalid when an answer is not finite."""
        self.rank(WARM_UP_TEXTS[0], WARM_UP_TEXTS)


def open_model(graphs: Graphs, scheduler: Scheduler) -> Reranker:
    """Open a bundle's tokenizer around its graph. Raises BundleError when it is broken."""
    tokenizer = tokenization.load(graphs.folder / TOKENIZER_FILE)
    return Reranker(graphs.manifest, tokenizer, graphs, scheduler)
