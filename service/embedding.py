"""One embedding model: texts to unit vectors. Knows tokens, graphs and pooling, nothing of HTTP."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from service import inference, late_chunking, options, pooling, tokenization
from service.errors import InvalidRequest
from service.graphs import WARM_UP_TEXTS, Graphs
from service.late_chunking import Document
from service.manifest import TOKENIZER_FILE, Manifest, Output, Task
from service.options import EmbedOptions
from service.pooling import SpanMeans, SparseVector
from service.scheduler import Scheduler
from service.tokenization import Tokenizer

# Vectors of one answer beyond one for each input; a vector of 1024 numbers takes some 13 kB as JSON.
MAX_COLBERT_TOKENS = 32_768
MAX_CHUNKS = 16_384
MAX_DOCUMENT_CHARACTERS = 2_000_000  # of late chunking: their tokens with offsets take half a gigabyte

Ids = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Embeddings:
    """Unit vectors (n, dimensions) in input order, the tokens billed, and what else was asked for."""

    vectors: Floats
    num_tokens: int
    sparse: list[SparseVector] | None = None
    colbert: list[Floats] | None = None  # for each input (its tokens but the first, size), rows of length 1


@dataclass(frozen=True)
class EmbeddingModel:
    """A loaded embedding model."""

    manifest: Manifest
    tokenizer: Tokenizer
    graphs: Graphs
    scheduler: Scheduler
    unweighted_ids: frozenset[int]  # never part of a sparse vector

    def embed(self, texts: Sequence[str], asked: EmbedOptions) -> Embeddings:
        """Embed texts, at least one.

        Raises InvalidRequest for what this model cannot do, ModelUnavailable when a task's graph is broken,
        ModelOutputInvalid for NaN and infinity.
        """
        options.check(self.manifest, asked)
        if asked.late_chunking:
            _check_limit("characters", sum(map(len, texts)), MAX_DOCUMENT_CHARACTERS, "input")
            whole = late_chunking.document(texts)
            _check_limit("chunks", len(whole.chunk_ends), MAX_CHUNKS, "input")
            return self.embed_document(whole, asked)
        dimensions = options.dimensions_of(self.manifest, asked)
        task = options.task_of(self.manifest, asked)
        task_name = task.name if task else None
        sequences = self._checked_tokens(texts, task, truncate=asked.truncate)
        if asked.return_colbert:
            _check_limit("tokens", sum(map(len, sequences)), MAX_COLBERT_TOKENS, "return_colbert")
        outputs = [Output.POOLED]
        outputs += [output for field, output in options.OUTPUTS.items() if getattr(asked, field)]
        num_tokens = self._num_billed(texts, sequences, task)
        rows = inference.run(self.graphs, self.scheduler, task_name, sequences, outputs)
        computed = dict(zip(outputs, zip(*rows, strict=True), strict=True))
        return Embeddings(
            vectors=pooling.unit(np.stack(computed[Output.POOLED]), dimensions),
            num_tokens=num_tokens,
            sparse=self._sparse(sequences, computed.get(Output.SPARSE)),
            colbert=_colbert(computed.get(Output.COLBERT)),
        )

    def embed_document(self, whole: Document, asked: EmbedOptions) -> Embeddings:
        """Embed the chunks of a document, each from states that have seen all of its window.

        Raises InvalidRequest for a chunk without a token, otherwise as `embed`.
        """
        dimensions = options.dimensions_of(self.manifest, asked)
        task = options.task_of(self.manifest, asked)
        task_name, prefix = (task.name, task.prefix) if task else (None, "")
        located = self.tokenizer.locate(prefix + whole.text)
        plan = late_chunking.plan(whole, located, len(prefix), self.manifest.max_tokens)
        means = SpanMeans(plan.num_chunks, self.manifest.dimensions)
        for window in plan.windows:  # one after the other: the states of a window need 32 MB and more
            ((states,),) = inference.run(
                self.graphs, self.scheduler, task_name, [window.ids], [Output.TOKEN_EMBEDDINGS]
            )
            means.add(states, window.chunks)
        return Embeddings(
            vectors=pooling.unit(means.means(), dimensions),
            num_tokens=self._num_billed([whole.text], [located.ids[: self.manifest.max_tokens]], task),
        )

    def warm_up(self) -> None:
        """Run both ways through every open graph. Raises ModelOutputInvalid when an answer is not finite."""
        for task in self.graphs.open_tasks():
            named = task or self.manifest.default_task or next(iter(self.manifest.task_names), None)
            self.embed(WARM_UP_TEXTS, EmbedOptions(task=named, truncate=True))

    def _checked_tokens(self, texts: Sequence[str], task: Task | None, *, truncate: bool) -> list[Ids]:
        """Tokenize; refuse inputs over the limit unless `truncate`."""
        limit = self.manifest.max_tokens
        prefix = task.prefix if task else ""
        encoded = self.tokenizer.encode([prefix + text for text in texts], limit)
        for index, tokens in enumerate(encoded):
            if tokens.num_tokens > limit and not truncate:
                count = f"{'' if tokens.is_whole else 'at least '}{tokens.num_tokens}"
                with_prefix = " with the prefix of its task" if prefix else ""
                raise InvalidRequest(
                    f"input[{index}] has {count} tokens{with_prefix}, more than the {limit} that "
                    f"{self.manifest.name} takes. Send 'truncate': true to cut it off, or split it.",
                    param=f"input[{index}]",
                    code="input_too_long",
                )
        return [tokens.ids for tokens in encoded]

    def _num_billed(self, texts: Sequence[str], sequences: Sequence[Ids], task: Task | None) -> int:
        """Count the texts' own tokens, without a prefix. Raises InvalidRequest for a text without any."""
        if task and task.prefix:
            sequences = [tokens.ids for tokens in self.tokenizer.encode(texts, self.manifest.max_tokens)]
        for index, ids in enumerate(sequences):
            if not len(ids):
                raise InvalidRequest(
                    f"input[{index}] has no token; send a text.", param=f"input[{index}]", code="empty_input"
                )
        return sum(map(len, sequences))

    def _sparse(
        self, sequences: Sequence[Ids], weights: Sequence[Floats] | None
    ) -> list[SparseVector] | None:
        if weights is None:
            return None
        return [
            pooling.sparse(ids, row, self.unweighted_ids) for ids, row in zip(sequences, weights, strict=True)
        ]


def open_model(graphs: Graphs, scheduler: Scheduler) -> EmbeddingModel:
    """Open a bundle's tokenizer around its graphs. Raises BundleError when it is broken."""
    tokenizer = tokenization.load(graphs.folder / TOKENIZER_FILE)
    unweighted = tokenizer.ids_of(graphs.manifest.unweighted_tokens)
    return EmbeddingModel(graphs.manifest, tokenizer, graphs, scheduler, unweighted)


def _colbert(projected: Sequence[Floats] | None) -> list[Floats] | None:
    """Drop the first token's vector and scale the others to length 1."""
    if projected is None:
        return None
    return [pooling.unit(row[1:], row.shape[1]) for row in projected]


def _check_limit(what: str, count: int, limit: int, param: str) -> None:
    """Refuse an answer that would take gigabytes."""
    if count > limit:
        raise InvalidRequest(
            f"{param}: {count} {what} are more than the {limit} of one request; send less at a time.",
            param=param,
            code=f"too_many_{what}",
        )
