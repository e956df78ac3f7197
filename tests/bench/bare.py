"""The bare session: the runs that the service makes of a request, without the service around them.

The runs are not planned here but recorded from the service's own model, given a session that computes
nothing: texts, groups and padding are the service's by construction. Knows no HTTP.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np

from service import manifest as contract
from service.embedding import EmbeddingModel, open_model
from service.graphs import Graphs
from service.options import EmbedOptions
from service.scheduler import Scheduler
from service.session import Array, Floats, Session, SessionSettings
from tests.bench.server import Service

Run = tuple[Mapping[str, Array], Sequence[str]]  # inputs, names of outputs


@dataclass(frozen=True)
class Request:
    """The runs of a session that answer a request, and its tokens as the service bills them."""

    runs: list[Run]
    num_tokens: int


class Recorder:
    """Stands in for a model's graphs and their session: notes what it should run and answers zeros."""

    def __init__(self, graphs: Graphs) -> None:
        """Look like the graphs, and like the session of all their tasks, in all but `run`."""
        self._graphs = graphs
        self._session = graphs.session(None)
        self.runs: list[Run] = []

    def __getattr__(self, name: str) -> Any:
        """Return what the graphs, else the session, say of themselves."""
        return getattr(self._graphs if hasattr(self._graphs, name) else self._session, name)

    def session(self, task: str | None) -> Recorder:
        """Return itself in the place of the session of a task."""
        return self

    def run(self, inputs: Mapping[str, Array], outputs: Sequence[str]) -> list[Floats]:
        """Note the run."""
        self.runs.append((inputs, outputs))
        num_rows = len(next(iter(inputs.values())))
        dimensions = self._graphs.manifest.dimensions
        return [np.zeros((num_rows, dimensions), dtype=np.float32) for _ in outputs]


def open_as_served(service: Service, num_lanes: int = 1) -> EmbeddingModel:
    """Open the model in this process for one of so many runs at once: its part of threads and of tokens."""
    settings = SessionSettings(max(1, service.settings.intra_op_threads // num_lanes))
    graphs = Graphs(service.bundle, contract.load(service.bundle), service.precision, settings)
    return open_model(graphs, Scheduler(service.settings.max_batch_tokens // num_lanes))


def record(model: EmbeddingModel, texts: Sequence[str]) -> Request:
    """Return what the model would run for a request with these texts."""
    recorder = Recorder(model.graphs)
    recording = replace(model, graphs=cast(Graphs, recorder))
    embedded = recording.embed(texts, EmbedOptions(truncate=True))
    return Request(recorder.runs, embedded.num_tokens)


def time_runs(session: Session, requests: Sequence[Request], num_at_once: int = 1) -> float:
    """Return the seconds that the session takes for the runs of the requests, in their order."""
    runs = iter([run for request in requests for run in request.runs])
    guard = threading.Lock()

    def take() -> Run | None:
        with guard:
            return next(runs, None)

    def work() -> None:
        while (run := take()) is not None:
            session.run(*run)

    begin = time.perf_counter()
    with ThreadPoolExecutor(num_at_once) as threads:
        for worker in [threads.submit(work) for _ in range(num_at_once)]:
            worker.result()
    return time.perf_counter() - begin
