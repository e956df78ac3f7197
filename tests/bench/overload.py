"""Offered load below and above capacity: what is accepted, what is refused, how long both take.

Requests of 1 to 8 texts come at random times, whatever the service does. Capacity is the rate of a closed
loop just before. Latency counts from when a request was due.
"""

from __future__ import annotations

import http.client
import itertools
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from service.manifest import Precision
from tests.bench import cores, kinds, loops, tables
from tests.bench.kinds import LOADS, Kind
from tests.bench.loops import Sent
from tests.bench.server import Service, serve
from tests.bench.texts import Texts
from tests.bench.wire import Request

KIND = Kind.MIXED
QUEUE = "MAX_QUEUE_TOKENS"
QUEUE_SECONDS = 2.0  # of work that may wait
CAPACITY_SECONDS = 6.0
FACTORS = (0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0)
MAX_ATTEMPTS = 4  # of a level beside which others took too much of the host
SETTLING_SHARE = 0.25  # of a level, not counted: the queue fills up first
MAX_LOSS, MAX_REFUSAL_MILLISECONDS = 0.1, 50.0
PERCENTILES = (50, 99)
HEADER = ("offered", "requests/s", "accepted/s", "429/s", "others/s", "accepted tokens/s", "accepted p50 ms")
LATER = (
    "p99 ms",
    "p99 since sent",
    "429 p99 ms",
    "429 p99 since sent",
    "late p50 ms",
    "late p99",
    "us a request",
)
OTHERS = "others' cores"


@dataclass(frozen=True)
class Level:
    """One offered load; milliseconds since a request was due and since it was sent."""

    factor: float
    offered_per_second: float
    accepted_per_second: float
    refused_per_second: float
    others_per_second: float
    tokens_per_second: float  # of what was accepted
    accepted: tuple[float, ...]  # PERCENTILES of milliseconds
    accepted_since_sent: tuple[float, ...]
    refused: tuple[float, ...]  # nan where nothing was refused
    refused_since_sent: tuple[float, ...]
    lateness: tuple[float, ...]  # of the generator
    generator_microseconds: float  # of a request
    other_cores: float


@dataclass(frozen=True)
class Figures:
    """The capacity of a closed loop, the limit of the queue and what became of every level."""

    requests_per_second: float
    tokens_per_second: float
    max_queue_tokens: int
    max_batch_tokens: int
    levels: list[Level]

    def bound_milliseconds(self, level: Level) -> float:
        """Return how long a full queue and one batch take at the speed of a level."""
        return (self.max_queue_tokens + self.max_batch_tokens) / level.tokens_per_second * 1000

    @property
    def peak(self) -> float:
        """Return the highest rate of accepted tokens."""
        return max(level.tokens_per_second for level in self.levels)


def measure(models_dir: Path, precision: Precision, found: Texts, seconds: float) -> Figures:
    """Find the capacity, start the service with a queue that suits it, and offer every load."""
    with serve(models_dir, precision) as service:
        requests = kinds.billed(service.settings.port, KIND, found)
        first = _capacity(service, requests)
    limit = round(first.rate(_tokens) * QUEUE_SECONDS)
    with serve(models_dir, precision, changed={QUEUE: str(limit)}) as service:
        _capacity(service, requests)  # warms up
        capacity = _capacity(service, requests)
        per_second = capacity.rate(_one)
        levels = [_offer(service, requests, factor, per_second * factor, seconds) for factor in FACTORS]
    max_batch_tokens = service.settings.max_batch_tokens
    return Figures(per_second, capacity.rate(_tokens), limit, max_batch_tokens, levels)


def table(found: Mapping[Precision, Figures], source: str, command: str) -> list[str]:
    """Lay out the levels of each precision."""
    lines = []
    for precision, figures in found.items():
        title = (
            f"{precision}: offered load, {LOADS[KIND].described.split(',')[0]}, Poisson arrivals; capacity "
            f"{figures.requests_per_second:,.1f} requests/s, {figures.tokens_per_second:,.0f} tokens/s; "
            f"{QUEUE}={figures.max_queue_tokens}; {source}"
        )
        rows = [_row(level) for level in figures.levels]
        lines += tables.aligned(title, command, (*HEADER, *LATER, OTHERS), rows)
    return lines


