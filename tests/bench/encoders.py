"""Full-size encoders: bake, load, speed and memory through a real gunicorn. Knows no quality.

The checkpoints are random and written here. One request at a time is sent; its texts have an exact number of
tokens, which what the service bills must agree with. Files are read from a warm page cache.
"""

from __future__ import annotations

import http.client
import itertools
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from pathlib import Path

import orjson

from service import manifest as contract
from service import tokenization
from service.manifest import TOKENIZER_FILE, Precision
from tests.bench import full_size, memory, server, tables
from tests.bench.errors import BenchError
from tests.bench.load import HEADERS, MAX_SHOWN, ROUTE
from tests.bench.server import Service
from tests.processes import PROJECT, environment

RERANK_ROUTE = "/v1/rerank"
QUERY_TOKENS = 8
CONVERT, BUNDLES = (sys.executable, "-m", "convert", "--force"), "bundles"
# Each is one token of XLM-R, and of BERT.
WORDS = ("time", "year", "man", "way", "day", "war", "world", "life", "hand", "part", "work", "end", "home")
SIZE_SECONDS = 60.0  # no further run of a size once they took this long
BYTES_PER_PARAMETER = {Precision.FP32: 4.0, Precision.INT8: 1.1, Precision.INT8_BLOCK: 1.2}
HEADER = ("precision", "GB disk", "load s", "GB anon", "GB RSS", "texts", "seconds", "tokens/s", "GB added")


class Model(StrEnum):
    """What can be measured."""

    JINA_V3 = "jina-embeddings-v3"
    BGE_M3 = "bge-m3"
    BGE_RERANKER = "bge-reranker-v2-m3"
    MINILM = server.MODEL  # small, from the converter's own source: to try this benchmark


@dataclass(frozen=True)
class Encoder:
    """How a model is sized, written and asked."""

    num_parameters: int
    write: Callable[[Path, Path], None] | None = None  # None: the converter finds the checkpoint
    has_tasks: bool = False
    is_reranker: bool = False


ENCODERS = {
    Model.JINA_V3: Encoder(572_310_396, full_size.write_jina_v3, has_tasks=True),
    Model.BGE_M3: Encoder(567_754_752, full_size.write_bge_m3),
    Model.BGE_RERANKER: Encoder(567_755_777, full_size.write_bge_reranker, is_reranker=True),
    Model.MINILM: Encoder(22_713_216),
}


@dataclass(frozen=True)
class Size:
    """How many texts a request has (for a reranker: documents) and the tokens of each (of each pair)."""

    num_texts: int
    num_tokens: int

    def __post_init__(self) -> None:
        """Refuse requests of nothing and pairs that the query would fill."""
        if self.num_texts < 1 or self.num_tokens < 2 * QUERY_TOKENS:
            raise ValueError(f"{self} must be at least 1x{2 * QUERY_TOKENS}")

    def __str__(self) -> str:
        """Spell it as the command line does."""
        return f"{self.num_texts}x{self.num_tokens}"


@dataclass(frozen=True)
class Plan:
    """What is measured of every model."""

    precisions: tuple[Precision, ...]
    sizes: tuple[Size, ...]
    tasks: tuple[str, ...]  # baked, where a model has tasks; the first is measured
    num_runs: int
    tokenizer: Path  # of XLM-R, for checkpoints that are missing


@dataclass(frozen=True)
class Request:
    """What is sent, and the tokens it must be billed for."""

    route: str
    body: bytes
    num_billed: int


@dataclass(frozen=True)
class Run:
    """The best time of a size, and the most anonymous memory meanwhile above that after the load."""

    size: Size
    seconds: float
    added_bytes: int


@dataclass(frozen=True)
class Figures:
    """What a precision takes on the disk and, once loaded, in memory; and its runs."""

    bundle_bytes: int
    load_seconds: float
    anonymous_bytes: int
    resident_bytes: int
    runs: list[Run]


def work_folder(wanted: Path | None) -> AbstractContextManager[str]:
    """Give the folder asked for, which is kept, else one that is removed at the end."""
    return nullcontext(str(wanted.absolute())) if wanted else tempfile.TemporaryDirectory(prefix="encoders-")


def bake(model: Model, plan: Plan, work: Path) -> memory.Measured:
    """Write the checkpoint where it is missing, and bake it. Raises BenchError with the end of the output."""
    encoder = ENCODERS[model]
    options = ["--precision", ",".join(plan.precisions), "--verify", "skip", "--out", str(work / BUNDLES)]
    if encoder.write:
        if not (work / model).exists():
            print(f"{model}: writing the checkpoint", file=sys.stderr)
            encoder.write(work / model, plan.tokenizer)
        options += ["--source", str(work / model)]
    num_bytes = sum(BYTES_PER_PARAMETER[precision] for precision in plan.precisions) * encoder.num_parameters
    if encoder.has_tasks:
        options += ["--task", ",".join(plan.tasks)]
        num_bytes *= len(plan.tasks)
    full_size.check_space(work, int(num_bytes), f"the bundle of {model}")
    print(f"{model}: bake", file=sys.stderr)
    baked = memory.run_measured([*CONVERT, model, *options], environment(), PROJECT)
    if baked.returncode:
        raise BenchError(f"{model} could not be baked, status {baked.returncode}:\n{baked.output_tail}")
    return baked


