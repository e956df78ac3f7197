"""What parts of `make bench` run that start themselves what they measure. Measures nothing itself."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from convert.__main__ import main as convert
from service.manifest import MANIFEST_FILE
from tests.bench import (
    arena,
    bake_layers,
    cases,
    full_size,
    listwise,
    models,
    openvino_process,
    options,
    precision,
    quality,
    shared_weights,
    sizes,
    soak,
    texts,
    torch_process,
    vision,
)
from tests.bench.errors import BenchError
from tests.bench.full_size import Layout, Plan
from tests.bench.options import Part
from tests.bench.server import MODEL, serve


def bake_if_absent(models_dir: Path) -> None:
    """Bake the default model, unless its bundle is there. Raises BenchError."""
    if (models_dir / MODEL / MANIFEST_FILE).exists():
        return
    print(f"{MODEL} is not in {models_dir}: baking it first")
    if convert([MODEL, "--out", str(models_dir)]):
        raise BenchError(f"{MODEL} could not be baked")


def print_lines(lines: Sequence[str]) -> None:
    """Print a table at once."""
    print("\n".join(lines), flush=True)


def _measure_quality(chosen: argparse.Namespace) -> None:
    found, code = texts.load(chosen.xquad), texts.load_code(chosen.code)
    sets = {"XQuAD en": found.retrieval, "code": code}
    for name, missing in ((name, given is None) for name, given in sets.items()):
        if missing:
            print(f"{Part.QUALITY}: nDCG of {name} left out: its files are not here (--xquad, --code)")
    present = {name: given for name, given in sets.items() if given}
    measured = quality.measure(found.passages, present, chosen.runs)
    print_lines(quality.table(measured, options.command(Part.QUALITY, chosen)))


def _measure_encoders(chosen: argparse.Namespace) -> None:
    for name in chosen.encoder_models:
        model = models.MODELS[name]
        narrowed = {"encoder_models": (name,)} | ({} if model.has_adapters else {"tasks": None})
        task = chosen.tasks[0] if model.has_adapters else None
        make = partial(cases.of_sizes, model, options.sizes(Part.ENCODERS, chosen), task)
        plan = _plan(Part.ENCODERS, model, chosen, chosen.xlmr_tokenizer)
        full_size.measure(plan, Layout(options.command(Part.ENCODERS, chosen, narrowed)), make)


def _measure_decoders(chosen: argparse.Namespace) -> None:
    torch = torch_process.interpreter(chosen.torch_python)
    for name in chosen.decoder_models:
        model = models.MODELS[name]
        make = partial(cases.of_sizes, model, options.sizes(Part.DECODERS, chosen), None)
        plan = _plan(Part.DECODERS, model, chosen, chosen.qwen_tokenizer, torch)
        command = options.command(Part.DECODERS, chosen, {"decoder_models": (name,)})
        full_size.measure(plan, Layout(command, has_targets=True), make)


def _measure_listwise(chosen: argparse.Namespace) -> None:
    torch = torch_process.interpreter(chosen.torch_python)
    model, found = models.MODELS[models.LISTWISE_RERANKER], texts.load(chosen.xquad)
    plan = _plan(Part.LISTWISE, model, chosen, chosen.qwen_tokenizer, torch)
    source = f"documents of {listwise.NUM_CHARACTERS:,} characters; {found.source}"
    layout = Layout(options.command(Part.LISTWISE, chosen), listwise.CASE_NAME, source, has_targets=True)
    full_size.measure(plan, layout, partial(listwise.of_counts, chosen.documents, found))


def _measure_precisions(chosen: argparse.Namespace) -> None:
    openvino = openvino_process.interpreter(chosen.openvino_python)
    wanted = options.precisions(Part.PRECISION, chosen)
    command = options.command(Part.PRECISION, chosen)
    wanted_sizes = options.sizes(Part.PRECISION, chosen)
    compared, figures = precision.measure_shape(wanted, wanted_sizes, chosen.runs, openvino)
    title = f"{precision.SHAPE}, bare session{f' in turns with {compared}' if compared else ''}"
    print_lines(precision.table(title, command, figures) + precision.verdicts(figures))
    bake_if_absent(chosen.models_dir)
    found = texts.load(chosen.xquad)
    figures = precision.measure_bulk(chosen.models_dir, wanted, found.passages, chosen.runs)
    title = f"{MODEL}, bare session, {precision.PASSAGES_PER_REQUEST} passages a request; {found.source}"
    print_lines(precision.table(title, command, figures) + precision.verdicts(figures))


def _measure_vision(chosen: argparse.Namespace) -> None:
    torch = torch_process.interpreter(chosen.torch_python)
    plan = _plan(Part.VISION, vision.model(), chosen, chosen.qwen_tokenizer, torch)
    vision.measure(replace(plan, tasks=(vision.TASK,)), options.command(Part.VISION, chosen))


def _measure_memory(chosen: argparse.Namespace) -> None:
    if not chosen.xlmr_tokenizer.exists():
        print(f"{Part.MEMORY}: skipped, {chosen.xlmr_tokenizer} is not here (--xlmr-tokenizer)")
        return
    command = options.command(Part.MEMORY, chosen)
    for name in (models.Encoder.BGE_M3, models.Encoder.JINA_V3):
        plan = _plan(Part.MEMORY, models.MODELS[name], chosen, chosen.xlmr_tokenizer)
        shared_weights.measure(plan, command)


def _measure_arena(chosen: argparse.Namespace) -> None:
    bake_if_absent(chosen.models_dir)
    precisions = options.precisions(Part.ARENA, chosen)
    arena.measure(chosen.models_dir, precisions, chosen.runs, options.command(Part.ARENA, chosen))


def _measure_soak(chosen: argparse.Namespace) -> None:
    bake_if_absent(chosen.models_dir)
    command, precisions = options.command(Part.SOAK, chosen), options.precisions(Part.SOAK, chosen)
    with models.work_folder(None) as work:
        long = soak.bake_long(Path(work), precisions)
        for folder, model, load in (
            (chosen.models_dir, MODEL, soak.DEFAULT_LOAD), (Path(work), long, soak.LONG_LOAD),
        ):  # fmt: skip
            for precision in precisions:
                print(f"{model}: {precision}: {chosen.soak_seconds} s", file=sys.stderr)
                with serve(folder, precision, model) as service:
                    found = soak.measure(service, load, chosen.soak_seconds)
                print_lines(soak.table(service, load, found, command))


def _measure_bake(part: Part, deep: bake_layers.Deep, chosen: argparse.Namespace) -> None:
    precisions = options.precisions(part, chosen)
    found: list[bake_layers.Figures] = []
    with models.work_folder(chosen.work_dir) as work:
        try:
            for num_layers in chosen.layers:
                figures = bake_layers.measure(deep, num_layers, precisions, chosen.qwen_tokenizer, Path(work))
                found.append(figures)
        finally:
            if found:
                print_lines(bake_layers.table(deep, found, precisions, options.command(part, chosen)))


def _measure_sizes(chosen: argparse.Namespace) -> None:
    found = sizes.measure(chosen.xlmr_tokenizer, chosen.qwen_tokenizer)
    print_lines(sizes.table(found, options.command(Part.SIZES, chosen)))


PARTS: dict[Part, Callable[[argparse.Namespace], None]] = {
    Part.QUALITY: _measure_quality,
    Part.PRECISION: _measure_precisions,
    Part.ENCODERS: _measure_encoders,
    Part.DECODERS: _measure_decoders,
    Part.LISTWISE: _measure_listwise,
    Part.VISION: _measure_vision,
    Part.MEMORY: _measure_memory,
    Part.ARENA: _measure_arena,
    Part.SOAK: _measure_soak,
    Part.SIZES: _measure_sizes,
    Part.BAKE_8B: partial(_measure_bake, Part.BAKE_8B, bake_layers.QWEN3_8B_BAKE),
    Part.BAKE_V4: partial(_measure_bake, Part.BAKE_V4, bake_layers.JINA_V4_BAKE),
}


def _plan(
    part: Part,
    model: models.Model,
    chosen: argparse.Namespace,
    tokenizer: Path,
    torch_python: Path | None = None,
) -> Plan:
    precisions = options.precisions(part, chosen)
    return Plan(model, precisions, chosen.tasks, chosen.runs, tokenizer, chosen.work_dir, torch_python)
