"""Opens baked graphs with the service's own code and runs them: what verification measures with."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from convert import half
from service import embedding, host, inference, reranking
from service.embedding import EmbeddingModel
from service.errors import BundleError
from service.figures import Speed
from service.graphs import Graphs
from service.manifest import BASE_TASK, Kind, Manifest, Output, Variant
from service.options import EmbedOptions
from service.reranking import Reranker
from service.scheduler import Scheduler
from service.session import Session, SessionSettings

BATCH_TOKENS = 1024
SPEED_ROWS, SPEED_TOKENS, SPEED_RUNS = 8, 128, 7
SPEED_SECONDS = 10  # no further run after these: large models take long, and vary less
NUM_QUERIES = 8  # of the texts a reranker is measured on; those behind them are the documents
MAX_DOCUMENTS = 32  # a pair takes a second of a large model

Ids = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]
OnText = Callable[[int], object]
Model = EmbeddingModel | Reranker


def settings() -> SessionSettings:
    """Return how sessions use the host here: all of it, one at a time."""
    return SessionSettings(num_threads=host.num_usable_cores())


def open_variant(folder: Path, manifest: Manifest, variant: Variant, session: Session | None = None) -> Model:
    """Open a variant's graph and the tokenizer. Raises BundleError when one is broken.

    A `session` given takes the place of the variant's own.
    """
    known = {variant.file: session} if session else {}
    graphs = Graphs(folder, manifest, variant.precision, settings(), _sessions=known)
    graphs.open([variant.task])
    scheduler = Scheduler(BATCH_TOKENS)
    if manifest.kind == Kind.RERANKER:
        return reranking.open_model(graphs, scheduler)
    return embedding.open_model(graphs, scheduler)


def answers(
    model: Model,
    variant: Variant,
    texts: Sequence[str],
    on_text: OnText = lambda count: None,
    num_queries: int = 0,
) -> Floats:
    """Compute a unit vector for each text, one at a time, or a reranker's scores (queries, documents).

    What a batch does to vectors must not matter here. Of a reranker the first `num_queries` texts, or as many
    as it is measured on, are queries.
    """
    if isinstance(model, Reranker):
        num_queries = num_queries or NUM_QUERIES
        documents = texts[num_queries:][:MAX_DOCUMENTS]
        rows = []
        for query in texts[:num_queries]:
            ranking = model.rank(query, documents)
            rows.append(np.array(ranking.scores, dtype=np.float32)[np.argsort(ranking.order)])
            on_text(len(texts) // num_queries)
        return np.stack(rows)
    return vectors(model, texts, options_of(variant), on_text)


def options_of(variant: Variant) -> EmbedOptions:
    """Return what asks a model for the task of a variant."""
    return EmbedOptions(
        task=None if variant.task == BASE_TASK else variant.task,
        without_adapter=variant.task == BASE_TASK,
        truncate=True,
    )


def vectors(
    model: Model, texts: Sequence[str], options: EmbedOptions, on_text: OnText = lambda count: None
) -> Floats:
    """Compute a unit vector for each text, one text at a time. Raises BundleError for a reranker."""
    if isinstance(model, Reranker):
        raise BundleError(f"{model.manifest.name} is a reranker: it has no vectors to compare")
    rows = []
    for text in texts:
        rows.append(model.embed([text], options).vectors[0])
        on_text(1)
    return np.stack(rows)


def speeds(
    folder: Path, manifest: Manifest, variants: Sequence[Variant], texts: Sequence[str]
) -> dict[str, Speed]:
    """Time variants, by files, in turns, as many at once as the free memory holds; none in 16 bits.

    In turns, so that whatever else the host does slows all of them alike.
    """
    timed = [variant for variant in variants if variant.precision not in half.FORMATS]  # no CPU kernels
    found: dict[str, Speed] = {}
    while timed:
        room = host.available_memory() or 0
        models: dict[str, tuple[Model, Variant]] = {}
        while timed and (not models or 2 * (host.available_memory() or 0) >= room):
            variant = timed.pop(0)
            models[variant.file] = open_variant(folder, manifest, variant), variant
        found |= _timed(models, texts)
    return found


def _timed(models: Mapping[str, tuple[Model, Variant]], texts: Sequence[str]) -> dict[str, Speed]:
    """Take the best of a few runs of full rows of real tokens: what else the host does only adds time."""
    (model, _), *_ = models.values()
    limit = model.manifest.max_tokens
    tokens = np.concatenate([tokens.ids for tokens in model.tokenizer.encode(texts, limit)])
    num_tokens = min(SPEED_TOKENS, limit)
    inputs = inference.stacker(model.manifest)(list(np.resize(tokens, (SPEED_ROWS, num_tokens))))
    (output, *_) = model.manifest.outputs
    seconds: dict[str, list[float]] = {file: [] for file in models}
    for _ in range(SPEED_RUNS):
        for file, (opened, variant) in models.items():
            if len(seconds[file]) < 2 or sum(seconds[file]) < SPEED_SECONDS:
                begin = time.perf_counter()
                opened.graphs.session(variant.task).run(inputs, [output])
                seconds[file].append(time.perf_counter() - begin)
    return {
        file: Speed(
            tokens_per_second=round(SPEED_ROWS * num_tokens / min(times), 1),
            instruction_set=host.instruction_set(),
            num_threads=host.num_usable_cores(),
        )
        for file, times in seconds.items()
    }


def answer_of_run(model: Model, variant: Variant, sequences: Sequence[Ids]) -> Floats:
    """Compute the first output of token ids that share one run, padded on the right: (rows, ...)."""
    (output, *_) = model.manifest.outputs
    inputs = inference.stacker(model.manifest)(list(sequences))
    (found,) = model.graphs.session(variant.task).run(inputs, [output])
    return found


def token_states(model: Model, variant: Variant, ids: Sequence[int], mask: Sequence[int]) -> Floats:
    """Compute the last hidden states (tokens, size) of token ids under a mask."""
    inputs = {
        "input_ids": np.array([ids], dtype=np.int64),
        "attention_mask": np.array([mask], dtype=np.int64),
    }
    (states,) = model.graphs.session(variant.task).run(inputs, [Output.TOKEN_EMBEDDINGS])
    return np.asarray(states[0])
