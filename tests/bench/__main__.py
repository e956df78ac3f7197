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
from tests.bench import bulk, encoders, full_size, retrieval, single, texts
from tests.bench.errors import BenchError
from tests.bench.server import MODEL, TUNABLE, Service, serve
from tests.bench.texts import Texts

DEFAULT_MODELS_DIR = Path("onnx_models")
DEFAULT_XQUAD = Path("../shared/data/retrieval/xquad")
DEFAULT_RUNS, DEFAULT_SECONDS = 5, 8.0
DEFAULT_ENCODERS = (encoders.Model.JINA_V3, encoders.Model.BGE_M3, encoders.Model.BGE_RERANKER)
DEFAULT_ENCODER_PRECISIONS = (Precision.FP32, Precision.INT8)
DEFAULT_SIZES, DEFAULT_TASKS = "1x32,8x128,1x2048,1x8000", "text-matching"

Choice = TypeVar("Choice", bound=StrEnum)


class Part(StrEnum):
    """What can be measured."""

    RETRIEVAL = "retrieval"
    BULK = "bulk"
    SINGLE = "single"
    ENCODERS = "encoders"  # of full size: minutes and gigabytes, only if asked for


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
        if any(part in MEASUREMENTS for part in options.only):
            _bake_if_absent(options.models_dir)
            _measure(options, texts.load(options.xquad))
        if Part.ENCODERS in options.only:
            _measure_encoders(options)
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
    add = parser.add_argument
    add("--only", type=_several(Part), default=tuple(MEASUREMENTS), metavar=",".join(Part))
    add("--precision", type=_several(Precision), metavar=",".join(Precision), help="all; encoders: fp32,int8")
    add("--models-dir", type=Path, default=DEFAULT_MODELS_DIR, help="where bundles are (%(default)s)")
    add("--xquad", type=Path, default=DEFAULT_XQUAD, help="the retrieval set (%(default)s)")
    add("--runs", type=_positive(int), default=DEFAULT_RUNS, help="runs of bulk and encoders (%(default)s)")
    add("--seconds", type=_positive(float), default=DEFAULT_SECONDS, help="length of a run (%(default)s)")
    _add_encoder_options(parser.add_argument_group(Part.ENCODERS))
    return parser


def _add_encoder_options(group: argparse._ArgumentGroup) -> None:
    add, models = group.add_argument, _several(encoders.Model)
    add("--encoder-models", type=models, default=DEFAULT_ENCODERS, metavar=",".join(encoders.Model))
    add("--sizes", type=_sizes, default=DEFAULT_SIZES, help="texts x tokens of the requests (%(default)s)")
    add("--tasks", default=DEFAULT_TASKS, help="of jina-embeddings-v3; the first is measured (%(default)s)")
    add("--work-dir", type=Path, help="where checkpoints and bundles stay (not kept)")
    add("--xlmr-tokenizer", type=Path, default=full_size.DEFAULT_TOKENIZER, help="%(default)s")


def _sizes(value: str) -> tuple[encoders.Size, ...]:
    try:
        return tuple(encoders.Size(*map(int, part.split("x"))) for part in value.split(","))
    except (TypeError, ValueError) as error:
        raise argparse.ArgumentTypeError(f"{value!r}: not as {DEFAULT_SIZES} ({error})") from None


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
        for precision in _precisions(options) if parts else ():
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
    return [part for part in wanted if part in MEASUREMENTS and (part != Part.RETRIEVAL or found.retrieval)]


def _precisions(options: argparse.Namespace) -> tuple[Precision, ...]:
    return options.precision or tuple(Precision)


def _measure_encoders(options: argparse.Namespace) -> None:
    """Measure every model at every precision; print its table, also of what was measured before an error."""
    precisions = options.precision or DEFAULT_ENCODER_PRECISIONS
    tasks = tuple(options.tasks.split(","))
    plan = encoders.Plan(precisions, options.sizes, tasks, options.runs, options.xlmr_tokenizer)
    for model in options.encoder_models:
        with encoders.work_folder(options.work_dir) as work:
            baked = encoders.bake(model, plan, Path(work))
            figures: dict[Precision, encoders.Figures] = {}
            try:
                for precision in precisions:
                    figures[precision] = encoders.measure(model, precision, plan, Path(work))
            finally:
                command = _encoders_command(model, plan, options.work_dir)
                _print_lines(encoders.table(model, plan, baked, figures, command))


def _command(part: Part, options: argparse.Namespace) -> str:
    """Return the command that measures this part alone in the same way."""
    words = _command_start(part, _precisions(options))
    if options.models_dir != DEFAULT_MODELS_DIR:
        words += ["--models-dir", str(options.models_dir)]
    if options.xquad != DEFAULT_XQUAD:
        words += ["--xquad", str(options.xquad)]
    if part == Part.BULK:
        words += ["--runs", str(options.runs)]
    if part != Part.RETRIEVAL:
        words += ["--seconds", f"{options.seconds:g}"]
    return shlex.join(words)


def _encoders_command(model: encoders.Model, plan: encoders.Plan, work_dir: Path | None) -> str:
    words = [*_command_start(Part.ENCODERS, plan.precisions), "--encoder-models", model]
    words += ["--sizes", ",".join(map(str, plan.sizes)), "--runs", str(plan.num_runs)]
    if encoders.ENCODERS[model].has_tasks:
        words += ["--tasks", ",".join(plan.tasks)]
    return shlex.join([*words, *(("--work-dir", str(work_dir)) if work_dir else ())])


def _command_start(part: Part, precisions: Sequence[Precision]) -> list[str]:
    words = [f"{name}={os.environ[name]}" for name in TUNABLE if os.environ.get(name)]
    words += [".venv/bin/python", "-m", "tests.bench", "--only", part, "--precision", ",".join(precisions)]
    return words


def _print_lines(lines: Sequence[str]) -> None:
    print("\n".join(lines), flush=True)


if __name__ == "__main__":
    sys.exit(main())
