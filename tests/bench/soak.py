"""Whether a service's memory stays as it is under texts of ever other lengths. Knows HTTP and /proc.

Closed-loop clients send requests of random numbers of texts of random lengths, while the resident memory of
gunicorn's processes is read each second. Of the answers nothing is kept.
"""

from __future__ import annotations

import http.client
import random
import statistics
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import orjson

from convert.bake import BakeRequest, Verification, bake
from convert.catalog import RECIPES
from service.manifest import Precision
from tests import xlmr
from tests.bench import memory, tables
from tests.bench.errors import BenchError
from tests.bench.load import HEADERS, MAX_SHOWN, ROUTE
from tests.bench.server import Service

SPECIAL_TOKENS = 2  # at the ends of a text
MINUTE = 60
MAX_GROWTH = 1.1  # from the baseline to the end
WINDOW = 10  # samples: one may fall into a run of the longest text
HEADER = ("minute", "MB resident", "MB anonymous")


@dataclass(frozen=True)
class Load:
    """What the clients send."""

    max_tokens: int  # of a text
    max_texts: int  # of a request
    num_clients: int


DEFAULT_LOAD = Load(max_tokens=256, max_texts=64, num_clients=6)
LONG_LOAD = Load(max_tokens=8000, max_texts=8, num_clients=4)


@dataclass(frozen=True)
class Memory:
    """Bytes of gunicorn's processes together, what they share counted for each."""

    resident: float
    anonymous: float


@dataclass(frozen=True)
class Soak:
    """A sample for each second, and how much was answered."""

    samples: list[Memory]
    num_requests: int

    def at(self, second: int, window: int = WINDOW) -> Memory:
        """Return the medians of so many samples up to a second."""
        samples = self.samples[max(0, second - window) : second]
        resident = statistics.median(sample.resident for sample in samples)
        return Memory(resident, statistics.median(sample.anonymous for sample in samples))

    def growth(self, baseline_second: int, window: int = WINDOW) -> Memory:
        """Return the memory of the end as a multiple of that of an earlier second."""
        first, last = self.at(baseline_second, window), self.at(len(self.samples), window)
        return Memory(last.resident / first.resident, last.anonymous / first.anonymous)


def measure(service: Service, load: Load, seconds: int) -> Soak:
    """Load a service for some seconds. Raises BenchError on an answer that is not 200."""
    deadline, samples = time.monotonic() + seconds, list[Memory]()
    with ThreadPoolExecutor(load.num_clients) as pool:
        clients = [pool.submit(_send, service, load, seed, deadline) for seed in range(load.num_clients)]
        while time.monotonic() < deadline and not any(client.done() for client in clients):
            time.sleep(1)
            samples.append(Memory(memory.resident_bytes(service.pid), memory.anonymous_bytes(service.pid)))
        return Soak(samples, sum(client.result() for client in clients))


def bake_long(out: Path, precisions: Sequence[Precision]) -> str:
    """Bake a tiny model that reads 8,192 tokens, with random weights; return its name."""
    source = xlmr.write_bge_m3(out / ".checkpoints" / xlmr.BGE_M3, sizes=xlmr.LONG)
    request = BakeRequest(
        out=out, source=str(source), precisions=tuple(precisions), verification=Verification.SKIP
    )
    bake(RECIPES[xlmr.BGE_M3], request)
    return xlmr.BGE_M3


def table(service: Service, load: Load, soak: Soak, command: str) -> list[str]:
    """Lay out the memory minute by minute and say whether it has stayed."""
    minutes = range(1, len(soak.samples) // MINUTE + 1)
    rows = [(str(minute), *_megabytes(soak.at(minute * MINUTE))) for minute in minutes]
    title = (
        f"{service.model}, {service.precision}: {load.num_clients} clients, {soak.num_requests:,} requests "
        f"of up to {load.max_texts} texts of up to {load.max_tokens:,} tokens; medians of {WINDOW} seconds"
    )
    growth = soak.growth(MINUTE)
    verdicts = [
        f"target of {name} memory: at the end at most {MAX_GROWTH} of that after a minute: {ratio:.3f}, "
        f"{tables.verdict(ratio <= MAX_GROWTH)}"
        for name, ratio in (("resident", growth.resident), ("anonymous", growth.anonymous))
    ]
    return [*tables.aligned(title, command, HEADER, rows), *verdicts]


def _send(service: Service, load: Load, seed: int, deadline: float) -> int:
    """Send requests until the deadline; return how many were answered."""
    draw, num_requests = random.Random(seed), 0
    while time.monotonic() < deadline:
        texts = [_text(draw, load.max_tokens) for _ in range(draw.randint(1, load.max_texts))]
        with closing(service.connect()) as connection:
            body = orjson.dumps({"model": service.model, "input": texts})
            connection.request("POST", ROUTE, body, HEADERS)
            response = connection.getresponse()
            received = response.read()
        if response.status != http.client.OK:
            shown = received.decode(errors="replace")[:MAX_SHOWN]
            raise BenchError(f"POST {ROUTE} answered {response.status}: {shown}")
        num_requests += 1
    return num_requests


def _text(draw: random.Random, max_tokens: int) -> str:
    """Return words of a token each, in BERT's vocabulary as in that of the tiny model."""
    return " ".join(draw.choices(xlmr.WORDS, k=draw.randint(1, max_tokens - SPECIAL_TOKENS)))


def _megabytes(found: Memory) -> tuple[str, str]:
    return f"{found.resident / 1e6:.0f}", f"{found.anonymous / 1e6:.0f}"
