"""One embedding model: texts and images to unit vectors. Knows tokens, graphs, pooling, nothing of HTTP."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from service import estimates, image_embedding, inference, late_chunking, options, pooling, tokenization
from service.errors import InvalidRequest
from service.graphs import WARM_UP_TEXTS, Graphs
from service.image_embedding import ImageTower, Pixels
from service.late_chunking import Document
from service.manifest import TOKENIZER_FILE, Manifest, Output, Task
from service.media import Input
from service.multimodal import ImagePrompt
from service.options import EmbedOptions
from service.pooling import SpanMeans, SparseVector
from service.shares import Runs
from service.tickets import Ticket
from service.tokenization import Tokenizer

# Vectors of one answer beyond one for each input; a vector of 1024 numbers takes some 13 kB as JSON.
MAX_COLBERT_TOKENS = 32_768
PER_TOKEN_FIELDS = ("return_colbert", "return_multivector")
MAX_CHUNKS = 16_384
MAX_DOCUMENT_CHARACTERS = (
    2_000_000  # of late chunking, once normalized: their tokens with offsets take half a gigabyte
)

Ids = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]

NO_VECTORS: Floats = np.zeros((0, 0), dtype=np.float32)


@dataclass(frozen=True, kw_only=True)
class Embeddings:
    """Unit vectors (n, dimensions) in input order, the tokens billed, and what else was asked for."""

    vectors: Floats
    num_tokens: int
    multivectors: list[Floats] | None = None  # in place of `vectors`: (tokens, size), rows of length 1
    sparse: list[SparseVector] | None = None
    colbert: list[Floats] | None = None  # for each input (its tokens but the first, size), rows of length 1


@dataclass(frozen=True)
class EmbeddingModel:
    """A loaded embedding model."""

    manifest: Manifest
    tokenizer: Tokenizer
    graphs: Graphs
    scheduler: Runs
    unweighted_ids: frozenset[int]  # never part of a sparse vector
    tower: ImageTower | None = None  # of a model that takes images

    def check(self, asked: EmbedOptions) -> None:
        """Refuse, before any work, what this model cannot do. Raises InvalidRequest."""
        options.check(self.manifest, asked)
        options.dimensions_of(self.manifest, asked)
        options.task_of(self.manifest, asked)

    def shared(self, ticket: Ticket) -> EmbeddingModel:
        """Return the model as it works for one request."""
        scheduler = self.scheduler.share(ticket)
        tower = replace(self.tower, scheduler=scheduler) if self.tower else None
        return replace(self, scheduler=scheduler, tower=tower)

    def estimate(self, inputs: Sequence[Input], asked: EmbedOptions) -> int:
        """Estimate the tokens that inputs will have, before anything is done with them."""
        limit = None if asked.late_chunking else self.manifest.max_tokens
        num_image_tokens = self.tower.max_tokens if self.tower else 0
        task = options.task_of(self.manifest, asked)
        prefix = task.prefix if task and not asked.late_chunking else ""
        return sum(
            estimates.num_tokens(prefix + item, limit) if isinstance(item, str) else num_image_tokens
            for item in inputs
        )

    def embed(self, inputs: Sequence[str | Pixels], asked: EmbedOptions) -> Embeddings:
        """Embed texts and, where the model takes them, images (height, width, 3); at least one.

        Raises InvalidRequest for what this model cannot do, ModelUnavailable when a task's graph is broken,
        ModelOutputInvalid for NaN and infinity, WaitedTooLong and ClientGone where its ticket says so.
        """
        self.check(asked)
        texts = {index: item for index, item in enumerate(inputs) if isinstance(item, str)}
        pictures = {index: item for index, item in enumerate(inputs) if not isinstance(item, str)}
        if asked.late_chunking:
            return self._embed_chunks(list(texts.values()), asked)
        task = options.task_of(self.manifest, asked)
        sequences = self._checked_tokens(texts, task, truncate=asked.truncate)
        num_tokens = self._num_billed(texts, sequences, task)
        lengths = [len(ids) for ids in sequences.values()]
        if self.tower:
            lengths += [self.tower.num_tokens(pixels) for pixels in pictures.values()]
        num_tokens += sum(lengths[len(texts) :])
        for field in PER_TOKEN_FIELDS:
            if getattr(asked, field):
                _check_limit("tokens", sum(lengths), MAX_COLBERT_TOKENS, field)
        outputs = [] if asked.return_multivector else [Output.POOLED]
        outputs += [output for field, output in options.OUTPUTS.items() if getattr(asked, field)]
        rows = self._run(sequences, pictures, task, outputs)
        columns = zip(*(rows[index] for index in range(len(inputs))), strict=True)
        computed = dict(zip(outputs, columns, strict=True))
        return self._answer(computed, sequences, asked, num_tokens)

    def _run(
        self,
        sequences: Mapping[int, Ids],
        pictures: Mapping[int, Pixels],
        task: Task | None,
        outputs: Sequence[Output],
    ) -> dict[int, tuple[Floats, ...]]:
        """Compute outputs of texts, then of images group by group: the vectors of an image take megabytes."""
        name = task.variant if task else None
        groups: Iterable[Mapping[int, Ids | ImagePrompt]] = [sequences] if sequences else []
        if self.tower:
            groups = itertools.chain(groups, self.tower.prompts(pictures))
        rows: dict[int, tuple[Floats, ...]] = {}
        for group in groups:
            inference.check_ids(self.manifest, group)
            found = inference.run(self.graphs, self.scheduler, name, list(group.values()), outputs)
            rows |= zip(group, found, strict=True)
        return rows

    def _answer(
        self,
        computed: Mapping[Output, Sequence[Floats]],
        sequences: Mapping[int, Ids],
        asked: EmbedOptions,
        num_tokens: int,
    ) -> Embeddings:
        """Turn what the graph computed into unit vectors."""
        if asked.return_multivector:
            units = [pooling.unit(row, row.shape[1]) for row in computed[Output.MULTIVECTOR]]
            return Embeddings(vectors=NO_VECTORS, multivectors=units, num_tokens=num_tokens)
        return Embeddings(
            vectors=pooling.unit(
                np.stack(computed[Output.POOLED]), options.dimensions_of(self.manifest, asked)
            ),
            num_tokens=num_tokens,
            sparse=self._sparse(list(sequences.values()), computed.get(Output.SPARSE)),
            colbert=_colbert(computed.get(Output.COLBERT)),
        )

    def _embed_chunks(self, texts: Sequence[str], asked: EmbedOptions) -> Embeddings:
        num_characters = sum(map(tokenization.grown_length, texts))
        _check_limit("characters", num_characters, MAX_DOCUMENT_CHARACTERS, "input")
        whole = late_chunking.document(texts)
        _check_limit("chunks", len(whole.chunk_ends), MAX_CHUNKS, "input")
        return self.embed_document(whole, asked)

    def embed_document(self, whole: Document, asked: EmbedOptions) -> Embeddings:
        """Embed the chunks of a document, each from states that have seen all of its window.

        Raises InvalidRequest for a chunk without a token, otherwise as `embed`.
        """
        dimensions = options.dimensions_of(self.manifest, asked)
        task = options.task_of(self.manifest, asked)
        task_name, prefix = (task.variant, task.prefix) if task else (None, "")
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
            num_tokens=self._num_billed({0: whole.text}, {0: located.ids[: self.manifest.max_tokens]}, task),
        )

    def warm_up(self) -> None:
        """Run both ways through every open graph. Raises ModelOutputInvalid when an answer is not finite."""
        for variant in self.graphs.open_tasks():
            tasks = self.manifest.tasks_of([variant] if variant else self.manifest.task_names)
            named = tasks[0].name if tasks else None
            self.embed(WARM_UP_TEXTS, EmbedOptions(task=named, truncate=True))

    def _checked_tokens(
        self, texts: Mapping[int, str], task: Task | None, *, truncate: bool
    ) -> dict[int, Ids]:
        """Tokenize texts, by their places in the request; refuse those over the limit unless `truncate`."""
        limit = self.manifest.max_tokens
        prefix = task.prefix if task else ""
        encoded = self.tokenizer.encode([prefix + text for text in texts.values()], limit)
        for index, tokens in zip(texts, encoded, strict=True):
            if tokens.num_tokens > limit and not truncate:
                count = f"{'' if tokens.is_whole else 'at least '}{tokens.num_tokens}"
                with_prefix = " with the prefix of its task" if prefix else ""
                raise InvalidRequest(
                    f"input[{index}] has {count} tokens{with_prefix}, more than the {limit} that "
                    f"{self.manifest.name} takes. Send 'truncate': true to cut it off, or split it.",
                    param=f"input[{index}]",
                    code="input_too_long",
                )
        return {index: tokens.ids for index, tokens in zip(texts, encoded, strict=True)}

    def _num_billed(self, texts: Mapping[int, str], sequences: Mapping[int, Ids], task: Task | None) -> int:
        """Count the texts' own tokens, without a prefix. Raises InvalidRequest for a text without any."""
        if task and task.prefix:
            encoded = self.tokenizer.encode(list(texts.values()), self.manifest.max_tokens)
            sequences = {index: tokens.ids for index, tokens in zip(texts, encoded, strict=True)}
        for index, ids in sequences.items():
            if not len(ids):
                raise InvalidRequest(
                    f"input[{index}] has no token; send a text.", param=f"input[{index}]", code="empty_input"
                )
        return sum(map(len, sequences.values()))

    def _sparse(
        self, sequences: Sequence[Ids], weights: Sequence[Floats] | None
    ) -> list[SparseVector] | None:
        if weights is None:
            return None
        return [
            pooling.sparse(ids, row, self.unweighted_ids) for ids, row in zip(sequences, weights, strict=True)
        ]


def open_model(graphs: Graphs, scheduler: Runs) -> EmbeddingModel:
    """Open a bundle's tokenizer around its graphs. Raises BundleError when it is broken."""
    tokenizer = tokenization.load(graphs.folder / TOKENIZER_FILE)
    unweighted = tokenizer.ids_of(graphs.manifest.unweighted_tokens)
    tower = image_embedding.open_tower(graphs, tokenizer, scheduler)
    return EmbeddingModel(graphs.manifest, tokenizer, graphs, scheduler, unweighted, tower)


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
