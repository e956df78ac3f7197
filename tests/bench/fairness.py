"""Single queries alone and beside a client that sends bulk without pause, in turns. Knows no quality."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from service.manifest import Precision
from tests.bench import bare, cores, kinds, loops, tables
from tests.bench.kinds import Kind
from tests.bench.server import Service
from tests.bench.texts import Texts

NUM_CLIENTS = (1, 4)
WARM_UP_SECONDS = 1.0
NUM_BATCH_RUNS = 9
PERCENTILES = (50, 95, 99)
P95 = PERCENTILES.index(95)
MAX_RATIO = 4.0
HEADER = (
    "precision", "clients", "alone p50 ms", "p95", "p99", "beside bulk p50 ms", "p95", "p99",
    "bulk texts/s", "batch ms", "others' cores",
)  # fmt: skip


@dataclass(frozen=True)
class Turn:
    """Latencies of the single queries, and the rate of the bulk beside them."""

    milliseconds: tuple[float, ...]  # of PERCENTILES
    bulk_texts_per_second: float
    other_cores: float


@dataclass(frozen=True)
class Figures:
    """Turns by the number of clients, and what a batch of bulk takes alone."""

    alone: dict[int, list[Turn]]
    beside: dict[int, list[Turn]]
    batch_milliseconds: float

    def limit(self, num_clients: int) -> float:
        """Return the milliseconds that the 95th percentile may reach beside bulk."""
        return MAX_RATIO * _median(self.alone[num_clients], P95) + self.batch_milliseconds


def measure(service: Service, found: Texts, num_rounds: int, seconds: float) -> Figures:
    """Let the clients ask alone, then beside bulk, round by round."""
    figures = Figures({}, {}, _batch_milliseconds(service, found))
    for num_clients in NUM_CLIENTS:
        _turn(service, found, num_clients, False, WARM_UP_SECONDS)
        turns: dict[bool, list[Turn]] = {False: [], True: []}
        for number in range(1, num_rounds + 1):
            print(f"{service.precision}: {num_clients} clients {number}/{num_rounds}", file=sys.stderr)
            for has_bulk, done in turns.items():
                done.append(_turn(service, found, num_clients, has_bulk, seconds))
        figures.alone[num_clients], figures.beside[num_clients] = turns[False], turns[True]
    return figures


def table(found: Mapping[Precision, Figures], source: str, command: str) -> list[str]:
    """Lay out the medians of each precision and say which targets are met."""
    rows, verdicts = [], []
    for precision, figures in found.items():
        for num_clients, beside in figures.beside.items():
            alone, limit = figures.alone[num_clients], figures.limit(num_clients)
            rows.append(
                (
                    precision,
                    str(num_clients),
                    *(f"{_median(turns, column):.1f}" for turns in (alone, beside) for column in range(3)),
                    f"{statistics.median(turn.bulk_texts_per_second for turn in beside):,.1f}",
                    f"{figures.batch_milliseconds:.1f}",
                    f"{max(turn.other_cores for turn in (*alone, *beside)):.2f}",
                )
            )
            reached = _median(beside, P95)
            verdicts.append(
                f"target of {precision}, {num_clients} clients: p95 beside bulk at most {MAX_RATIO:g} times "
                f"alone + a batch = {limit:.1f} ms: {reached:.1f} ms, {tables.verdict(reached <= limit)}"
            )
    title = f"single queries alone and beside a client that sends 64 passages a request; {source}"
    return [*tables.aligned(title, command, HEADER, rows), *verdicts]


def _turn(service: Service, found: Texts, num_clients: int, has_bulk: bool, seconds: float) -> Turn:
    streams = kinds.dealt(kinds.requests(Kind.SINGLE, found), num_clients)
    if has_bulk:
        streams += kinds.dealt(kinds.requests(Kind.BULK, found), 1)
    sent, used = cores.used_while(
        [service.pid], lambda: loops.closed(service.settings.port, streams, seconds)
    )
    waits = [
        (exchange.ended - exchange.due) * 1000
        for exchange in sent.exchanges
        if exchange.stream < num_clients and exchange.due < sent.begin + seconds
    ]
    values = tuple(float(value) for value in np.percentile(waits, PERCENTILES))
    bulk = sent.rate(lambda request: request.num_texts if request.num_texts > 1 else 0)
    return Turn(values, bulk, used.others)


def _batch_milliseconds(service: Service, found: Texts) -> float:
    """Return what the largest run of a bulk request takes the bare session."""
    model = bare.open_as_served(service)
    request = bare.record(model, kinds.inputs(Kind.BULK, found)[0])
    largest = max(request.runs, key=lambda run: next(iter(run[0].values())).size)
    one = bare.Request([largest], 0)
    session = model.graphs.session(None)
    return statistics.median(bare.time_runs(session, [one]) for _ in range(NUM_BATCH_RUNS)) * 1000


def _median(turns: Sequence[Turn], column: int) -> float:
    return statistics.median(turn.milliseconds[column] for turn in turns)
