"""What the weights of workers and of tasks take in memory, once for all; loads with and without a copy.

Weights are the mapped files of bundle and cache, by their share of each process (PSS), and the anonymous
memory that appears when a session is opened, which a process of its own tells. Of word tables only the pages
count that texts have looked up. The first start of the service makes the copies.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import orjson

from service import manifest as contract
from service import wire
from service.copies import Copies, digest_of
from service.manifest import TOKENIZER_FILE, Precision
from tests.bench import full_size_xlmr, memory, models, open_session, server, smaps, tables
from tests.bench.errors import BenchError
from tests.bench.full_size import Plan
from tests.bench.load import HEADERS
from tests.bench.open_session import Opened
from tests.bench.server import Service
from tests.bench.smaps import Shares

NUM_WORKERS = 4
MAX_RATIO, MIN_SPEEDUP = 1.1, 2.0
TASKS_PRECISION = Precision.INT8  # of the five tasks of jina-embeddings-v3: 7 GB of weights in fp32
TOUCH_SECONDS, NUM_CLIENTS = 180, 8
WHOLE = 0.99  # of the weights, that a worker has touched
# Characters that are tokens, or several, of their own: a few hundred rows of the word table.
TEXT = " ".join(map(chr, range(0x4E00, 0x4E00 + 200)))
HEADER = (
    "precision", "load s", "from copy s", "ratio", "MB anon", "from copy MB",
    "GB weights, 1 worker", f"{NUM_WORKERS} workers", "ratio", f"GB all, {NUM_WORKERS} workers",
    "tokenizer", "arena and the rest",
)  # fmt: skip


@dataclass(frozen=True)
class Figures:
    """Loads in processes of their own, and the shares of one worker and of several."""

    own: Opened
    copy: Opened
    tokenizer: Opened
    one: Shares
    several: Shares
    folders: tuple[Path, ...]  # of bundle and cache

    def weights(self, shares: Shares, num_workers: int) -> int:
        """Return the bytes of the weights of workers."""
        return shares.under(self.folders) + num_workers * self.copy.anonymous_bytes

    @property
    def ratio(self) -> float:
        """Return the weights of several workers as a multiple of those of one."""
        return self.weights(self.several, NUM_WORKERS) / self.weights(self.one, 1)

    @property
    def speedup(self) -> float:
        """Return how many times faster a copy is opened."""
        return self.own.seconds / self.copy.seconds


def measure(plan: Plan, command: str) -> None:
    """Bake a model and measure it: loads and workers, or what its tasks share; print the table."""
    with models.work_folder(plan.work_dir) as folder:
        work = Path(folder)
        precisions = (TASKS_PRECISION,) if plan.model.has_adapters else plan.precisions
        tasks = tuple(full_size_xlmr.TASKS)
        source = models.checkpoint(plan.model, work / plan.model.name, plan.tokenizer)
        models.bake(plan.model, source, precisions, tasks, work / models.BUNDLES)
        bundle, cache = work / models.BUNDLES / plan.model.name, work / "cache"
        if plan.model.has_adapters:
            lines = _tasks_table(bundle, cache, tasks, command)
        else:
            lines = _workers_table(
                plan, command, {each: _measure(bundle, cache, each, plan.num_runs) for each in precisions}
            )
        print("\n".join(lines), flush=True)


# --- workers ----------------------------------------------------------------------------------------------


def _measure(bundle: Path, cache: Path, precision: Precision, num_runs: int) -> Figures:
    copies = _copies(bundle, cache)
    (file,) = (each.file for each in copies.manifest.variants if each.precision == precision)
    copy = _copy(copies, file)
    loads = {"own": list[Opened](), "copy": list[Opened]()}
    for _ in range(num_runs):  # in turns
        loads["own"].append(open_session.measure(bundle / file, "own"))
        loads["copy"].append(open_session.measure(copy, "copy"))
    own, copied = (min(loads[kind], key=lambda opened: opened.seconds) for kind in ("own", "copy"))
    tokenizer = open_session.measure(bundle / TOKENIZER_FILE, "tokenizer")
    folders = (bundle.resolve(), cache.resolve())
    one = _shares(bundle, cache, precision, 1, lambda shares: True)
    touched = one.under(folders)
    several = _shares(
        bundle,
        cache,
        precision,
        NUM_WORKERS,
        lambda shares: shares.under(folders) >= WHOLE * touched / NUM_WORKERS,
    )
    return Figures(own, copied, tokenizer, one, several, folders)


def _shares(
    bundle: Path, cache: Path, precision: Precision, num_workers: int, is_whole: Callable[[Shares], bool]
) -> Shares:
    """Run a service until every worker has touched its weights; return their shares together."""
    changed = {"WORKERS": str(num_workers), "CACHE_DIR": str(cache.resolve()), "INTRA_OP_THREADS": "1"}
    with server.serve(bundle.parent, precision, bundle.name, changed) as service:
        deadline = time.monotonic() + TOUCH_SECONDS
        while time.monotonic() < deadline:
            clients = [threading.Thread(target=_ask, args=[service, None]) for _ in range(NUM_CLIENTS)]
            for client in clients:
                client.start()
            for client in clients:
                client.join()
            found = [smaps.shares(pid) for pid in memory.tree(service.pid)[1:]]
            if len(found) == num_workers and all(map(is_whole, found)):
                return smaps.together(found)
        raise BenchError(f"not all of {num_workers} workers touched their weights in {TOUCH_SECONDS} s")


def _ask(service: Service, task: str | None) -> None:
    """Send one text to whichever worker takes it; one that is loading refuses it."""
    body = orjson.dumps({"model": service.model, "input": TEXT} | ({"task": task} if task else {}))
    with suppress(OSError):
        connection = service.connect()
        connection.request("POST", "/v1/embeddings", body, HEADERS)
        connection.getresponse().read()
        connection.close()


def _workers_table(plan: Plan, command: str, found: dict[Precision, Figures]) -> list[str]:
    rows, verdicts = [], []
    for precision, figures in found.items():
        per_worker = (figures.several.anonymous - NUM_WORKERS * figures.copy.anonymous_bytes) / NUM_WORKERS
        rows.append(
            (
                precision, f"{figures.own.seconds:.2f}", f"{figures.copy.seconds:.2f}",
                f"{figures.speedup:.2f}", f"{figures.own.anonymous_bytes / 1e6:.0f}",
                f"{figures.copy.anonymous_bytes / 1e6:.0f}", _gb(figures.weights(figures.one, 1)),
                _gb(figures.weights(figures.several, NUM_WORKERS)), f"{figures.ratio:.3f}",
                _gb(figures.several.total), _gb(figures.tokenizer.anonymous_bytes),
                _gb(per_worker - figures.tokenizer.anonymous_bytes),
            )
        )  # fmt: skip
        ratio = f"target of {precision}: weights of {NUM_WORKERS} workers at most {MAX_RATIO} of one's"
        verdicts.append(f"{ratio}: {figures.ratio:.3f}, {tables.verdict(figures.ratio <= MAX_RATIO)}")
        speedup = f"target of {precision}: opened from its copy {MIN_SPEEDUP:.0f} times faster or more"
        verdicts.append(f"{speedup}: {figures.speedup:.2f}, {tables.verdict(figures.speedup >= MIN_SPEEDUP)}")
    title = (
        f"{plan.model.name}: weights in memory, random ones; best of {plan.num_runs} loads from a warm page "
        "cache; tokenizer and rest are of one worker"
    )
    return [*tables.aligned(title, command, HEADER, rows), *verdicts]


# --- tasks ------------------------------------------------------------------------------------------------


def _tasks_table(bundle: Path, cache: Path, tasks: Sequence[str], command: str) -> list[str]:
    """Open every task in one worker: what each has of its own, what all share, on the disk and in memory."""
    copies = _copies(bundle, cache)
    for variant in copies.manifest.variants:
        _copy(copies, variant.file)
    changed = {
        "CACHE_DIR": str(cache.resolve()),
        "MODELS_TO_LOAD": ",".join(f"{bundle.name}:{task}" for task in tasks),
    }
    with server.serve(bundle.parent, TASKS_PRECISION, bundle.name, changed) as service:
        for task in tasks:
            _ask(service, task)
        (worker,) = memory.tree(service.pid)[1:]
        shares = smaps.shares(worker)
    rows = []
    folder, apart = copies.folder.resolve() / TASKS_PRECISION, 0
    for task in tasks:
        graph = folder / f"{task}.onnx"
        shared = _shared_bytes(graph)
        resident = shares.by_file.get(graph.with_suffix(".data"), 0)
        apart += shared
        rows.append((task, _gb(graph.with_suffix(".data").stat().st_size), _gb(resident), _gb(shared)))
    weights = next(path for path in shares.by_file if path.name == "weights.data")
    rows.append(("shared by all", _gb(weights.stat().st_size), _gb(shares.by_file[weights]), _gb(apart)))
    title = (
        f"{bundle.name}: {TASKS_PRECISION}: all tasks in one worker; at the end what they would have apart"
    )
    return tables.aligned(title, command, ("task", "GB disk", "GB memory", "GB of the shared file"), rows)


def _shared_bytes(graph: Path) -> int:
    """Return the bytes that a graph's copy has in the file of the bundle."""
    places = (tensor.entries for tensor in wire.external_tensors(graph.read_bytes()))
    own = graph.with_suffix(".data").name
    return sum(int(place["length"]) for place in places if place["location"] != own)


def _copies(bundle: Path, cache: Path) -> Copies:
    return Copies(cache, bundle, contract.load(bundle), digest_of(bundle))


def _copy(copies: Copies, file: str) -> Path:
    begin = time.perf_counter()
    copy = copies.find(file)
    if copy is None:
        raise BenchError(f"no copy of {file} could be made in {copies.cache_dir}")
    print(f"{copies.manifest.name}: {file}: copied in {time.perf_counter() - begin:.1f} s", file=sys.stderr)
    return copy


def _gb(num_bytes: float) -> str:
    return f"{num_bytes / 1e9:.3f}"
