"""Bakes one checkpoint by both paths; compares vectors, speed and memory.

Run as python -m tests.exporter.both_paths DIR, where the export extra is installed. The checkpoint must be of
a kind with a graph of the converter's own.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from convert import any_model, exporting, running, texts
from convert.bake import BakeRequest, Verification, bake
from convert.recipe import Architecture
from service import inference
from service import manifest as contract
from service.manifest import Precision

PATHS = ("direct", "exported")
SHAPES = ((1, 32), (8, 128), (1, 512))
PRECISIONS = (Precision.FP32, Precision.INT8)
RUNS, SECONDS, MIN_TURNS = 3, 20, 20  # runs of a turn, of every shape


def made(source: Path, out: Path, path: str, precisions: tuple[Precision, ...]) -> None:
    """Bake the checkpoint by a path."""
    recipe, ready, _ = any_model.prepared(str(source), path, offline=True)
    if path == "exported":
        recipe = replace(recipe, architecture=Architecture.EXPORTED)
        ready = exporting.export(recipe, ready)
    request = BakeRequest(out=out, precisions=precisions, prepared=ready, verification=Verification.REQUIRE)
    bake(recipe, request)


class Timed:
    """A process that holds one graph and runs it when it is told to."""

    def __init__(self, out: Path, path: str, precision: Precision, shape: tuple[int, int]) -> None:
        command = [sys.executable, "-m", "tests.exporter.both_paths", "--run", str(out), path, precision]
        self._process = subprocess.Popen(
            [*command, *map(str, shape)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def run(self) -> tuple[float, float]:
        """Return the milliseconds of one run, and the megabytes of anonymous memory after it."""
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        milliseconds, megabytes = json.loads(self._process.stdout.readline())
        return milliseconds, megabytes

    def close(self) -> None:
        """End the process."""
        self._process.communicate()


def serve_runs(out: Path, path: str, precision: Precision, shape: tuple[int, int]) -> None:
    """Run one graph for every line of standard input and print what `Timed.run` returns."""
    manifest = replace(contract.load(out / path), max_tokens=512)
    variant = next(each for each in manifest.variants if each.precision == precision)
    model = running.open_variant(out / path, manifest, variant)
    tokens = np.concatenate([each.ids for each in model.tokenizer.encode(texts.evaluation(), 128)])
    rows, columns = shape
    inputs = inference.stacker(manifest)(list(np.resize(tokens, (rows, columns))))
    for _ in sys.stdin:
        begin = time.perf_counter()
        model.graphs.session(None).run(inputs, [manifest.outputs[0]])
        seconds = time.perf_counter() - begin
        lines = Path("/proc/self/status").read_text().splitlines()
        memory = next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))
        print(json.dumps([seconds * 1000, memory / 1000]), flush=True)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m tests.exporter.both_paths", description=__doc__)
    parser.add_argument("source", type=Path, nargs="?")
    parser.add_argument("--out", help="where the bundles stay; default: nowhere")
    parser.add_argument("--vectors-only", action="store_true", help="compare fp32 vectors, time nothing")
    parser.add_argument("--run", nargs=5, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        out, path, precision, *shape = options.run
        serve_runs(Path(out), path, Precision(precision), (int(shape[0]), int(shape[1])))
        return
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(options.out or scratch)
        for path in PATHS:
            made(options.source, out, path, PRECISIONS[: 1 if options.vectors_only else None])
        cosines = np.einsum("nd,nd->n", *(_vectors(out / path) for path in PATHS))
        print(f"fp32, direct against exported: worst cosine {cosines.min():.9f} over {len(cosines)} texts\n")
        if not options.vectors_only:
            _print(out)


def _print(out: Path) -> None:
    print("| precision | shape | direct | exported | direct to exported |")
    print("|---" * 5 + "|")
    for precision in PRECISIONS:
        for rows, columns in SHAPES:
            cells = " | ".join(_cells(out, precision, (rows, columns)))
            print(f"| `{precision}` | {rows}x{columns} | {cells} |")


def _vectors(folder: Path) -> np.ndarray:
    manifest = contract.load(folder)
    variant = next(each for each in manifest.variants if each.precision == Precision.FP32)
    model = running.open_variant(folder, manifest, variant)
    return running.answers(model, variant, texts.evaluation()).astype(np.float64)


def _cells(out: Path, precision: Precision, shape: tuple[int, int]) -> list[str]:
    """Measure both paths in turns: whatever else the host does, and however fast it is just now, is in both.

    The time of a turn is the fastest of its runs, for what else the host does only adds to it.
    """
    processes = [Timed(out, path, precision, shape) for path in PATHS]
    seconds: dict[str, list[float]] = {path: [] for path in PATHS}
    megabytes = dict.fromkeys(PATHS, 0.0)
    end = time.perf_counter() + SECONDS
    while time.perf_counter() < end or len(seconds[PATHS[0]]) < MIN_TURNS:
        for path, process in zip(PATHS, processes, strict=True):
            runs = [process.run() for _ in range(RUNS)]
            seconds[path].append(min(milliseconds for milliseconds, _ in runs))
            megabytes[path] = max(memory for _, memory in runs)
    for process in processes:
        process.close()
    times = [np.array(seconds[path]) for path in PATHS]
    cells = [
        f"{np.median(each):.2f} ms, {megabytes[path]:.0f} MB" for path, each in zip(PATHS, times, strict=True)
    ]
    return [*cells, f"{np.median(times[0] / times[1]):.3f}"]


if __name__ == "__main__":
    main()
