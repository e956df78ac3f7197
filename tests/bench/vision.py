"""Images through jina-embeddings-v4 at its real widths and few of its layers: speed beside torch, memory.

The checkpoint has 2 of 36 text layers and 8 of 32 vision blocks, one of which attends over the whole image
(4 of the 32 do). What all layers would take is computed from the parts. Torch is timed from the files' bytes
to the vectors, the service from the request to the answer. A service is started for each request, so that its
memory is that of this request alone. The first image opens the tower: idle means after a small one.
"""

from __future__ import annotations

import base64
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from service.manifest import Precision
from tests.bench import (
    client,
    full_size_v4,
    image_cases,
    memory,
    models,
    server,
    tables,
    torch_process,
    vision_parts,
)
from tests.bench.full_size import Plan
from tests.bench.full_size_v4 import JINA_V4, Sizes
from tests.bench.image_cases import ImageCase
from tests.bench.models import Model
from tests.bench.torch_process import TorchProcess
from tests.bench.vision_parts import TEXT, TOWER, Seconds

TASK = "text-matching"  # the one that torch_vision merges
FEW = JINA_V4.few(num_layers=2, num_blocks=full_size_v4.FULL_EVERY)
SMALL = (56, 56)
MIN_COSINE = 0.9999  # of fp32 to torch
HEADER = ("images", "resized", "open s", "GB loaded", "GB idle", "GB added", "seconds", "images/s")
TORCH_HEADER = ("torch images/s", "to torch", "cosine")


@dataclass(frozen=True)
class Run:
    """The best time of a case and torch's; anonymous memory after the load, when idle, and at most above."""

    case: ImageCase
    seconds: float
    open_seconds: float  # of the small image that opens the tower
    loaded_bytes: int
    idle_bytes: int
    added_bytes: int
    torch: Seconds | None = None
    cosine: float | None = None  # the lowest to torch's vectors


def model(sizes: Sizes = FEW) -> Model:
    """Return the model that is measured."""
    write = partial(full_size_v4.write, sizes=sizes, adapters=(TASK,))
    return Model(full_size_v4.NAME, sizes.num_parameters((TASK,)), write, has_adapters=True)


def measure(plan: Plan, command: str, sizes: Sizes = FEW) -> None:
    """Measure a checkpoint of `sizes` at every precision and print the tables."""
    torch, name = None, plan.model.name
    with ExitStack() as opened:
        work = Path(opened.enter_context(models.work_folder(plan.work_dir)))
        depth = f"{sizes.text.layers}-layers-{sizes.blocks}-blocks"
        source = models.checkpoint(plan.model, work / f"{name}-{depth}", plan.tokenizer)
        assert source is not None  # it is written here
        baked = models.bake(plan.model, source, plan.precisions, plan.tasks, work / models.BUNDLES)
        bundle = work / models.BUNDLES / name
        if plan.torch_python:
            num_threads = server.tuned_settings().intra_op_threads
            made = torch_process.opened(plan.torch_python, source, num_threads, torch_process.VISION_MODULE)
            torch = opened.enter_context(made)
        cost = f"bake {baked.seconds:.1f} s, peak {baked.peak_anonymous_bytes / 1e9:.2f} GB anonymous"
        compared = f"in turns with {torch.description}" if torch else ""
        limits = f"best of {plan.num_runs} runs"
        title = "; ".join(filter(None, (f"{name} ({depth.replace('-', ' ')}): {cost}", limits, compared)))
        for precision in plan.precisions:
            runs = _measure(bundle, precision, plan.num_runs, torch)
            lines = table(f"{title}; {precision}", command, runs) + verdicts(precision, runs)
            _print(lines)  # before what follows can fail
            _print(_parts_table(bundle, precision, plan.num_runs, runs, sizes))


