"""What gzip costs and saves: the levels on answers of floats, and requests to a service on the same host."""

from __future__ import annotations

import gzip
import http.client
import itertools
import statistics
import time
import zlib
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass

import numpy as np

from service import app, compression, schema
from service.embedding import Embeddings
from service.encoding import EmbeddingType
from tests.bench import load, tables
from tests.bench.errors import BenchError
from tests.bench.server import Service
from tests.bench.texts import Texts

SHAPES = ((1, 384), (1, 1024), (64, 384), (64, 1024))  # vectors x dimensions
LEVELS = (1, 2, 3, 6, 9)
NUM_TIMES = 21
# What is asked for: nothing, or gzip however small the answer is.
ASKED = {"plain": "identity", "gzip": "gzip, identity;q=0"}
NUM_TEXTS = (1, 64)


@dataclass(frozen=True)
class Rates:
    """Requests/s of one kind of request by what is asked for, medians, and the bytes of an answer."""

    kind: str
    per_second: dict[str, float]
    num_bytes: dict[str, int]


def levels_table(command: str) -> list[str]:
    """Compress answers of floats at several levels; lay out milliseconds and what is left."""
    rows = []
    for num_vectors, dimensions in SHAPES:
        body = _answer(num_vectors, dimensions)
        cells = [_level(body, level) for level in LEVELS]
        rows.append((f"{num_vectors} x {dimensions}", str(len(body)), *cells))
    title = "answers of floats as gzip, processor ms and share of the bytes that is left, medians"
    return tables.aligned(title, command, ("answer", "bytes", *(f"level {level}" for level in LEVELS)), rows)


def measure(service: Service, found: Texts, num_runs: int, seconds: float) -> list[Rates]:
    """Send requests of a client that asks for gzip and of one that does not, in turns."""
    measured = []
    for name, texts in (("question", found.questions), ("passage", found.passages)):
        for count in NUM_TEXTS:
            bodies = itertools.cycle([load.encode(batch) for batch in _batches(texts, count)])
            rounds: dict[str, list[tuple[float, int]]] = {asked: [] for asked in ASKED}
            for asked in [*ASKED] * (num_runs + 1):
                rounds[asked].append(_round(service, bodies, ASKED[asked], seconds))
            measured.append(
                Rates(
                    f"{count} {name}{'s' * (count > 1)}",
                    {asked: statistics.median(rate for rate, _ in of[1:]) for asked, of in rounds.items()},
                    {asked: of[-1][1] for asked, of in rounds.items()},
                )
            )
    return measured


def rates_table(measured: Sequence[Rates], source: str, command: str) -> list[str]:
    """Lay out the rates and what gzip takes of them."""
    rows = [
        (
            rates.kind,
            *(f"{rates.per_second[asked]:.1f}" for asked in ASKED),
            f"{rates.per_second['gzip'] / rates.per_second['plain']:.3f}",
            *(str(rates.num_bytes[asked]) for asked in ASKED),
        )
        for rates in measured
    ]
    header = ("request", "plain/s", "gzip/s", "ratio", "plain bytes", "gzip bytes")
    return tables.aligned(f"one client on the same host, which unpacks; {source}", command, header, rows)


def _answer(num_vectors: int, dimensions: int) -> bytes:
    vectors = np.random.default_rng(0).standard_normal((num_vectors, dimensions)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    computed = Embeddings(vectors=vectors, num_tokens=0)
    return app._dumps(schema.embeddings_response("model", EmbeddingType.FLOAT, computed))


def _level(body: bytes, level: int) -> str:
    times, packed = [], b""
    for _ in range(NUM_TIMES):
        begin = time.thread_time()
        packed = zlib.compress(body, level, compression.GZIP_BITS)
        times.append(time.thread_time() - begin)
    return f"{statistics.median(times) * 1000:.2f}, {len(packed) / len(body):.3f}"


def _batches(texts: Sequence[str], size: int) -> list[Sequence[str]]:
    return [texts[begin : begin + size] for begin in range(0, len(texts) - size + 1, size)]


def _round(service: Service, bodies: Iterator[bytes], accepted: str, seconds: float) -> tuple[float, int]:
    """Return requests/s of one client, and the bytes of the last answer as they were sent."""
    headers, count, num_bytes = load.HEADERS | {"Accept-Encoding": accepted}, 0, 0
    with closing(service.connect()) as connection:
        begin = time.perf_counter()
        while time.perf_counter() - begin < seconds:
            connection.request("POST", load.ROUTE, next(bodies), headers)
            response = connection.getresponse()
            received = response.read()
            if response.status != http.client.OK:
                raise BenchError(f"POST {load.ROUTE} answered {response.status}")
            if response.headers["content-encoding"] == "gzip":
                gzip.decompress(received)
            count, num_bytes = count + 1, len(received)
        return count / (time.perf_counter() - begin), num_bytes
