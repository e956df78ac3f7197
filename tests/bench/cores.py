"""Processor time of process trees and of the whole host. Knows /proc, no service. Linux only."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeVar

from tests.bench.memory import PROC, tree

TICKS = os.sysconf("SC_CLK_TCK")
USER_AND_SYSTEM = slice(11, 13)  # of the fields after the name, which may have spaces
MAX_OTHER_CORES = 0.1  # taken by others on the host: what was measured beside more is measured again
BUSY = (0, 1, 2, 5, 6, 7)  # user, nice, system, irq, softirq, steal; not idle, not iowait

Result = TypeVar("Result")


@dataclass(frozen=True)
class Used:
    """Cores that were busy on average: with each process tree, and with others than these and this one."""

    trees: list[float]
    others: float


def used_while(pids: Sequence[int], action: Callable[[], Result]) -> tuple[Result, Used]:
    """Run `action` here; return its result and the cores used meanwhile."""
    before, begin = _spent(pids), time.perf_counter()
    result = action()
    seconds = time.perf_counter() - begin
    host, own, *trees = ((now - earlier) / seconds for now, earlier in zip(_spent(pids), before, strict=True))
    return result, Used(trees, max(0.0, host - own - sum(trees)))


def quietest(pids: Sequence[int], action: Callable[[], Result], max_attempts: int) -> tuple[Result, Used]:
    """Run `action` until others take few cores meanwhile; return its quietest result and the cores used."""
    found = used_while(pids, action)
    for _ in range(max_attempts - 1):
        if found[1].others <= MAX_OTHER_CORES:
            break
        found = min(found, used_while(pids, action), key=lambda each: each[1].others)
    return found


def _spent(pids: Sequence[int]) -> list[float]:
    return [_host_seconds(), time.process_time(), *map(_tree_seconds, pids)]


def _host_seconds() -> float:
    fields = (PROC / "stat").read_text().splitlines()[0].split()[1:]
    return sum(int(fields[column]) for column in BUSY) / TICKS


def _tree_seconds(pid: int) -> float:
    total = 0
    for member in tree(pid):
        with suppress(OSError):  # it has ended meanwhile
            line = (PROC / str(member) / "stat").read_text(errors="replace")
            total += sum(map(int, line.rpartition(")")[2].split()[USER_AND_SYSTEM]))
    return total / TICKS
