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
ROUNDS, SECONDS = 4, 1.5  # of every shape, in turns


def made(source: Path, out: Path, path: str) -> None:
    """Bake the checkpoint by a path."""
    recipe, ready, _ = any_model.prepared(str(source), path, offline=True)
    if path == "exported":
        recipe = replace(recipe, architecture=Architecture.EXPORTED)
        ready = exporting.export(recipe, ready)
    request = BakeRequest(out=out, precisions=PRECISIONS, prepared=ready, verification=Verification.REQUIRE)
    bake(recipe, request)


def measured(out: Path, path: str, precision: Precision, shape: tuple[int, int]) -> tuple[float, float]:
    """Return milliseconds of the fastest run, and the megabytes of anonymous memory at the end."""
    command = [sys.executable, "-m", "tests.exporter.both_paths", "--run", str(out), path, precision]
    ended = subprocess.run([*command, *map(str, shape)], check=True, capture_output=True, text=True)
    milliseconds, megabytes = json.loads(ended.stdout.splitlines()[-1])
    return milliseconds, megabytes


def run(out: Path, path: str, precision: Precision, shape: tuple[int, int]) -> None:
    """Time one graph in a process of its own and print what `measured` returns."""
    manifest = replace(contract.load(out / path), max_tokens=512)
    variant = next(each for each in manifest.variants if each.precision == precision)
    model = running.open_variant(out / path, manifest, variant)
    tokens = np.concatenate([each.ids for each in model.tokenizer.encode(texts.evaluation(), 128)])
    rows, columns = shape
    inputs = inference.stacker(manifest)(list(np.resize(tokens, (rows, columns))))
    best, end = float("inf"), time.perf_counter() + SECONDS
    while time.perf_counter() < end:
        begin = time.perf_counter()
        model.graphs.session(None).run(inputs, [manifest.outputs[0]])
        best = min(best, time.perf_counter() - begin)
    lines = Path("/proc/self/status").read_text().splitlines()
    memory = next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))
    print(json.dumps([best * 1000, memory / 1000]))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m tests.exporter.both_paths", description=__doc__)
    parser.add_argument("source", type=Path, nargs="?")
    parser.add_argument("--out", help="where the bundles stay; default: nowhere")
    parser.add_argument("--run", nargs=5, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        out, path, precision, *shape = options.run
        run(Path(out), path, Precision(precision), (int(shape[0]), int(shape[1])))
        return
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(options.out or scratch)
        for path in PATHS:
            made(options.source, out, path)
        _print(out)


def _print(out: Path) -> None:
    cosines = np.einsum("nd,nd->n", *(_vectors(out / path) for path in PATHS))
    print(f"fp32, direct against exported: worst cosine {cosines.min():.9f} over {len(cosines)} texts\n")
    print("| graph | " + " | ".join(f"{rows}x{columns}" for rows, columns in SHAPES) + " |")
    print("|---" * (len(SHAPES) + 1) + "|")
    cells = {
        (precision, shape): _cells(out, precision, shape) for precision in PRECISIONS for shape in SHAPES
    }
    for precision in PRECISIONS:
        for path in PATHS:
            row = " | ".join(cells[precision, shape][path] for shape in SHAPES)
            print(f"| {path}, {precision} | {row} |")


def _vectors(folder: Path) -> np.ndarray:
    manifest = contract.load(folder)
    variant = next(each for each in manifest.variants if each.precision == Precision.FP32)
    model = running.open_variant(folder, manifest, variant)
    return running.answers(model, variant, texts.evaluation()).astype(np.float64)


def _cells(out: Path, precision: Precision, shape: tuple[int, int]) -> dict[str, str]:
    """Measure both paths in turns, so that whatever else the host does slows both."""
    rounds = [{path: measured(out, path, precision, shape) for path in PATHS} for _ in range(ROUNDS)]
    cells = {}
    for path in PATHS:
        best = min(found[path][0] for found in rounds)
        memory = max(found[path][1] for found in rounds)
        cells[path] = f"{best:.2f} ms, {memory:.0f} MB"
    return cells


if __name__ == "__main__":
    main()
