"""From a bundle and what may be tried to a model that has answered. Knows no names and no other model."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from service import embedding, logs, reranking
from service.devices import Kind as DeviceKind
from service.embedding import EmbeddingModel
from service.errors import BundleError
from service.graphs import Graphs
from service.manifest import Kind
from service.reranking import Reranker
from service.selection import Choice
from service.shares import Runs

Model = EmbeddingModel | Reranker

OPENERS: dict[Kind, Callable[[Graphs, Runs], Model]] = {
    Kind.EMBEDDING: embedding.open_model,
    Kind.RERANKER: reranking.open_model,
}


@dataclass(frozen=True)
class Loaded:
    """A model that serves, where and in which precision it does, and why there."""

    model: Model
    choice: Choice


def open_warm(graphs: Graphs, tasks: Sequence[str | None], scheduler: Runs) -> Model:
    """Open the graphs of tasks and run them once. Raises ModelOutputInvalid for what is not finite."""
    graphs.open(tasks)
    model = OPENERS[graphs.manifest.kind](graphs, scheduler)
    model.warm_up()
    return model


def first_that_runs(name: str, choices: Sequence[Choice], open_choice: Callable[[Choice], Model]) -> Loaded:
    """Return the first of the choices that opens and answers; those before it are part of its reason.

    What fails on the CPU fails for good, with whatever it raises. Raises BundleError where all were on CUDA.
    """
    failures: list[str] = []
    for choice in choices:
        try:
            model = open_choice(choice)
        except Exception as error:  # a native library raises anything, and out of memory is no reason to end
            if choice.device.kind == DeviceKind.CPU:
                raise
            failures.append(f"{choice.precision} failed on {choice.device}: {error}")
            logs.write(logging.WARNING, "model failed on its device", model=name, reason=failures[-1])
        else:
            return Loaded(model, replace(choice, reason="; ".join((choice.reason, *failures))))
    raise BundleError(f"{name} runs in no precision: {'; '.join(failures)}")