def measure(model: Model, precision: Precision, plan: Plan, work: Path) -> Figures:
    """Start the service with one model and time a request of each size that it takes."""
    bundle = work / BUNDLES / model
    tokenizer, limit = tokenization.load(bundle / TOKENIZER_FILE), contract.load(bundle).max_tokens
    num_bytes = sum(path.stat().st_size for path in (bundle / precision).iterdir())
    with server.serve(bundle.parent, precision, model) as service:
        pid = service.pid
        loaded, resident = memory.anonymous_bytes(pid), memory.resident_bytes(pid)
        figures = Figures(num_bytes, service.seconds_to_ready, loaded, resident, [])
        for size in plan.sizes:
            if size.num_tokens > limit:
                print(f"{model}: {size} left out: it takes {limit} tokens", file=sys.stderr)
                continue
            request = _request(model, size, plan, tokenizer)
            seconds, peak = memory.peak_while(pid, partial(_best, service, request, plan.num_runs))
            figures.runs.append(Run(size, seconds, max(0, peak - loaded)))
            print(f"{model}: {precision}: {size}: {seconds:.3f} s", file=sys.stderr)
        return figures


def table(
    model: Model, plan: Plan, baked: memory.Measured, found: dict[Precision, Figures], command: str
) -> list[str]:
    """Lay out the bake as title and the runs of each precision, what is of its load in the first of them."""
    rows: list[tables.Row] = []
    for precision, figures in found.items():
        load = [precision, f"{figures.bundle_bytes / 1e9:.3f}", f"{figures.load_seconds:.1f}"]
        load += [f"{figures.anonymous_bytes / 1e9:.2f}", f"{figures.resident_bytes / 1e9:.2f}"]
        for run in figures.runs:
            speed = run.size.num_texts * run.size.num_tokens / run.seconds
            measured = [str(run.size), f"{run.seconds:.3f}", f"{speed:,.0f}", f"{run.added_bytes / 1e9:.2f}"]
            rows.append(load + measured)
            load = [""] * len(load)
    tasks = f" ({', '.join(plan.tasks)})" if ENCODERS[model].has_tasks else ""
    bake_cost = f"bake {baked.seconds:.1f} s, peak {baked.peak_anonymous_bytes / 1e9:.2f} GB anonymous"
    title = f"{model}{tasks}: {bake_cost}; best of {plan.num_runs} runs, fewer after {SIZE_SECONDS:.0f} s"
    return tables.aligned(title, command, HEADER, rows)


def _request(model: Model, size: Size, plan: Plan, tokenizer: tokenization.Tokenizer) -> Request:
    """Make texts of words that are one token each; special tokens make up the rest of the size."""
    words = itertools.cycle(WORDS)
    alone, paired = (tokenizer.native.num_special_tokens_to_add(is_pair) for is_pair in (False, True))

    def texts(number: int, num_words: int) -> list[str]:
        return [" ".join(itertools.islice(words, num_words)) for _ in range(number)]

    if ENCODERS[model].is_reranker:
        num_words = size.num_tokens - QUERY_TOKENS - paired
        (query,), documents = texts(1, QUERY_TOKENS), texts(size.num_texts, num_words)
        body = {"model": model, "query": query, "documents": documents, "return_documents": False}
        num_billed = QUERY_TOKENS + alone + size.num_texts * (num_words + alone)
        return Request(RERANK_ROUTE, orjson.dumps(body), num_billed)
    task = plan.tasks[0] if ENCODERS[model].has_tasks else None
    body = {"model": model, "input": texts(size.num_texts, size.num_tokens - alone), "task": task}
    return Request(ROUTE, orjson.dumps(body), size.num_texts * size.num_tokens)


def _best(service: Service, request: Request, num_runs: int) -> float:
    """Return the seconds of the fastest run after one that warms up."""
    with closing(service.connect()) as connection:
        _send(connection, request)
        seconds: list[float] = []
        while len(seconds) < num_runs and sum(seconds) < SIZE_SECONDS:
            seconds.append(_send(connection, request))
    return min(seconds)


def _send(connection: http.client.HTTPConnection, request: Request) -> float:
    """Return the seconds of one request. Raises BenchError on another answer or count of tokens."""
    begin = time.perf_counter()
    connection.request("POST", request.route, request.body, HEADERS)
    response = connection.getresponse()
    received = response.read()
    seconds = time.perf_counter() - begin
    if response.status != http.client.OK:
        shown = received.decode(errors="replace")[:MAX_SHOWN]
        raise BenchError(f"POST {request.route} answered {response.status}: {shown}")
    num_tokens = orjson.loads(received)["usage"]["total_tokens"]
    if num_tokens != request.num_billed:
        raise BenchError(f"the service counted {num_tokens} tokens instead of {request.num_billed}")
    return seconds
