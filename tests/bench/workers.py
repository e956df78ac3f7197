"""What a worker has in memory, at rest and after a load, by the service's own figures."""

from __future__ import annotations

import statistics
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import orjson
from prometheus_client.parser import text_string_to_metric_families

from service.manifest import Precision
from service.metrics import NAMESPACE
from tests.bench import server, soak, tables
from tests.bench.errors import BenchError
from tests.bench.server import MODEL, START_SECONDS, Service

NUM_WORKERS = (1, 4)
KINDS = ("resident", "anonymous")
HEADER = ("workers, precision", *(f"{kind} {when}" for when in ("at rest", "after load") for kind in KINDS))
MEGABYTE = 1e6
Figures = dict[str, float]  # bytes of a worker by kind, medians


@dataclass(frozen=True)
class Measured:
    """The memory of each of some workers."""

    num_workers: int
    precision: Precision
    at_rest: Figures
    after_load: Figures


def measure(models_dir: Path, precision: Precision, num_workers: int, seconds: float) -> Measured:
    """Start workers that find their copies made, load them for some seconds. Raises BenchError."""
    with server.serve(models_dir, precision):
        pass
    with server.serve(models_dir, precision, changed={"WORKERS": str(num_workers)}) as service:
        _wait_for_all(service, num_workers)
        at_rest = _figures(service)
        soak.measure(service, soak.DEFAULT_LOAD, int(seconds))
        return Measured(num_workers, precision, at_rest, _figures(service))


def table(measured: list[Measured], command: str) -> list[str]:
    """Lay out the figures."""
    load = soak.DEFAULT_LOAD
    title = (
        f"MB in memory of a worker, {MODEL}, medians of the workers; load: {load.num_clients} clients, "
        f"requests of up to {load.max_texts} texts of up to {load.max_tokens} tokens"
    )
    rows = [
        (f"{each.num_workers}, {each.precision}", *_megabytes(each.at_rest), *_megabytes(each.after_load))
        for each in measured
    ]
    return tables.aligned(title, command, HEADER, rows)


def _megabytes(figures: Figures) -> list[str]:
    return [f"{figures[kind] / MEGABYTE:.0f}" for kind in KINDS]


def _wait_for_all(service: Service, num_workers: int) -> None:
    """Ask until each worker has answered that its models serve."""
    ready: set[int] = set()
    deadline = time.monotonic() + START_SECONDS
    while len(ready) < num_workers:
        if time.monotonic() > deadline:
            raise BenchError(f"{len(ready)} of {num_workers} workers became ready")
        body = orjson.loads(_get(service, "/healthz?verbose=1"))
        if body["status"] == "ok":
            ready.add(body["process"]["pid"])


def _figures(service: Service) -> Figures:
    families = text_string_to_metric_families(_get(service, "/metrics").decode())
    samples = {family.name: [sample.value for sample in family.samples] for family in families}
    return {kind: statistics.median(samples[f"{NAMESPACE}_{kind}_memory_bytes"]) for kind in KINDS}


def _get(service: Service, path: str) -> bytes:
    with closing(service.connect()) as connection:
        connection.request("GET", path)
        return connection.getresponse().read()
