"""The command line of `make bench`: which parts run at which precisions, whose tables. Measures nothing."""

from __future__ import annotations

import argparse
import os
import platform
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, TypeVar

import onnxruntime

from convert.__main__ import main as convert
from service import config, host
from service.errors import ProjectError
from service.manifest import MANIFEST_FILE, Precision
from tests.bench import bulk, retrieval, single, texts
from tests.bench.errors import BenchError
from tests.bench.server import MODEL, TUNABLE, Service, serve
from tests.bench.texts import Texts

DEFAULT_MODELS_DIR = Path("onnx_models")
DEFAULT_XQUAD = Path("../shared/data/retrieval/xquad")
DEFAULT_RUNS, DEFAULT_SECONDS = 5, 8.0

Choice = TypeVar("Choice", bound=StrEnum)


class Part(StrEnum):
    """What can be measured."""

    RETRIEVAL = "retrieval"
    BULK = "bulk"
    SINGLE = "single"


@dataclass(frozen=True)
class Measurement:
    """How a part is measured on a service and how its figures by precision are laid out."""

    measure: Callable[[Service, Texts, argparse.Namespace], Any]
    table: Callable[[dict[Precision, Any], str, str], list[str]]


def _retrieval(service: Service, found: Texts, options: argparse.Namespace) -> retrieval.Figures:
    assert found.retrieval is not None  # _parts leaves this part out otherwise
    return retrieval.measure(service, found.retrieval)


def _bulk(service: Service, found: Texts, options: argparse.Namespace) -> bulk.Figures:
    return bulk.measure(service, found.passages, options.runs, options.seconds)


def _single(service: Service, found: Texts, options: argparse.Namespace) -> single.Figures:
    return single.measure(service, found.questions, options.seconds)


MEASUREMENTS = {
    Part.RETRIEVAL: Measurement(_retrieval, retrieval.table),
    Part.BULK: Measurement(_bulk, bulk.table),
    Part.SINGLE: Measurement(_single, single.table),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmarks; return 0 unless something is broken."""
    options = _parser().parse_args(arguments)
    try:
        _print_lines(_host_facts())
        _bake_if_absent(options.models_dir)
        _measure(options, texts.load(options.xquad))
    except (BenchError, ProjectError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench",
        description=f"Measure {MODEL} through a real gunicorn. {', '.join(TUNABLE)} may be set to vary it.",
    )
    parser.add_argument("--only", type=_several(Part), default=tuple(Part), metavar=",".join(Part))
    parser.add_argument(
        "--precision", type=_several(Precision), default=tuple(Precision), metavar=",".join(Precision)
    )
    parser.add_argument(
        "--models-dir", type=Path, default=DEFAULT_MODELS_DIR, help="where bundles are (%(default)s)"
    )
    parser.add_argument("--xquad", type=Path, default=DEFAULT_XQUAD, help="the retrieval set (%(default)s)")
    parser.add_argument(
        "--runs", type=_positive(int), default=DEFAULT_RUNS, help="pairs of bulk runs (%(default)s)"
    )
    parser.add_argument(
        "--seconds", type=_positive(float), default=DEFAULT_SECONDS, help="length of a run (%(default)s)"
    )
    return parser


def _several(choices: type[Choice]) -> Callable[[str], tuple[Choice, ...]]:
    def parse(value: str) -> tuple[Choice, ...]:
        try:
            return tuple(dict.fromkeys(choices(part.strip()) for part in value.split(",")))
        except ValueError:
            raise argparse.ArgumentTypeError(f"{value!r}: choose from {', '.join(choices)}") from None

    return parse


def _positive(kind: type[int] | type[float]) -> Callable[[str], float]:
    def parse(value: str) -> float:
        number = kind(value)
        if not 0 < number < float("inf"):
            raise argparse.ArgumentTypeError(f"{value} must be above 0")
        return number

    return parse


def _host_facts() -> list[str]:
    tuned = {name: os.environ[name] for name in TUNABLE if os.environ.get(name)}
    settings = config.from_environment(tuned)
    return [
        f"host: {host.num_usable_cores()} cores, {host.instruction_set()}, load {os.getloadavg()[0]:.2f}, "
        f"{platform.system()} {platform.machine()}, Python {platform.python_version()}, "
        f"onnxruntime {onnxruntime.__version__}",
        f"service: 1 worker, {settings.threads} threads, {settings.intra_op_threads} threads in a session, "
        f"{settings.max_batch_tokens} tokens in a run at most",
    ]


def _bake_if_absent(models_dir: Path) -> None:
    if (models_dir / MODEL / MANIFEST_FILE).exists():
        return
    print(f"{MODEL} is not in {models_dir}: baking it first")
    if convert([MODEL, "--out", str(models_dir)]):
        raise BenchError(f"{MODEL} could not be baked")


def _measure(options: argparse.Namespace, found: Texts) -> None:
    """Measure every part at every precision; print the tables, also of what was measured before an error."""
    parts = _parts(options.only, found)
    figures: dict[Part, dict[Precision, Any]] = {part: {} for part in parts}
    try:
        for precision in options.precision if parts else ():
            with serve(options.models_dir, precision) as service:
                for part in parts:
                    print(f"{precision}: {part}", file=sys.stderr)
                    figures[part][precision] = MEASUREMENTS[part].measure(service, found, options)
    finally:
        for part, by_precision in figures.items():
            if by_precision:
                command = _command(part, options)
                _print_lines(MEASUREMENTS[part].table(by_precision, found.source, command))


def _parts(wanted: Sequence[Part], found: Texts) -> list[Part]:
    """Leave out, with its reason printed, what cannot be measured here."""
    if found.retrieval is None and Part.RETRIEVAL in wanted:
        print(f"{Part.RETRIEVAL}: skipped, measured on XQuAD only; here are {found.source}")
    return [part for part in wanted if part != Part.RETRIEVAL or found.retrieval]


def _command(part: Part, options: argparse.Namespace) -> str:
    """Return the command that measures this part alone in the same way."""
    words = [f"{name}={os.environ[name]}" for name in TUNABLE if os.environ.get(name)]
    words += [
        ".venv/bin/python",
        "-m",
        "tests.bench",
        "--only",
        part,
        "--precision",
        ",".join(options.precision),
    ]
    if options.models_dir != DEFAULT_MODELS_DIR:
        words += ["--models-dir", str(options.models_dir)]
    if options.xquad != DEFAULT_XQUAD:
        words += ["--xquad", str(options.xquad)]
    if part == Part.BULK:
        words += ["--runs", str(options.runs)]
    if part != Part.RETRIEVAL:
        words += ["--seconds", f"{options.seconds:g}"]
    return shlex.join(words)


def _print_lines(lines: Sequence[str]) -> None:
    print("\n".join(lines), flush=True)


if __name__ == "__main__":
    sys.exit(main())
