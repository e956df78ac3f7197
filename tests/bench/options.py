"""The command line of `make bench`: parts, options, the command that repeats a part. Runs nothing."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Callable, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Any, TypeVar

from convert.recipe import DEFAULT_PRECISIONS
from service.manifest import Precision
from tests.bench import full_size_qwen, full_size_xlmr, server
from tests.bench.cases import Size
from tests.bench.models import Decoder, Encoder
from tests.bench.openvino_process import PACKAGES as OPENVINO_PACKAGES
from tests.bench.server import MODEL, TUNABLE

DEFAULT_MODELS_DIR = Path("onnx_models")
DEFAULT_XQUAD = Path("../shared/data/retrieval/xquad")
DEFAULT_CODE = Path("../shared/data/retrieval/code")
DEFAULT_RUNS, DEFAULT_SECONDS, DEFAULT_SOAK_SECONDS = 5, 8.0, 600
DEFAULT_ENCODERS = (Encoder.JINA_V3, Encoder.BGE_M3, Encoder.BGE_RERANKER)
DEFAULT_DECODERS = (Decoder.QWEN3_06B,)
DEFAULT_TASKS = "text-matching"
DEFAULT_DOCUMENTS, DEFAULT_LAYERS = "1,16,64", "2,4"

Choice = TypeVar("Choice", bound=StrEnum)


class Part(StrEnum):
    """What can be measured. Others than `DEFAULT_PARTS` take long and are measured only if asked for."""

    RETRIEVAL = "retrieval"
    BULK = "bulk"
    SINGLE = "single"
    QUALITY = "quality"
    PRECISION = "precision"
    ENCODERS = "encoders"
    DECODERS = "decoders"
    LISTWISE = "listwise"
    VISION = "vision"
    MEMORY = "memory"
    ARENA = "arena"
    SOAK = "soak"
    BESIDE = "beside"
    OVERLOAD = "overload"
    FAIRNESS = "fairness"
    TOGETHER = "together"
    LONG_TEXT = "long-text"
    ENCODING = "encoding"
    COMPRESSION = "compression"
    WORKERS = "workers"
    BAKE_8B = "bake-8b"
    BAKE_V4 = "bake-v4"
    SIZES = "sizes"


SMALL_PARTS = (Part.RETRIEVAL, Part.BULK, Part.SINGLE)
DEFAULT_PARTS = (*SMALL_PARTS, Part.QUALITY, Part.PRECISION, Part.MEMORY)
# The loads of `make bench-serve`, which measures bulk as well.
SERVE_PARTS = (Part.BESIDE, Part.OVERLOAD, Part.FAIRNESS, Part.TOGETHER)
SPEED_PRECISIONS = (Precision.FP32, Precision.INT8)
CPU_PRECISIONS = (*DEFAULT_PRECISIONS, Precision.INT4)
PRECISIONS = {  # where none is asked for
    **dict.fromkeys(SMALL_PARTS, DEFAULT_PRECISIONS),
    **dict.fromkeys(
        (Part.ENCODERS, Part.DECODERS, Part.LISTWISE, Part.MEMORY, Part.ARENA, Part.SOAK), SPEED_PRECISIONS
    ),
    Part.PRECISION: CPU_PRECISIONS,
    Part.VISION: (Precision.FP32,),
    Part.BESIDE: CPU_PRECISIONS,
    **dict.fromkeys(
        (Part.OVERLOAD, Part.FAIRNESS, Part.TOGETHER, Part.COMPRESSION, Part.WORKERS), SPEED_PRECISIONS
    ),
    Part.LONG_TEXT: SPEED_PRECISIONS,
    **dict.fromkeys((Part.BAKE_8B, Part.BAKE_V4), (Precision.INT8_BLOCK,)),
}
SIZES = {
    Part.PRECISION: "1x32,8x128,2x512,1x2048",
    Part.ENCODERS: "1x32,8x128,1x2048,1x8000",
    Part.DECODERS: "1x32,8x128,1x2048,1x8192",
}
# What a part's command says, and what it says only where it is not the default: places.
SAID = {
    Part.RETRIEVAL: (),
    Part.BULK: ("runs", "seconds"),
    Part.SINGLE: ("seconds",),
    Part.QUALITY: ("runs",),
    Part.PRECISION: ("sizes", "runs"),
    Part.ENCODERS: ("encoder_models", "sizes", "runs", "tasks"),
    Part.DECODERS: ("decoder_models", "sizes", "runs"),
    Part.LISTWISE: ("documents", "runs"),
    Part.VISION: ("runs",),
    **dict.fromkeys((Part.MEMORY, Part.ARENA), ("runs",)),
    Part.SOAK: ("soak_seconds",),
    **dict.fromkeys((Part.BESIDE, Part.FAIRNESS, Part.TOGETHER, Part.COMPRESSION), ("runs", "seconds")),
    **dict.fromkeys((Part.OVERLOAD, Part.WORKERS), ("seconds",)),
    Part.LONG_TEXT: ("runs", "seconds"),
    Part.ENCODING: (),
    Part.SIZES: (),
    **dict.fromkeys((Part.BAKE_8B, Part.BAKE_V4), ("layers",)),
}
PLACES = {
    **dict.fromkeys(SMALL_PARTS, ("models_dir", "xquad")),
    **dict.fromkeys((Part.FAIRNESS, Part.TOGETHER, Part.COMPRESSION), ("models_dir", "xquad")),
    Part.BESIDE: ("models_dir", "xquad", "infinity_python"),
    Part.OVERLOAD: ("models_dir", "xquad", "plot"),
    **dict.fromkeys((Part.ENCODING, Part.LONG_TEXT), ()),
    Part.WORKERS: ("models_dir",),
    Part.QUALITY: ("xquad", "code"),
    Part.PRECISION: ("models_dir", "xquad", "openvino_python"),
    Part.ENCODERS: ("xlmr_tokenizer", "work_dir"),
    Part.DECODERS: ("qwen_tokenizer", "torch_python", "work_dir"),
    Part.LISTWISE: ("xquad", "qwen_tokenizer", "torch_python", "work_dir"),
    Part.VISION: ("qwen_tokenizer", "torch_python", "work_dir"),
    Part.MEMORY: ("xlmr_tokenizer", "work_dir"),
    **dict.fromkeys((Part.ARENA, Part.SOAK), ("models_dir",)),
    **dict.fromkeys((Part.BAKE_8B, Part.BAKE_V4), ("qwen_tokenizer", "work_dir")),
    Part.SIZES: ("xlmr_tokenizer", "qwen_tokenizer"),
}


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    made = argparse.ArgumentParser(
        prog="python -m tests.bench",
        description=f"Measure {MODEL} and full-size models through a real gunicorn. "
        f"{', '.join(TUNABLE)} may be set to vary it.",
    )
    add = made.add_argument
    add("--only", type=_several(Part), default=DEFAULT_PARTS, metavar=",".join(Part))
    add("--precision", type=_several(Precision), metavar=",".join(Precision), help="each part has its own")
    add("--models-dir", type=Path, default=DEFAULT_MODELS_DIR, help="where bundles are (%(default)s)")
    add("--xquad", type=Path, default=DEFAULT_XQUAD, help="the retrieval set (%(default)s)")
    add("--code", type=Path, default=DEFAULT_CODE, help="the retrieval set of code (%(default)s)")
    add("--runs", type=_positive(int), default=DEFAULT_RUNS, help="of all but single (%(default)s)")
    add("--seconds", type=_positive(float), default=DEFAULT_SECONDS, help="length of a run (%(default)s)")
    add("--soak-seconds", type=_positive(int), default=DEFAULT_SOAK_SECONDS, help="of soak (%(default)s)")
    add("--infinity-python", type=Path, help="interpreter with infinity-emb, to compare with (left out)")
    add("--plot", type=Path, help="PNG of the overload curve of the first precision (not drawn)")
    _add_full_size(made.add_argument_group("full-size models"))
    return made


def _add_full_size(group: argparse._ArgumentGroup) -> None:
    add, encoders, decoders = group.add_argument, _several(Encoder), _several(Decoder)
    add("--encoder-models", type=encoders, default=DEFAULT_ENCODERS, metavar=",".join(Encoder))
    add("--decoder-models", type=decoders, default=DEFAULT_DECODERS, metavar=",".join(Decoder))
    sizes = "; ".join(f"{part}: {default}" for part, default in SIZES.items())
    add("--sizes", type=_sizes, help=f"texts x tokens of the requests ({sizes})")
    add("--tasks", type=_words, default=DEFAULT_TASKS, help="of jina-embeddings-v3; measured is the first")
    add("--documents", type=_numbers, default=DEFAULT_DOCUMENTS, help="of listwise requests (%(default)s)")
    add("--layers", type=_numbers, default=DEFAULT_LAYERS, help="of the bakes (%(default)s)")
    add(
        "--torch-python", type=Path, help="interpreter with torch and transformers (this one, if it has them)"
    )
    add("--openvino-python", type=Path, help=f"interpreter with {', '.join(OPENVINO_PACKAGES)} (left out)")
    add("--work-dir", type=Path, help="where checkpoints and bundles stay (not kept)")
    add("--xlmr-tokenizer", type=Path, default=full_size_xlmr.DEFAULT_TOKENIZER, help="file (%(default)s)")
    add("--qwen-tokenizer", type=Path, default=full_size_qwen.DEFAULT_TOKENIZER, help="folder (%(default)s)")


def precisions(part: Part, options: argparse.Namespace) -> tuple[Precision, ...]:
    """Return the precisions asked for, or those that the part measures by default."""
    return options.precision or PRECISIONS[part]


def sizes(part: Part, options: argparse.Namespace) -> tuple[Size, ...]:
    """Return the sizes asked for, or those that the part measures by default."""
    return options.sizes or _sizes(SIZES[part])


def command(part: Part, options: argparse.Namespace, narrowed: Mapping[str, Any] | None = None) -> str:
    """Return the command that measures this part alone in the same way.

    Options that are `narrowed` have another value there, or are left out for None.
    """
    values = vars(options) | dict(narrowed or {})
    if part in SIZES:
        values["sizes"] = sizes(part, options)
    words = [f"{name}={value}" for name, value in server.tuned().items()]
    words += [".venv/bin/python", "-m", "tests.bench", "--only", part]
    if part in PRECISIONS:
        words += ["--precision", ",".join(precisions(part, options))]
    defaults = parser()
    changed = [name for name in PLACES[part] if values[name] != defaults.get_default(name)]
    for name in (*changed, *SAID[part]):
        if values[name] is not None:
            words += [f"--{name.replace('_', '-')}", _spelled(values[name])]
    return shlex.join(words)


def _spelled(value: Any) -> str:
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _sizes(value: str) -> tuple[Size, ...]:
    try:
        return tuple(Size(*map(int, part.split("x"))) for part in value.split(","))
    except (TypeError, ValueError) as error:
        example = SIZES[Part.ENCODERS]
        raise argparse.ArgumentTypeError(f"{value!r}: not as {example} ({error})") from None


def _words(value: str) -> tuple[str, ...]:
    return tuple(value.split(","))


def _numbers(value: str) -> tuple[int, ...]:
    return tuple(dict.fromkeys(int(_positive(int)(part)) for part in value.split(",")))


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
