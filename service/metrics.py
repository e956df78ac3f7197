"""Counts what the service does, for Prometheus. Owns prometheus_client; knows names and figures, no HTTP.

Workers that share a folder count in files there, and whoever is asked answers for all, those that have ended
included; without one a process answers for itself.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import prometheus_client
from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4 as PLAIN_TEXT
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.metrics_core import GaugeMetricFamily
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.openmetrics import exposition as openmetrics

from service import host, metric_files
from service.observing import Answer, Graph, Unserved

NAMESPACE = "jina_onnx_server"
OTHER_ROUTE = "other"  # all paths that are none of the service's
OPENMETRICS = "application/openmetrics-text"
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
TOKENS = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 32_768, 131_072)
UNSERVED = {
    Unserved.REFUSED: "Requests refused for lack of room.",
    Unserved.TIMED_OUT: "Requests whose turn did not come in time.",
    Unserved.DISCONNECTED: "Requests whose client left before they were computed.",
}


@dataclass(frozen=True)
class Maker:
    """Makes metrics: `registry` collects them, None where they are collected from files."""

    registry: CollectorRegistry | None

    def counter(self, name: str, meaning: str, *labels: str) -> Counter:
        """Make what only grows."""
        return Counter(name, meaning, labels, NAMESPACE, registry=self.registry)

    def gauge(self, name: str, meaning: str) -> Gauge:
        """Make what goes up and down; of several processes the sum of those that live."""
        return Gauge(name, meaning, (), NAMESPACE, registry=self.registry, multiprocess_mode="livesum")

    def fact(self, name: str, meaning: str, *labels: str) -> Gauge:
        """Make what is 1 as long as a process says so."""
        return Gauge(name, meaning, labels, NAMESPACE, registry=self.registry, multiprocess_mode="livemax")

    def histogram(self, name: str, meaning: str, bounds: tuple[float, ...], *labels: str) -> Histogram:
        """Make a distribution."""
        return Histogram(name, meaning, labels, NAMESPACE, registry=self.registry, buckets=bounds)


class RequestMetrics:
    """What is counted of requests."""

    def __init__(self, make: Maker) -> None:
        """Begin at nothing."""
        requests = make.counter("requests", "Requests answered.", "route", "status")
        durations = make.histogram(
            "request_duration_seconds", "Time from a request to its answer.", SECONDS, "route"
        )
        tokens = make.counter("tokens", "Tokens of answered requests, as in usage.", "model")
        # Finding a metric by its labels takes as long as counting, in a dictionary next to nothing.
        self.count, self.duration = cache(requests.labels), cache(durations.labels)
        self.tokens = cache(tokens.labels)
        self.unserved = {
            reason: make.counter(f"requests_{reason}", meaning) for reason, meaning in UNSERVED.items()
        }
        self.held = make.gauge("queue_requests", "Requests held, waiting or running.")
        self.waiting = make.gauge("queue_tokens", "Tokens that wait, by estimate.")
        self.wait = make.histogram("queue_wait_seconds", "Time from a request to its first run.", SECONDS)


class RunMetrics:
    """What is counted of models and their runs."""

    def __init__(self, make: Maker) -> None:
        """Begin at nothing."""
        labels = ("model", "precision", "part")
        durations = make.histogram("run_duration_seconds", "Time of a run of a graph.", SECONDS, *labels)
        batches = make.histogram("batch_tokens", "Tokens of a run, padding included.", TOKENS, *labels)
        padding = make.counter("batch_padding_tokens", "Tokens of runs that are padding.", *labels)
        rows = make.counter("batch_rows", "Texts in runs.", *labels)
        models = make.fact("model_info", "Models that serve.", "model", "precision", "device")
        self.duration, self.tokens = cache(durations.labels), cache(batches.labels)
        self.padding, self.rows = cache(padding.labels), cache(rows.labels)
        self.model = models.labels


class Metrics:
    """The figures of this process, or of all that share a folder. An `Observer`."""

    def __init__(self, build: Mapping[str, str], folder: Path | None = None) -> None:
        """Begin to count; `build` is what the software is, by labels."""
        prometheus_client.disable_created_metrics()  # files have none: one process says the same
        self._registry = CollectorRegistry()
        make = Maker(None if folder else self._registry)
        # NOTE: a file is empty for a moment when it is made, and whoever reads it just then fails.
        with metric_files.locked(folder) if folder else nullcontext():
            self._of_requests, self._of_runs = RequestMetrics(make), RunMetrics(make)
            make.fact("build_info", "The software that serves.", *build).labels(**build).set(1)
        if folder:
            MultiProcessCollector(self._registry, str(folder))
        self._registry.register(WorkerMemory(folder))
        self._folder = folder

    def render(self, accept: str = "") -> tuple[bytes, str]:
        """Return all figures and their content type: OpenMetrics where it is accepted, else plain text."""
        wants_openmetrics = any(part.partition(";")[0].strip() == OPENMETRICS for part in accept.split(","))
        with metric_files.locked(self._folder, is_shared=True) if self._folder else nullcontext():
            if wants_openmetrics:
                return openmetrics.generate_latest(self._registry), openmetrics.CONTENT_TYPE_LATEST
            return prometheus_client.generate_latest(self._registry), PLAIN_TEXT

    def answered(self, answer: Answer) -> None:
        """Count a request."""
        route, found = answer.route or OTHER_ROUTE, self._of_requests
        found.count(route, answer.status).inc()
        found.duration(route).observe(answer.seconds)
        if answer.num_tokens:
            found.tokens(answer.model).inc(answer.num_tokens)

    def unserved(self, reason: Unserved) -> None:
        """Count a request that is not computed."""
        self._of_requests.unserved[reason].inc()

    def queue_changed(self, num_requests: int, num_tokens: int) -> None:
        """Count what is held and waits."""
        if num_requests:
            self._of_requests.held.inc(num_requests)
        if num_tokens:
            self._of_requests.waiting.inc(num_tokens)

    def waited(self, seconds: float) -> None:
        """Count a request's wait."""
        self._of_requests.wait.observe(seconds)

    def ran(self, graph: Graph, num_rows: int, num_tokens: int, num_padding: int, seconds: float) -> None:
        """Count a run."""
        labels, found = (graph.source.model, graph.source.precision, graph.source.part), self._of_runs
        found.duration(*labels).observe(seconds)
        found.tokens(*labels).observe(num_tokens + num_padding)
        found.rows(*labels).inc(num_rows)
        if num_padding:
            found.padding(*labels).inc(num_padding)

    def loaded(self, model: str, precision: str, device: str) -> None:
        """Say that a model serves."""
        self._of_runs.model(model, precision, device).set(1)


@dataclass(frozen=True)
class WorkerMemory:
    """The memory of the processes that share a folder, read from the system when asked for."""

    folder: Path | None

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Read it. Where the system does not say, there is none."""
        pids = metric_files.living(self.folder) if self.folder else [os.getpid()]
        memory = {pid: found for pid in pids if (found := host.memory_of(pid))}
        for kind, meaning in MEMORY_KINDS.items():
            family = GaugeMetricFamily(f"{NAMESPACE}_{kind}_memory_bytes", meaning, labels=("pid",))
            for pid, found in memory.items():
                family.add_metric((str(pid),), getattr(found, f"{kind}_bytes"))
            yield family


MEMORY_KINDS = {
    "resident": "Memory of a worker, pages included that it shares with others.",
    "anonymous": "Memory of a worker that is its own.",
}
