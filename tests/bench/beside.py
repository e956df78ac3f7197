"""Closed-loop loads on the service and on infinity, in turns. Knows rates and latencies, no quality.

Both servers stay up and only one is sent requests at a time. What the idle one takes of the cores, and what
others on the host take, is measured in every turn: torch's threads, which wait for each other by spinning,
lose far more to others than their share, so that a round with others in it flatters the service.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt

from service import manifest as contract
from service.manifest import Precision
from tests.bench import client, cores, kinds, load, loops, tables
from tests.bench.errors import BenchError
from tests.bench.infinity_process import Infinity
from tests.bench.kinds import LOADS, Kind
from tests.bench.server import Service
from tests.bench.texts import Texts

WARM_UP_SECONDS = 1.5
NUM_COMPARED, MIN_COSINE = 8, 0.999  # the longest and the shortest texts: both cut at the same token
MAX_ATTEMPTS = 2  # times the rounds wanted
PERCENTILES = (50, 99)
TARGETS = {Kind.SINGLE: 3.0, Kind.MIXED: 3.5, Kind.BULK: 1.4}  # of fp32
FASTEST_TARGETS = {Kind.SINGLE: 5.0, Kind.MIXED: 6.0, Kind.BULK: 2.4}  # of the fastest verified precision
HEADER = ("precision", "load", "texts/s", "p50 ms", "p99 ms", "cores")
BESIDE = ("infinity texts/s", "p50 ms", "p99 ms", "cores", "ratio", "lowest", "highest")
LAST = ("idle server", "others", "generator us")


@dataclass(frozen=True)
class Turn:
    """One closed loop on one server."""

    texts_per_second: float
    milliseconds: tuple[float, ...]  # of PERCENTILES
    cores: float  # that the server used
    idle_cores: float  # that the idle server used
    other_cores: float  # that others on the host used
    generator_microseconds: float  # of a request


@dataclass(frozen=True)
class Figures:
    """The turns of each kind of load, of infinity empty without one, at one precision."""

    is_verified: bool
    own: dict[Kind, list[Turn]]
    beside: dict[Kind, list[Turn]]

    def ratio(self, kind: Kind) -> float:
        """Return the median rate as a multiple of infinity's."""
        return _rate(self.own[kind]) / _rate(self.beside[kind])


Found = Mapping[Precision, Figures]


def measure(
    service: Service, infinity: Infinity | None, found: Texts, num_rounds: int, seconds: float
) -> Figures:
    """Send every kind of load to both in turns. Raises BenchError where their vectors differ."""
    if infinity is not None and service.precision == Precision.FP32:
        _compare(service, infinity, found)
    servers = {service.settings.port: service.pid} | ({infinity.port: infinity.pid} if infinity else {})
    turns = {kind: _rounds(service, servers, kind, found, (num_rounds, seconds)) for kind in Kind}
    own, *beside = (
        {kind: [each[index] for each in turns[kind]] for kind in Kind} for index in range(len(servers))
    )
    return Figures(_is_verified(service), own, beside[0] if beside else {})


def _rounds(
    service: Service, servers: Mapping[int, int], kind: Kind, found: Texts, wanted: tuple[int, float]
) -> list[list[Turn]]:
    """Return rounds, a turn of each server; noisy ones are repeated, then the quietest are taken."""
    requests = kinds.requests(kind, found)
    num_rounds, seconds = wanted

    def one_round(length: float) -> list[Turn]:
        turns = []
        for index, port in enumerate(servers):
            streams = kinds.dealt(requests, LOADS[kind].num_clients)
            run = partial(loops.closed, port, streams, length)
            turns.append(_turn(*cores.used_while(list(servers.values()), run), index))
        return turns

    one_round(WARM_UP_SECONDS)
    rounds: list[list[Turn]] = []
    while len(rounds) < num_rounds * MAX_ATTEMPTS and sum(map(_is_quiet, rounds)) < num_rounds:
        rounds.append(one_round(seconds))
        noise = max(turn.other_cores for turn in rounds[-1])
        print(f"{service.precision}: {kind}: round {len(rounds)}, others {noise:.2f} cores", file=sys.stderr)
    quietest = sorted(rounds, key=lambda turns: max(turn.other_cores for turn in turns))[:num_rounds]
    return [turns for turns in rounds if turns in quietest]


def _is_quiet(turns: Sequence[Turn]) -> bool:
    return max(turn.other_cores for turn in turns) <= cores.MAX_OTHER_CORES


