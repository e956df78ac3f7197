"""What `make bench-serve` runs: each part, at which precisions, beside what. Measures nothing itself."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

from service.manifest import Precision
from tests.bench import (
    beside,
    compressed,
    encoded,
    fairness,
    infinity_process,
    long_text,
    options,
    overload,
    overload_plot,
    server,
    texts,
    together,
    workers,
)
from tests.bench.options import Part


def _beside(chosen: argparse.Namespace) -> list[str]:
    """Measure what the service does beside infinity, which stays open throughout."""
    found, python = texts.load(chosen.xquad), infinity_process.interpreter(chosen.infinity_python)
    num_threads = server.tuned_settings().intra_op_threads
    figures: dict[Precision, beside.Figures] = {}
    with infinity_process.serve(python, num_threads) if python else nullcontext() as infinity:
        for precision in options.precisions(Part.BESIDE, chosen):
            with server.serve(chosen.models_dir, precision) as service:
                figures[precision] = beside.measure(service, infinity, found, chosen.runs, chosen.seconds)
        what = f"in turns with {infinity.description}" if infinity else "alone"
    title = f"closed loops, {what}; {found.source}"
    command = options.command(Part.BESIDE, chosen)
    return beside.table(figures, title, command) + beside.verdicts(figures)


def _overload(chosen: argparse.Namespace) -> list[str]:
    found = texts.load(chosen.xquad)
    figures = {
        precision: overload.measure(chosen.models_dir, precision, found, chosen.seconds)
        for precision in options.precisions(Part.OVERLOAD, chosen)
    }
    if chosen.plot:
        precision, first = next(iter(figures.items()))
        overload_plot.draw(first, precision, chosen.plot)
    command = options.command(Part.OVERLOAD, chosen)
    return overload.table(figures, found.source, command) + overload.verdicts(figures)


def _fairness(chosen: argparse.Namespace) -> list[str]:
    found, figures = texts.load(chosen.xquad), {}
    for precision in options.precisions(Part.FAIRNESS, chosen):
        with server.serve(chosen.models_dir, precision) as service:
            figures[precision] = fairness.measure(service, found, chosen.runs, chosen.seconds)
    return fairness.table(figures, found.source, options.command(Part.FAIRNESS, chosen))


def _together(chosen: argparse.Namespace) -> list[str]:
    found = texts.load(chosen.xquad)
    figures = {
        precision: together.measure(chosen.models_dir, precision, found, chosen.runs, chosen.seconds)
        for precision in options.precisions(Part.TOGETHER, chosen)
    }
    return together.table(figures, found.source, options.command(Part.TOGETHER, chosen))


def _long_text(chosen: argparse.Namespace) -> list[str]:
    wanted = options.precisions(Part.LONG_TEXT, chosen)
    figures = {precision: long_text.measure(precision, chosen.runs, chosen.seconds) for precision in wanted}
    return long_text.table(figures, options.command(Part.LONG_TEXT, chosen))


def _encoding(chosen: argparse.Namespace) -> list[str]:
    return encoded.table(encoded.measure(), options.command(Part.ENCODING, chosen))


def _compression(chosen: argparse.Namespace) -> list[str]:
    found, command = texts.load(chosen.xquad), options.command(Part.COMPRESSION, chosen)
    lines = compressed.levels_table(command)
    for precision in options.precisions(Part.COMPRESSION, chosen):
        with server.serve(chosen.models_dir, precision) as service:
            measured = compressed.measure(service, found, chosen.runs, chosen.seconds)
        lines += compressed.rates_table(measured, f"{precision}, {found.source}", command)
    return lines


def _workers(chosen: argparse.Namespace) -> list[str]:
    """Measure as many workers as `workers` names at each precision."""
    measured = [
        workers.measure(chosen.models_dir, precision, num_workers, chosen.seconds)
        for num_workers in workers.NUM_WORKERS
        for precision in options.precisions(Part.WORKERS, chosen)
    ]
    return workers.table(measured, options.command(Part.WORKERS, chosen))


PARTS: dict[Part, Callable[[argparse.Namespace], Any]] = {
    Part.BESIDE: _beside,
    Part.OVERLOAD: _overload,
    Part.FAIRNESS: _fairness,
    Part.TOGETHER: _together,
    Part.LONG_TEXT: _long_text,
    Part.ENCODING: _encoding,
    Part.COMPRESSION: _compression,
    Part.WORKERS: _workers,
}
