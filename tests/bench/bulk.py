"""Bulk throughput: the bare session against HTTP with the same requests, in turns. Knows no quality.

Both do the same list of requests and are timed from its begin to its end. The bare session finds its padded
arrays made: what it saves is tokenizer, padding, pooling, JSON, HTTP and the clients themselves. It is
measured on all threads, one run after the other, and as several narrow runs at once, in the groups that the
service makes for either; the faster of the two counts in each round.
"""

from __future__ import annotations

import itertools
import math
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from service import lanes
from service.manifest import Precision
from tests.bench import bare, load, tables
from tests.bench.errors import BenchError
from tests.bench.server import Service

NUM_CLIENTS = 2
PASSAGES_PER_REQUEST = 64
NUM_PROBED = 3  # requests whose speed decides how many a run has
TARGET_RATIO = 0.92
HEADER = (
    "precision",
    "run",
    "bare wide tokens/s",
    "narrow at once",
    "HTTP tokens/s",
    "HTTP passages/s",
    "ratio",
)


@dataclass(frozen=True)
class Request:
    """One request, in all ways."""

    body: bytes
    wide: bare.Request  # the runs where each has all threads
    narrow: bare.Request  # the smaller runs where several go at once


@dataclass(frozen=True)
class Round:
    """Seconds of the bare session in both forms and of the HTTP run after them."""

    wide_seconds: float
    narrow_seconds: float
    http_seconds: float

    @property
    def bare_seconds(self) -> float:
        """Return the time of the faster form."""
        return min(self.wide_seconds, self.narrow_seconds)

    @property
    def ratio(self) -> float:
        """Return the speed through HTTP as a share of the bare session's."""
        return self.bare_seconds / self.http_seconds


@dataclass(frozen=True)
class Figures:
    """What every run computes, and the runs."""

    num_requests: int
    num_tokens: int
    rounds: list[Round]

    @property
    def ratio(self) -> float:
        """Return the median of the ratios."""
        return statistics.median(each.ratio for each in self.rounds)


def measure(service: Service, passages: Sequence[str], num_runs: int, seconds: float) -> Figures:
    """Alternate bare session and HTTP, as many requests in each run as take the bare session `seconds`."""
    num_lanes = lanes.count(service.settings.intra_op_threads)
    wide, narrow = bare.open_as_served(service), bare.open_as_served(service, num_lanes)
    requests = [
        Request(load.encode(texts), bare.record(wide, texts), bare.record(narrow, texts))
        for texts in _dealt(passages, PASSAGES_PER_REQUEST)
    ]

    def run_bare(requests: Sequence[Request]) -> tuple[float, float]:
        wide_runs, narrow_runs = zip(*((request.wide, request.narrow) for request in requests), strict=True)
        return (
            bare.time_runs(wide.graphs.session(None), wide_runs),
            bare.time_runs(narrow.graphs.session(None), narrow_runs, num_lanes),
        )

    _run_http(service, requests[:NUM_CLIENTS])
    run_bare(requests[:1])
    probe = requests[:NUM_PROBED]
    seconds_per_request = min(run_bare(probe)) / len(probe)
    # At least two for each client, and as many for one as for the other.
    num_requests = NUM_CLIENTS * max(2, round(seconds / seconds_per_request / NUM_CLIENTS))
    requests = list(itertools.islice(itertools.cycle(requests), num_requests))
    rounds = []
    for number in range(1, num_runs + 1):
        rounds.append(Round(*run_bare(requests), _run_http(service, requests)))
        print(f"{service.precision}: bulk {number}/{num_runs}: {rounds[-1].ratio:.3f}", file=sys.stderr)
    return Figures(num_requests, sum(request.wide.num_tokens for request in requests), rounds)


def table(found: Mapping[Precision, Figures], source: str, command: str) -> list[str]:
    """Lay out every round and the median ratio of each precision."""
    rows = []
    for precision, figures in found.items():
        rows += [
            _row(precision, str(number), figures, [each]) for number, each in enumerate(figures.rounds, 1)
        ]
        rows.append(_row(precision, "median", figures, figures.rounds))
    title = f"bulk, {PASSAGES_PER_REQUEST} passages a request, {NUM_CLIENTS} clients; {source}"
    verdicts = [
        f"target of {precision}: ratio at least {TARGET_RATIO}: {figures.ratio:.3f}, "
        f"{tables.verdict(figures.ratio >= TARGET_RATIO)} "
        f"({figures.num_requests} requests, {figures.num_tokens:,} tokens a run)"
        for precision, figures in found.items()
    ]
    return [*tables.aligned(title, command, HEADER, rows), *verdicts]


def _row(precision: Precision, name: str, figures: Figures, rounds: Sequence[Round]) -> tables.Row:
    wide, narrow, http_seconds = (
        statistics.median(seconds)
        for seconds in zip(
            *((each.wide_seconds, each.narrow_seconds, each.http_seconds) for each in rounds), strict=True
        )
    )
    return (
        precision,
        name,
        f"{figures.num_tokens / wide:,.0f}",
        f"{figures.num_tokens / narrow:,.0f}",
        f"{figures.num_tokens / http_seconds:,.0f}",
        f"{figures.num_requests * PASSAGES_PER_REQUEST / http_seconds:,.1f}",
        f"{statistics.median(each.ratio for each in rounds):.3f}",
    )


def _dealt(passages: Sequence[str], num_per_request: int) -> list[list[str]]:
    """Deal the passages, over and over, into different requests until each was dealt equally often."""
    num_requests = math.lcm(len(passages), num_per_request) // num_per_request
    endless = itertools.cycle(passages)
    return [list(itertools.islice(endless, num_per_request)) for _ in range(num_requests)]


def _run_http(service: Service, requests: Sequence[Request]) -> float:
    """Return the seconds that the service takes for them. Raises BenchError if it counts other tokens."""
    bodies = iter([request.body for request in requests])  # shared: a client that is free takes the next one
    sent = load.run(service, [bodies] * NUM_CLIENTS)
    num_tokens = sum(answer["usage"]["total_tokens"] for answer in sent.parsed())
    expected = sum(request.wide.num_tokens for request in requests)
    if num_tokens != expected:
        raise BenchError(f"the service counted {num_tokens} tokens, its tokenizer gives {expected}")
    return sent.seconds
