"""Closed and open loops of requests, and what is counted of them. Knows connections, no texts.

In a closed loop each stream sends its next request once the last is answered. In an open one requests are due
at times that nothing delays: latency counts from then, so that a server which makes requests wait cannot also
make fewer of them come.
"""

from __future__ import annotations

import http.client
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from tests.bench.errors import BenchError
from tests.bench.wire import Exchange, Request, Wire

SEED = 0


@dataclass(frozen=True)
class Sent:
    """All requests of a loop, and the processor time that it took itself."""

    exchanges: list[Exchange]
    begin: float
    seconds: float  # during which requests were sent; answers may have come later
    generator_seconds: float  # of the processor

    def rate(self, weight: Callable[[Request], float], skipped: float = 0.0) -> float:
        """Return the weight of what was answered 200 in a second, after some skipped seconds.

        A request that is on its way at an end of that time counts by the part that lies within: a loop of
        few long requests would otherwise be measured to the nearest whole one.
        """
        begin, end = self.begin + skipped, self.begin + self.seconds
        total = 0.0
        for exchange in self.exchanges:
            inside = min(exchange.ended, end) - max(exchange.sent, begin)
            if exchange.status == http.client.OK and inside > 0:
                total += weight(exchange.request) * inside / (exchange.ended - exchange.sent)
        return total / (end - begin)

    def ended_rate(self, weight: Callable[[Request], float], skipped: float = 0.0) -> float:
        """Return the weight of what ended with 200 in a second, after some skipped seconds.

        Where a queue grows, requests on their way have had less than their part of the time: only what is
        done counts.
        """
        begin, end = self.begin + skipped, self.begin + self.seconds
        done = [
            exchange.request
            for exchange in self.exchanges
            if exchange.status == http.client.OK and begin <= exchange.ended < end
        ]
        return sum(map(weight, done)) / (end - begin)

    @property
    def generator_microseconds(self) -> float:
        """Return the processor time of the generator for a request."""
        return self.generator_seconds / max(1, len(self.exchanges)) * 1e6


def closed(port: int, streams: Sequence[Iterator[Request]], seconds: float) -> Sent:
    """Let every stream send for some seconds. Raises BenchError when an answer is not 200."""
    with Wire(port) as wire:
        exchanges: list[Exchange] = []
        cpu, begin = time.process_time(), time.perf_counter()
        for number, stream in enumerate(streams):
            _check(wire.send(next(stream), number, begin))
        while wire.num_waiting:
            for exchange in wire.receive(None):
                _check(exchange)
                exchanges.append(exchange)
                if exchange.ended < begin + seconds:
                    due = time.perf_counter()
                    _check(wire.send(next(streams[exchange.stream]), exchange.stream, due))
        return Sent(exchanges, begin, seconds, time.process_time() - cpu)


def opened(port: int, requests: Iterator[Request], per_second: float, seconds: float) -> Sent:
    """Send requests at random times (Poisson) for some seconds; wait for the last answer.

    A connection is opened when none is idle: one that has sent nothing yet may hold a thread of the server.
    """
    offsets = _poisson(per_second, seconds)
    with Wire(port) as wire:
        exchanges: list[Exchange] = []
        cpu, begin = time.process_time(), time.perf_counter()
        for offset in offsets:
            due = begin + offset
            exchanges += wire.receive(0)
            while (wait := due - time.perf_counter()) > 0:
                exchanges += wire.receive(wait)
            failed = wire.send(next(requests), 0, due)
            exchanges += [failed] if failed else []
        while wire.num_waiting:
            exchanges += wire.receive(None)
        return Sent(exchanges, begin, seconds, time.process_time() - cpu)


def _poisson(per_second: float, seconds: float) -> list[float]:
    chance, offsets, now = random.Random(SEED), list[float](), 0.0
    while (now := now + chance.expovariate(per_second)) < seconds:
        offsets.append(now)
    return offsets


def _check(exchange: Exchange | None) -> None:
    if exchange is not None and exchange.status != http.client.OK:
        raise BenchError(f"a request of a closed loop was answered {exchange.status or 'not at all'}")
