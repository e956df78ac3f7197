"""What `make bench` runs: which parts at which precisions, whose tables. Measures nothing itself."""

from __future__ import annotations

import argparse
import os
import platform
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import onnxruntime

from service import host
from service.errors import ProjectError
from service.manifest import Precision
from tests.bench import (
    bulk,
    options,
    parts,
    retrieval,
    server,
    serving,
    single,
    texts,
)
from tests.bench.errors import BenchError
from tests.bench.options import Part
from tests.bench.server import Service, serve
from tests.bench.texts import Texts


@dataclass(frozen=True)
class Measurement:
    """How a part is measured on a service and how its figures by precision are laid out."""

    measure: Callable[[Service, Texts, argparse.Namespace], Any]
    table: Callable[[dict[Precision, Any], str, str], list[str]]


def _retrieval(service: Service, found: Texts, chosen: argparse.Namespace) -> retrieval.Figures:
    assert found.retrieval is not None  # _parts leaves this part out otherwise
    return retrieval.measure(service, found.retrieval)


def _bulk(service: Service, found: Texts, chosen: argparse.Namespace) -> bulk.Figures:
    return bulk.measure(service, found.passages, chosen.runs, chosen.seconds)


def _single(service: Service, found: Texts, chosen: argparse.Namespace) -> single.Figures:
    return single.measure(service, found.questions, chosen.seconds)


MEASUREMENTS = {
    Part.RETRIEVAL: Measurement(_retrieval, retrieval.table),
    Part.BULK: Measurement(_bulk, bulk.table),
    Part.SINGLE: Measurement(_single, single.table),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmarks; return 0 unless something is broken."""
    chosen = options.parser().parse_args(arguments)
    try:
        parts.print_lines(_host_facts())
        if {*chosen.only} & {*MEASUREMENTS, *serving.PARTS}:
            parts.bake_if_absent(chosen.models_dir)
        if {*chosen.only} & {*MEASUREMENTS}:
            _measure(chosen, texts.load(chosen.xquad))
        for part in chosen.only:
            if part in serving.PARTS:
                parts.print_lines(serving.PARTS[part](chosen))
            elif part in parts.PARTS:
                parts.PARTS[part](chosen)
    except (BenchError, ProjectError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0


def _host_facts() -> list[str]:
    settings = server.tuned_settings()
    return [
        f"host: {host.num_usable_cores()} cores, {host.instruction_set()}, load {os.getloadavg()[0]:.2f}, "
        f"{platform.system()} {platform.machine()}, Python {platform.python_version()}, "
        f"onnxruntime {onnxruntime.__version__}",
        f"service: 1 worker, {settings.threads} threads, {settings.intra_op_threads} threads in a session, "
        f"{settings.max_batch_tokens} tokens in a run at most",
    ]


def _measure(chosen: argparse.Namespace, found: Texts) -> None:
    """Measure every part at every precision; print the tables, also of what was measured before an error."""
    wanted = _parts(chosen.only, found)
    figures: dict[Part, dict[Precision, Any]] = {part: {} for part in wanted}
    try:
        for precision in options.precisions(wanted[0], chosen) if wanted else ():
            with serve(chosen.models_dir, precision) as service:
                for part in wanted:
                    print(f"{precision}: {part}", file=sys.stderr)
                    figures[part][precision] = MEASUREMENTS[part].measure(service, found, chosen)
    finally:
        for part, by_precision in figures.items():
            if by_precision:
                command = options.command(part, chosen)
                parts.print_lines(MEASUREMENTS[part].table(by_precision, found.source, command))


def _parts(wanted: Sequence[Part], found: Texts) -> list[Part]:
    """Leave out, with its reason printed, what cannot be measured here."""
    if found.retrieval is None and Part.RETRIEVAL in wanted:
        print(f"{Part.RETRIEVAL}: skipped, measured on XQuAD only; here are {found.source}")
    return [part for part in wanted if part in MEASUREMENTS and (part != Part.RETRIEVAL or found.retrieval)]


if __name__ == "__main__":
    sys.exit(main())
