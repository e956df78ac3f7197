"""Short texts while a long one is computed: on all threads, or on those of a lane. Knows lanes, no HTTP."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import partial
from pathlib import Path

import numpy as np

from convert.bake import BakeRequest, Verification, bake
from convert.catalog import RECIPES
from service import lanes
from service.graphs import ROUNDS_ACTIVATIONS
from service.lanes import Lane, Lanes
from service.manifest import Output, Precision
from service.scheduler import Scheduler
from service.session import Session, SessionSettings, pad, save_prepacked
from tests import xlmr
from tests.bench import cores, models, server, tables

# Layers as those of the default model, but for texts of 8,192 tokens.
SIZES = replace(xlmr.LONG, hidden=384, layers=6, heads=12, feed_forward=1536)
SHORT_TOKENS, LONG_TOKENS = 14, 8000
NUM_CLIENTS = (1, 16)
WARM_UPS, LEAD_SECONDS, MAX_ATTEMPTS = 50, 0.2, 4
HEADER = ("precision", "clients", "beside", "short/s", "p50 ms", "p95 ms", "long text s", "others' cores")


class Beside(StrEnum):
    """What is computed while short texts are."""

    NOTHING = "nothing"
    ON_ALL_THREADS = "a long text on all threads"
    ON_A_LANE = "a long text on a lane's"


@dataclass(frozen=True)
class Turn:
    """How short texts fared, and what a long one took."""

    per_second: float
    p50: float  # milliseconds
    p95: float
    long_seconds: float
    other_cores: float = 0.0


class Fixed(Lanes):
    """Lanes on which a long text has the same threads whatever else waits."""

    has_lane = False

    def begin(self, num_tokens: int, *, has_narrow: bool, is_last: bool) -> Lane:
        """Let it have waited for narrow runs, or not."""
        self._has_long_waited = self.has_lane
        is_long = num_tokens > self._max_tokens
        return super().begin(num_tokens, has_narrow=has_narrow, is_last=is_last and not is_long)


Figures = dict[tuple[int, Beside], list[Turn]]


def measure(precision: Precision, num_rounds: int, seconds: float) -> Figures:
    """Let one client and several send short texts beside each, round by round."""
    found: Figures = {}
    with models.work_folder(None) as folder:
        session = _session(Path(folder), precision)
        for number in range(1, num_rounds + 1):
            print(f"{precision}: long text {number}/{num_rounds}", file=sys.stderr)
            for num_clients in NUM_CLIENTS:
                for beside in Beside:
                    turn, used = cores.quietest(
                        [], partial(_turn, session, num_clients, beside, seconds), MAX_ATTEMPTS
                    )
                    found.setdefault((num_clients, beside), []).append(replace(turn, other_cores=used.others))
    return found


def table(found: Mapping[Precision, Figures], command: str) -> list[str]:
    """Lay out the medians of each precision."""
    rows = []
    for precision, figures in found.items():
        for (num_clients, beside), turns in figures.items():
            values = [statistics.median(values) for values in zip(*map(_values, turns), strict=True)]
            rows.append(
                (
                    precision, str(num_clients), beside, f"{values[0]:,.0f}", f"{values[1]:.1f}",
                    f"{values[2]:.1f}", f"{values[3]:.2f}" if values[3] else "",
                    f"{max(turn.other_cores for turn in turns):.2f}",
                )
            )  # fmt: skip
    title = (
        f"texts of {SHORT_TOKENS} tokens, each client's one after the other, beside one of {LONG_TOKENS:,} "
        f"after the other; {SIZES.layers} layers of {SIZES.hidden}, random weights, without HTTP"
    )
    return tables.aligned(title, command, HEADER, rows)


def _values(turn: Turn) -> tuple[float, ...]:
    return turn.per_second, turn.p50, turn.p95, turn.long_seconds


def _session(work: Path, precision: Precision) -> Session:
    """Bake the encoder and open its copy, as a service with all cores does."""
    source = xlmr.write_bge_m3(work / ".checkpoints" / xlmr.BGE_M3, sizes=SIZES)
    request = BakeRequest(
        out=work, source=str(source), precisions=(precision,), verification=Verification.SKIP
    )
    bake(RECIPES[xlmr.BGE_M3], request)
    num_threads = server.tuned_settings().intra_op_threads
    copy = work / "copy" / "model.onnx"
    copy.parent.mkdir()
    save_prepacked(work / xlmr.BGE_M3 / precision / "model.onnx", copy, "model.data", num_threads)
    settings = SessionSettings(
        num_threads, may_pad=precision not in ROUNDS_ACTIVATIONS, num_lanes=lanes.count(num_threads)
    )
    session = Session(copy, settings, is_prepacked=True)
    for run in (session.run, session.run_narrow):
        for _ in range(WARM_UPS):
            run(pad([np.full(SHORT_TOKENS, 7)]), [Output.POOLED])
    return session


def _turn(session: Session, num_clients: int, beside: Beside, seconds: float) -> Turn:
    settings = server.tuned_settings()
    num_lanes = lanes.count(settings.intra_op_threads)
    scheduler = Scheduler(settings.max_batch_tokens, num_lanes)
    scheduler._lanes = fixed = Fixed(settings.max_batch_tokens, num_lanes)
    fixed.has_lane = beside == Beside.ON_A_LANE
    end = time.perf_counter() + LEAD_SECONDS + seconds

    def loop(num_tokens: int) -> list[float]:
        """Send texts of a length one after the other; return the seconds of each."""
        taken = []
        while (begin := time.perf_counter()) < end:
            scheduler.submit(session, [np.full(num_tokens, 7)], [Output.POOLED], pad)
            taken.append(time.perf_counter() - begin)
        return taken

    with ThreadPoolExecutor(num_clients + 1) as pool:
        clients = [pool.submit(loop, SHORT_TOKENS) for _ in range(num_clients)]
        time.sleep(LEAD_SECONDS)  # the short ones are there first
        longs = [] if beside == Beside.NOTHING else pool.submit(loop, LONG_TOKENS).result()
        waits = [wait * 1000 for client in clients for wait in client.result()]
    p50, p95 = (float(value) for value in np.percentile(waits, (50, 95)))
    rate = len(waits) / (LEAD_SECONDS + seconds)
    return Turn(rate, p50, p95, statistics.median(longs) if longs else 0.0)
