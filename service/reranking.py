"""One reranker: a query and documents to an order. Knows the ways of scoring, nothing of HTTP."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np

from service import listwise, pairs, tokenization, yes_no
from service.errors import BundleError, InvalidRequest
from service.graphs import WARM_UP_TEXTS, Graphs
from service.manifest import TOKENIZER_FILE, Manifest, Scoring
from service.pooling import unit
from service.scoring import Floats, Parts, RankOptions, Scored
from service.shares import Runs
from service.tickets import Ticket
from service.tokenization import Tokenizer

Score = Callable[[Parts, str, Sequence[str], RankOptions], Scored]
Estimate = Callable[[Parts, str, Sequence[str], RankOptions], int]


@dataclass(frozen=True)
class Scorer:
    """A way of scoring, its tokens told before any work, and the options that it knows beside `top_n`."""

    score: Score
    estimate: Estimate
    options: tuple[str, ...] = ()


SCORERS = {
    Scoring.CLASSIFIER: Scorer(pairs.score, pairs.estimate),
    Scoring.YES_NO: Scorer(yes_no.score, yes_no.estimate, ("instruction",)),
    Scoring.LISTWISE: Scorer(
        listwise.score,
        listwise.estimate,
        ("instruction", "max_query_length", "max_doc_length", "return_embeddings"),
    ),
}
LENGTHS = ("max_query_length", "max_doc_length")


@dataclass(frozen=True)
class Ranking:
    """Documents by score, best first, and the tokens they are billed for."""

    order: list[int]  # indices of documents; equal scores by index
    scores: list[float]  # in that order
    num_tokens: int
    embeddings: Floats | None = None  # (documents, size) in that order, rows of length 1


@dataclass(frozen=True)
class Reranker:
    """A loaded reranker."""

    parts: Parts
    scorer: Scorer

    @property
    def manifest(self) -> Manifest:
        """Return what is known of the model."""
        return self.parts.manifest

    @property
    def tokenizer(self) -> Tokenizer:
        """Return the model's tokenizer."""
        return self.parts.tokenizer

    @property
    def graphs(self) -> Graphs:
        """Return the model's graphs."""
        return self.parts.graphs

    def shared(self, ticket: Ticket) -> Reranker:
        """Return the model as it works for one request."""
        return replace(self, parts=replace(self.parts, scheduler=self.parts.scheduler.share(ticket)))

    def estimate(self, query: str, documents: Sequence[str], options: RankOptions | None = None) -> int:
        """Estimate the tokens that scoring computes, before anything is done with the texts.

        Raises InvalidRequest for what this model cannot do.
        """
        options = options or RankOptions()
        self._check(options)
        return self.scorer.estimate(self.parts, query, documents, options)

    def rank(self, query: str, documents: Sequence[str], options: RankOptions | None = None) -> Ranking:
        """Score documents, at least one, and return the best `top_n`, all without it.

        Raises InvalidRequest for what this model cannot do, ModelUnavailable when the graph is broken,
        ModelOutputInvalid for NaN and infinity, WaitedTooLong and ClientGone where its ticket says so.
        """
        options = options or RankOptions()
        self._check(options)
        scored = self.scorer.score(self.parts, query, documents, options)
        order = np.argsort(-scored.scores, kind="stable")[: options.top_n]
        vectors = None
        if options.return_embeddings and scored.vectors is not None:
            vectors = unit(scored.vectors[order], scored.vectors.shape[1])
        return Ranking(order.tolist(), scored.scores[order].tolist(), scored.num_tokens, vectors)

    def warm_up(self) -> None:
        """Run both ways through the graph once. Raises ModelOutputInvalid when an answer is not finite."""
        self.rank(WARM_UP_TEXTS[0], WARM_UP_TEXTS)

    def _check(self, options: RankOptions) -> None:
        """Refuse options that the way of scoring does not have, and lengths out of range."""
        for option in (field.name for field in fields(options) if field.name != "top_n"):
            value = getattr(options, option)
            if value is not None and value is not False and option not in self.scorer.options:
                raise InvalidRequest(
                    f"Model {self.manifest.name} has no {option}; leave it out.",
                    param=option,
                    code="unsupported_option",
                )
        for option in LENGTHS:
            length = getattr(options, option)
            if length is not None and not 1 <= length <= self.manifest.max_tokens:
                raise InvalidRequest(
                    f"'{option}' is {length}; model {self.manifest.name} takes 1 to "
                    f"{self.manifest.max_tokens} tokens.",
                    param=option,
                    code="invalid_length",
                )


def open_model(graphs: Graphs, scheduler: Runs) -> Reranker:
    """Open a bundle's tokenizer around its graph. Raises BundleError when it is broken."""
    manifest = graphs.manifest
    if manifest.scoring is None or (manifest.scoring == Scoring.LISTWISE and manifest.listwise is None):
        raise BundleError(f"{graphs.folder} does not say how its scores are made: bake it again")
    parts = Parts(manifest, tokenization.load(graphs.folder / TOKENIZER_FILE), graphs, scheduler)
    if manifest.scoring == Scoring.YES_NO and yes_no.room(parts) < 1:
        raise BundleError(
            f"{graphs.folder} takes {manifest.max_tokens} tokens, fewer than its own prompt has"
        )
    return Reranker(parts, SCORERS[manifest.scoring])