def table(found: Found, title: str, command: str) -> list[str]:
    """Lay out the medians of every precision and load."""
    has_beside = any(figures.beside for figures in found.values())
    rows = []
    for precision, figures in found.items():
        for kind in Kind:
            own, beside = figures.own[kind], figures.beside.get(kind, [])
            turns = [*own, *beside]
            rows.append(
                (
                    precision,
                    kind,
                    *_cells(own),
                    *((*_cells(beside), *_ratios(figures, kind)) if beside else ()),
                )
                + (
                    f"{max(turn.idle_cores for turn in turns):.3f}",
                    f"{max(turn.other_cores for turn in turns):.2f}",
                    f"{statistics.median(turn.generator_microseconds for turn in own):.0f}",
                )
            )
    return tables.aligned(title, command, (*HEADER, *(BESIDE if has_beside else ()), *LAST), rows)


def verdicts(found: Found) -> list[str]:
    """Compare the ratios with the targets."""
    beside = {precision: figures for precision, figures in found.items() if figures.beside}
    lines = []
    if Precision.FP32 in beside:
        lines += _verdicts(Precision.FP32, beside[Precision.FP32], TARGETS)
    verified = [precision for precision, figures in beside.items() if figures.is_verified]
    if len(verified) > 1:
        fastest = max(
            verified, key=lambda precision: statistics.geometric_mean(map(beside[precision].ratio, Kind))
        )
        lines += _verdicts(fastest, beside[fastest], FASTEST_TARGETS, ", the fastest verified")
    return lines


def _verdicts(
    precision: Precision, figures: Figures, targets: Mapping[Kind, float], what: str = ""
) -> list[str]:
    lines = []
    for kind, target in targets.items():
        is_quiet = _is_quiet([*figures.own[kind], *figures.beside[kind]])
        told = tables.verdict(figures.ratio(kind) >= target) + ("" if is_quiet else ", others took cores")
        lines.append(
            f"target of {precision}{what}, {kind}: {target} times infinity: {figures.ratio(kind):.2f}, {told}"
        )
    return lines


def _turn(sent: loops.Sent, used: cores.Used, index: int) -> Turn:
    latencies = [(exchange.ended - exchange.sent) * 1000 for exchange in sent.exchanges]
    return Turn(
        sent.rate(lambda request: request.num_texts),
        tuple(float(value) for value in np.percentile(latencies, PERCENTILES)),
        used.trees[index],
        sum(used.trees) - used.trees[index],
        used.others,
        sent.generator_microseconds,
    )


def _rate(turns: Sequence[Turn]) -> float:
    return statistics.median(turn.texts_per_second for turn in turns)


def _cells(turns: Sequence[Turn]) -> tuple[str, ...]:
    latencies = zip(*(turn.milliseconds for turn in turns), strict=True)
    return (
        f"{_rate(turns):,.1f}",
        *(f"{statistics.median(values):.1f}" for values in latencies),
        f"{statistics.median(turn.cores for turn in turns):.2f}",
    )


def _ratios(figures: Figures, kind: Kind) -> tuple[str, ...]:
    pairs = zip(figures.own[kind], figures.beside[kind], strict=True)
    ratios = [own.texts_per_second / beside.texts_per_second for own, beside in pairs]
    return tuple(f"{value:.2f}" for value in (figures.ratio(kind), min(ratios), max(ratios)))


def _is_verified(service: Service) -> bool:
    variants = contract.load(service.bundle).variants
    return all(variant.verified for variant in variants if variant.precision == service.precision)


def _compare(service: Service, infinity: Infinity, found: Texts) -> None:
    by_length = sorted((*found.questions, *found.passages), key=len)
    chosen = [*by_length[:NUM_COMPARED], *by_length[-NUM_COMPARED:]]
    own, other = (_vectors(port, chosen) for port in (service.settings.port, infinity.port))
    lowest = float((own * other).sum(axis=1).min())
    print(f"lowest cosine of {len(chosen)} vectors to infinity's: {lowest:.6f}")
    if lowest <= MIN_COSINE:
        raise BenchError(f"infinity computes other vectors: cosine {lowest:.6f}")


def _vectors(port: int, chosen: Sequence[str]) -> npt.NDArray[np.float64]:
    answer = client.post(port, load.ROUTE, load.encode(chosen))
    vectors = np.array([entry["embedding"] for entry in answer["data"]], dtype=np.float64)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors
