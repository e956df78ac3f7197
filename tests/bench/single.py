"""Single queries: throughput and latency with many clients. Knows time, no quality."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from service.manifest import Precision
from tests.bench import load, tables
from tests.bench.server import Service

NUM_CLIENTS = 16
WARM_UP_SECONDS = 1.0
PERCENTILES = (50, 99)
HEADER = ("precision", "requests/s", *(f"p{percentile} ms" for percentile in PERCENTILES), "requests")


@dataclass(frozen=True)
class Figures:
    """Rate and latencies of the requests answered."""

    num_requests: int
    requests_per_second: float
    milliseconds: tuple[float, ...]  # of PERCENTILES


def measure(service: Service, questions: Sequence[str], seconds: float) -> Figures:
    """Let every client send one question after the other, each client other ones, for `seconds`."""
    bodies = [load.encode([question]) for question in questions]
    streams = [itertools.cycle(bodies[client::NUM_CLIENTS]) for client in range(NUM_CLIENTS)]
    load.run(service, streams, min(WARM_UP_SECONDS, seconds))
    sent = load.run(service, streams, seconds)
    latencies = [answer.seconds * 1000 for answer in sent.answers]
    return Figures(
        num_requests=len(latencies),
        requests_per_second=len(latencies) / sent.seconds,
        milliseconds=tuple(float(value) for value in np.percentile(latencies, PERCENTILES)),
    )


def table(found: Mapping[Precision, Figures], source: str, command: str) -> list[str]:
    """Lay out rate and latencies of each precision."""
    rows = [
        (
            precision,
            f"{figures.requests_per_second:,.1f}",
            *(f"{value:.1f}" for value in figures.milliseconds),
            f"{figures.num_requests:,}",
        )
        for precision, figures in found.items()
    ]
    title = f"single queries, one a request, {NUM_CLIENTS} clients; {source}"
    return tables.aligned(title, command, HEADER, rows)