def verdicts(found: Mapping[Precision, Figures]) -> list[str]:
    """Compare overload with the targets."""
    lines = []
    for precision, figures in found.items():
        over = [level for level in figures.levels if level.factor > 1]
        share = min(level.tokens_per_second for level in over) / figures.peak
        slowest = max(over, key=lambda level: level.accepted[-1] / figures.bound_milliseconds(level))
        bound = figures.bound_milliseconds(slowest)
        waits = [level.refused[-1] for level in over if level.refused_per_second]
        refusal = max(waits, default=float("nan"))  # which meets no limit
        others = max(level.others_per_second for level in figures.levels)
        told = (
            (f"accepted tokens/s within {MAX_LOSS:.0%} of the peak", f"{share:.3f}", share >= 1 - MAX_LOSS),
            (
                f"p99 of accepted at most {bound:,.0f} ms, a full queue and a batch at that level's speed",
                f"{slowest.accepted[-1]:,.0f} ms at {slowest.factor:g} times capacity",
                slowest.accepted[-1] <= bound,
            ),
            (
                f"p99 of refusals at most {MAX_REFUSAL_MILLISECONDS:.0f} ms",
                f"{refusal:,.1f} ms",
                refusal <= MAX_REFUSAL_MILLISECONDS,
            ),
            ("no answer but 200 and 429", f"{others:.2f}/s", others == 0),
        )
        lines += [
            f"target of {precision}, overload: {what}: {value}, {tables.verdict(is_met)}"
            for what, value, is_met in told
        ]
    return lines


def _capacity(service: Service, requests: Sequence[Request]) -> Sent:
    streams = kinds.dealt(requests, LOADS[KIND].num_clients)
    return loops.closed(service.settings.port, streams, CAPACITY_SECONDS)


def _offer(
    service: Service, requests: Sequence[Request], factor: float, per_second: float, seconds: float
) -> Level:
    port = service.settings.port
    sent, used = cores.quietest(
        [service.pid],
        lambda: loops.opened(port, itertools.cycle(requests), per_second, seconds),
        MAX_ATTEMPTS,
    )
    skipped = seconds * SETTLING_SHARE
    counted = [exchange for exchange in sent.exchanges if exchange.due >= sent.begin + skipped]
    span = seconds - skipped
    accepted = [exchange for exchange in counted if exchange.status == http.client.OK]
    refused = [exchange for exchange in counted if exchange.status == http.client.TOO_MANY_REQUESTS]
    print(f"{service.precision}: {factor} of capacity: {len(accepted)} of {len(counted)}", file=sys.stderr)
    return Level(
        factor=factor,
        offered_per_second=len(counted) / span,
        accepted_per_second=sent.ended_rate(_one, skipped),
        refused_per_second=len(refused) / span,
        others_per_second=(len(counted) - len(accepted) - len(refused)) / span,
        tokens_per_second=sent.ended_rate(_tokens, skipped),
        accepted=_percentiles([exchange.ended - exchange.due for exchange in accepted]),
        accepted_since_sent=_percentiles([exchange.ended - exchange.sent for exchange in accepted]),
        refused=_percentiles([exchange.ended - exchange.due for exchange in refused]),
        refused_since_sent=_percentiles([exchange.ended - exchange.sent for exchange in refused]),
        lateness=_percentiles([exchange.sent - exchange.due for exchange in counted]),
        generator_microseconds=sent.generator_microseconds,
        other_cores=used.others,
    )


def _percentiles(seconds: Sequence[float]) -> tuple[float, ...]:
    if not seconds:
        return (float("nan"),) * len(PERCENTILES)
    return tuple(float(value) * 1000 for value in np.percentile(seconds, PERCENTILES))


def _one(request: Request) -> float:
    return 1


def _tokens(request: Request) -> float:
    return request.num_tokens


def _row(level: Level) -> tables.Row:
    return (
        f"{level.factor:g}",
        f"{level.offered_per_second:,.1f}",
        f"{level.accepted_per_second:,.1f}",
        f"{level.refused_per_second:,.1f}",
        f"{level.others_per_second:,.1f}",
        f"{level.tokens_per_second:,.0f}",
        f"{level.accepted[0]:,.0f}",
        f"{level.accepted[1]:,.0f}",
        f"{level.accepted_since_sent[1]:,.0f}",
        _cell(level.refused[1]),
        _cell(level.refused_since_sent[1]),
        f"{level.lateness[0]:.2f}",
        f"{level.lateness[1]:.2f}",
        f"{level.generator_microseconds:.0f}",
        f"{level.other_cores:.2f}",
    )


def _cell(milliseconds: float) -> str:
    return "-" if np.isnan(milliseconds) else f"{milliseconds:.1f}"
