"""Runs a graph in a process that treats its memory in one way: python -m tests.bench.arena_process GRAPH WAY.

Two sessions of one thread compute beside each other, as the service's lanes do. Each line of JSON asks for a
load of varied lengths, of which the memory is told, or for one size over and over, of which the speed is.
"""

from __future__ import annotations

import ctypes
import json
import math
import os
import random
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from service import providers, session
from service.batching import UNPADDED_FROM_TOKENS, plan
from service.session import SessionSettings
from tests.bench import memory

NUM_LANES, MAX_BATCH_TOKENS, SEED = 2, 1024, 0
NUM_TEXTS = (1, 1, 2, 4, 16, 64)  # of the requests of a load
NUM_IDS, FIRST_ID = 1000, 5  # token ids that every vocabulary has
MMAP_THRESHOLD, MEBIBYTE = -3, 1 << 20  # glibc's number for it in mallopt
STEPS = 8  # bucket bounds from one power of two to the next
MIN_STEP = 16


class Way(StrEnum):
    """What becomes of the memory of a run that has ended."""

    KEPT = "arena keeps it"
    PLANNED = "arena keeps it, values planned onto dead ones"
    BACK_IF_LONG = "given back after long runs"  # as the service does
    BACK = "given back after every run"
    NO_ARENA = "no arena"
    NO_ARENA_MAPPED = "no arena, 1 MiB and more mapped"
    SHARED = "one arena for both sessions"
    SHARED_EXACT = "one arena, no doubling"
    BUCKETS = "arena keeps it, lengths rounded up"


class Contender:
    """Two sessions of a graph, each for a thread of its own."""

    def __init__(self, graph: Path, way: Way) -> None:
        """Open the graph twice."""
        self._way, self._shrinking = way, onnxruntime.RunOptions()
        self._shrinking.add_run_config_entry(session.SHRINK_ARENA, session.CPU_ARENA)
        _prepare(way)
        self._sessions = [_open(graph, way) for _ in range(NUM_LANES)]
        session.give_memory_back()

    def load(self, limit: int, num_runs: int, may_pad: bool) -> dict[str, float]:
        """Compute texts of up to `limit` tokens; return what they left in memory, and the most there was."""
        before, runs, guard = _anonymous(), iter(_runs(limit, num_runs, may_pad=may_pad)), threading.Lock()

        def drain(lane: int) -> None:
            while True:
                with guard:
                    lengths = next(runs, None)
                if lengths is None:
                    return
                self._run(lane, *self._inputs(lengths))

        _, most = memory.peak_while(os.getpid(), lambda: _beside_each_other(drain))
        return {"kept": _anonymous() - before, "most": most - before}

    def speed(self, num_texts: int, num_tokens: int, seconds: float) -> dict[str, float]:
        """Return the tokens that both lanes compute in a second."""
        counts, begin = [0] * NUM_LANES, time.perf_counter()

        def repeat(lane: int) -> None:
            inputs = self._inputs([num_tokens] * num_texts)
            while not counts[lane] or time.perf_counter() < begin + seconds:
                self._run(lane, *inputs)
                counts[lane] += 1

        _beside_each_other(repeat)
        return {"rate": sum(counts) * num_texts * num_tokens / (time.perf_counter() - begin)}

    def _inputs(self, lengths: Sequence[int]) -> tuple[dict[str, Any], bool]:
        """Return the inputs of one run, and whether it is a long one."""
        width = _rounded(max(lengths)) if self._way == Way.BUCKETS else max(lengths)
        mask = (np.arange(width) < np.array(lengths)[:, None]).astype(np.int64)
        ids = np.random.default_rng(SEED).integers(FIRST_ID, NUM_IDS, mask.shape) * mask
        return {"input_ids": ids, "attention_mask": mask}, ids.size > MAX_BATCH_TOKENS

    def _run(self, lane: int, inputs: dict[str, Any], is_long: bool) -> None:
        native, gives_back = self._sessions[lane], self._way == Way.BACK
        gives_back |= self._way == Way.BACK_IF_LONG and is_long
        native.run([native.get_outputs()[0].name], inputs, self._shrinking if gives_back else None)
        if gives_back:
            session.give_memory_back()


def _prepare(way: Way) -> None:
    """Set up what a process has once."""
    if way == Way.NO_ARENA_MAPPED:
        ctypes.CDLL(None).mallopt(MMAP_THRESHOLD, MEBIBYTE)
    if way in (Way.SHARED, Way.SHARED_EXACT):
        place = onnxruntime.OrtMemoryInfo(
            "Cpu", onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, onnxruntime.OrtMemType.DEFAULT
        )
        config = {"arena_extend_strategy": int(way == Way.SHARED_EXACT), "max_mem": 0}
        onnxruntime.create_and_register_allocator(place, onnxruntime.OrtArenaCfg(config))


def _open(graph: Path, way: Way) -> onnxruntime.InferenceSession:
    options, backend = session.library_options(SessionSettings(num_threads=1)), providers.backend()
    options.enable_mem_reuse = way == Way.PLANNED
    options.enable_cpu_mem_arena = way not in (Way.NO_ARENA, Way.NO_ARENA_MAPPED)
    if way in (Way.SHARED, Way.SHARED_EXACT):
        options.add_session_config_entry("session.use_env_allocators", "1")
    return onnxruntime.InferenceSession(
        str(graph),
        options,
        providers=backend.providers,
        disabled_optimizers=backend.disabled_optimizers,
    )


def _runs(limit: int, num_runs: int, *, may_pad: bool) -> list[list[int]]:
    """Return the lengths of runs as the service plans them: as many of 10 as of 100 or 1,000 tokens.

    In the middle both lanes have a text of the full length.
    """
    draw, runs = random.Random(SEED), list[list[int]]()
    while len(runs) < num_runs:
        lengths = [round(math.exp(draw.uniform(0, math.log(limit)))) for _ in range(draw.choice(NUM_TEXTS))]
        groups = plan(lengths, MAX_BATCH_TOKENS, may_pad=may_pad)
        runs += [[lengths[index] for index in group] for group in groups]
    draw.shuffle(runs)
    middle = num_runs // 2
    runs[middle : middle + NUM_LANES] = [[limit]] * NUM_LANES
    return runs[:num_runs]


def _rounded(length: int) -> int:
    """Return the bound of a length's bucket; long texts are never padded."""
    step = max(MIN_STEP, 2 ** length.bit_length() // (2 * STEPS))
    return length if length >= UNPADDED_FROM_TOKENS else -(-length // step) * step


def _beside_each_other(action: Callable[[int], None]) -> None:
    with ThreadPoolExecutor(NUM_LANES) as lanes:
        list(lanes.map(action, range(NUM_LANES)))


def _anonymous() -> int:
    return memory.own_bytes(memory.ANONYMOUS)


def _answers(questions: Iterator[str], contender: Contender) -> Iterator[dict[str, float]]:
    yield {}  # ready
    for line in questions:
        question = json.loads(line)
        yield contender.load(**question["load"]) if "load" in question else contender.speed(**question)


if __name__ == "__main__":
    for answer in _answers(sys.stdin, Contender(Path(sys.argv[1]), Way(sys.argv[2]))):
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()
