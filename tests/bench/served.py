"""One model at one precision through a real gunicorn: load, speed, memory; torch in turns. Knows no text.

One request at a time is sent. Files are read from a warm page cache. What torch is timed with is the forward
of the decoder alone; what the service is timed with is the whole request.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from service.manifest import Precision
from tests.bench import client, memory, models, server, tables, torch_process
from tests.bench.cases import Case
from tests.bench.torch_process import TorchProcess

SIZE_SECONDS = 60.0  # no further run of a size once they took this long
LONG_SECONDS = 300.0  # a first run that took longer warms up nothing: it is the measurement
LOAD_HEADER = ("precision", "GB disk", "load s", "GB anon", "GB RSS")
RUN_HEADER, TORCH_HEADER = ("seconds", "tokens/s", "GB added"), ("torch tokens/s", "to torch")
MAX_ADDED_BYTES = 4e9
LONG_TOKENS, LONG_RATIO, SHORT_RATIO = 2048, 1.8, 0.97  # to torch, from so many tokens on and below


@dataclass(frozen=True)
class Run:
    """The best time of a case, and the most anonymous memory meanwhile above that after the load."""

    case: Case
    seconds: float
    added_bytes: int
    torch_seconds: float | None = None

    @property
    def tokens_per_second(self) -> float:
        """Return the tokens that the graph computes in a second."""
        return self.case.total_tokens / self.seconds

    @property
    def ratio(self) -> float | None:
        """Return the speed as a multiple of torch's, which computes the same tokens."""
        return None if self.torch_seconds is None else self.torch_seconds / self.seconds


@dataclass(frozen=True)
class Figures:
    """What a precision takes on the disk and, once loaded, in memory; and its runs."""

    bundle_bytes: int
    load_seconds: float
    anonymous_bytes: int
    resident_bytes: int
    runs: list[Run]


Found = Mapping[Precision, Figures]


def measure(
    bundle: Path, precision: Precision, cases: Sequence[Case], num_runs: int, torch: TorchProcess | None
) -> Figures:
    """Start the service with one model and time every case, where torch takes it in turns with torch."""
    num_bytes = models.bytes_on_disk(bundle, precision)
    with server.serve(bundle.parent, precision, bundle.name) as service:
        pid = service.pid
        loaded, resident = memory.anonymous_bytes(pid), memory.resident_bytes(pid)
        figures = Figures(num_bytes, service.seconds_to_ready, loaded, resident, [])
        for case in cases:
            timed = [partial(client.send, service, case.request)]
            # Memory is sampled while the service warms up, not in the runs that are timed: a third thread
            # beside two that compute costs torch, whose threads spin, several times its time.
            warm_up, peak = memory.peak_while(pid, timed[0])
            first = [warm_up]
            if torch and case.total_tokens <= torch_process.MAX_TOKENS:
                timed.append(partial(torch.seconds, case.num_rows, case.num_tokens))
                first.append(timed[1]())
            best = _best_in_turns(timed, first, num_runs)
            run = Run(case, best[0], max(0, peak - loaded), *best[1:])
            figures.runs.append(run)
            ratio = f", {run.ratio:.2f} of torch's speed" if run.ratio else ""
            print(f"{bundle.name}: {precision}: {case.label}: {run.seconds:.3f} s{ratio}", file=sys.stderr)
        return figures


def table(title: str, command: str, case_name: str, found: Found) -> list[str]:
    """Lay out the runs of each precision, what is of its load in the first of them."""
    has_torch = any(run.torch_seconds is not None for figures in found.values() for run in figures.runs)
    rows: list[tables.Row] = []
    for precision, figures in found.items():
        load = [precision, f"{figures.bundle_bytes / 1e9:.3f}", f"{figures.load_seconds:.1f}"]
        load += [f"{figures.anonymous_bytes / 1e9:.2f}", f"{figures.resident_bytes / 1e9:.2f}"]
        for run in figures.runs:
            measured = [run.case.label, f"{run.seconds:.3f}", f"{run.tokens_per_second:,.0f}"]
            measured += [f"{run.added_bytes / 1e9:.2f}", *(_torch_cells(run) if has_torch else ())]
            rows.append(load + measured)
            load = [""] * len(load)
    header = (*LOAD_HEADER, case_name, *RUN_HEADER, *(TORCH_HEADER if has_torch else ()))
    return tables.aligned(title, command, header, rows)


def verdicts(found: Found) -> list[str]:
    """Compare fp32 with the targets of decoders."""
    runs = found[Precision.FP32].runs if Precision.FP32 in found else []
    lines = []
    for run in runs:
        if run.ratio is not None:
            least = LONG_RATIO if run.case.num_tokens >= LONG_TOKENS else SHORT_RATIO
            target = f"target of fp32, {run.case.label}: {least} times the speed of torch or more"
            lines.append(f"{target}: {run.ratio:.2f}, {tables.verdict(run.ratio >= least)}")
    if runs:
        most = max(run.added_bytes for run in runs)
        target = f"target of fp32: less than {MAX_ADDED_BYTES / 1e9:.0f} GB added"
        lines.append(f"{target}: {most / 1e9:.2f}, {tables.verdict(most < MAX_ADDED_BYTES)}")
    return lines


def _best_in_turns(
    timed: Sequence[Callable[[], float]], first: Sequence[float], num_runs: int
) -> list[float]:
    """Return the seconds of the fastest run of each; a first one that took long is not repeated."""
    taken = [[seconds] if seconds > LONG_SECONDS else [] for seconds in first]
    for _ in range(num_runs):
        for run, seconds in zip(timed, taken, strict=True):
            if sum(seconds) < SIZE_SECONDS:
                seconds.append(run())
    return [min(seconds) for seconds in taken]


def _torch_cells(run: Run) -> tuple[str, str]:
    if run.torch_seconds is None or run.ratio is None:
        return "-", "-"
    return f"{run.case.total_tokens / run.torch_seconds:,.0f}", f"{run.ratio:.2f}"