def _measure(bundle: Path, precision: Precision, num_runs: int, torch: TorchProcess | None) -> list[Run]:
    """Start the service for every case and time it, in turns with torch where it is compared."""
    small, runs = image_cases.of_sides([SMALL], bundle, TASK, is_compared=False), []
    for case in image_cases.compared_and_largest(bundle, TASK):
        with server.serve(bundle.parent, precision, bundle.name) as service:
            loaded = memory.anonymous_bytes(service.pid)
            open_seconds = client.send(service, small.request)
            idle = memory.anonymous_bytes(service.pid)
            send = partial(client.exchange, service, case.request)
            # Sampled while the service warms up, not in the runs that are timed, as in tests.bench.served.
            (_, answer), peak = memory.peak_while(service.pid, send)
            answers = [_ask(torch, case)] if torch and case.is_compared else []
            seconds = []
            for _ in range(num_runs):
                seconds.append(send()[0])
                answers += [_ask(torch, case)] if torch and case.is_compared else []
        best = min(answers[1:], key=lambda found: float(found["seconds"]), default=None)
        run = Run(
            case,
            min(seconds),
            open_seconds,
            loaded,
            idle,
            max(0, peak - idle),
            Seconds(best["seconds"], best[TOWER], best[TEXT]) if best else None,
            _lowest_cosine(answer, best) if best else None,
        )
        runs.append(run)
        compared = f", torch {run.torch.total:.3f} s" if run.torch else ""
        print(f"{bundle.name}: {precision}: {case.label}: {run.seconds:.3f} s{compared}", file=sys.stderr)
    return runs


def _ask(torch: TorchProcess, case: ImageCase) -> dict[str, Any]:
    return torch.ask({"images": [base64.b64encode(file).decode() for file in case.files]})


def _lowest_cosine(answer: dict[str, Any], found: dict[str, Any]) -> float:
    """Return the lowest cosine of the service's vectors, of length 1 as all of them, to torch's."""
    ours = np.array([item["embedding"] for item in answer["data"]])
    return float((ours * np.array(found["vectors"])).sum(axis=1).min())


def table(title: str, command: str, runs: Sequence[Run]) -> list[str]:
    """Lay out the runs of a precision."""
    has_torch = any(run.torch for run in runs)
    rows: list[tables.Row] = []
    for run in runs:
        row = [run.case.label, run.case.resized, f"{run.open_seconds:.2f}"]
        row += [f"{size / 1e9:.2f}" for size in (run.loaded_bytes, run.idle_bytes, run.added_bytes)]
        row += [f"{run.seconds:.3f}", f"{run.case.num_images / run.seconds:.3f}"]
        rows.append(row + (_torch_cells(run) if has_torch else []))
    return tables.aligned(title, command, (*HEADER, *(TORCH_HEADER if has_torch else ())), rows)


def verdicts(precision: Precision, runs: Sequence[Run]) -> list[str]:
    """Tell whether fp32 and torch computed the same."""
    cosines = [run.cosine for run in runs if run.cosine is not None]
    if precision != Precision.FP32 or not cosines:
        return []
    target = f"target of fp32: vectors as torch's, cosine of {MIN_COSINE} or more"
    return [f"{target}: {min(cosines):.7f}, {tables.verdict(min(cosines) >= MIN_COSINE)}"]


def _torch_cells(run: Run) -> list[str]:
    if run.torch is None or run.cosine is None:
        return ["-"] * len(TORCH_HEADER)
    rate = f"{run.case.num_images / run.torch.total:.3f}"
    return [rate, f"{run.torch.total / run.seconds:.2f}", f"{run.cosine:.6f}"]


def _parts_table(
    bundle: Path, precision: Precision, num_runs: int, runs: Sequence[Run], sizes: Sizes
) -> list[str]:
    """Time the graphs of the cases that are compared, and lay out where the time of each goes."""
    compared = [run for run in runs if run.case.is_compared]
    bare = vision_parts.time_bare(bundle, precision, num_runs, [run.case for run in compared], TASK)
    rows: list[tables.Row] = []
    for run, parts in zip(compared, bare, strict=True):
        own = Seconds(run.seconds, parts[TOWER], parts[TEXT])
        rows.append(vision_parts.row("service", own, sizes, run.case))
        if run.torch:
            rows.append(vision_parts.row("torch", run.torch, sizes, run.case))
    full = f"{JINA_V4.text.layers} text layers and {JINA_V4.blocks} vision blocks"
    title = f"parts of these requests at {precision}; *: extrapolated to {full}"
    return tables.aligned(title, "the same command", vision_parts.HEADER, rows)


def _print(lines: Sequence[str]) -> None:
    print("\n".join(lines), flush=True)
