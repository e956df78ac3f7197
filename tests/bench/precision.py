"""The bare session at every precision of the CPU, beside OpenVINO: speed alone. Knows no service and no HTTP.

Two encoders: six layers of the XLM-R-large shape with random weights, of which speed is all that can be said,
in rows without padding; and the default model with the runs that the service makes of real texts. Contenders
take turns, and each counts by its best turn: what else the host does only adds time.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from convert import bundle, calibration, encoder, heads, quantize, smoothing
from convert import encoder_config as config
from convert.calibrated import LinearInput
from convert.checkpoint import Checkpoint
from convert.graph import Graph
from convert.recipe import Architecture
from convert.rewriting import lowest_of
from service.manifest import Output, Pooling, Precision
from service.session import Session, SessionSettings
from tests.bench import bare, full_size_xlmr, models, openvino_process, server, tables
from tests.bench.cases import Size
from tests.bench.server import Service

NUM_LAYERS, VOCABULARY = 6, 8192  # a small table: it is only looked up
SHAPE = f"{NUM_LAYERS} layers of the XLM-R-large shape"
TURN_SECONDS = 0.4  # a turn repeats a short run for so long
PASSAGES_PER_REQUEST, NUM_REQUESTS = 64, 2
BULK = "bulk"
OPENVINO = "OpenVINO"
TARGET_SIZE = "8x128"
TARGETS = {BULK: 1.6, TARGET_SIZE: 2.2}  # int8 as a multiple of fp32
OPENVINO_TARGET = 0.9  # int8 as a multiple of OpenVINO's
UNITS = "tokens/s, and as a multiple of fp32"

Turn = Callable[[], float]  # takes a turn and returns the seconds of its best run


@dataclass(frozen=True)
class Figures:
    """The best seconds of every contender in every case, and the tokens of the cases."""

    num_tokens: dict[str, int]
    seconds: dict[str, dict[str, float]]  # contender -> case

    def rate(self, name: str, case: str) -> float:
        """Return the tokens that a contender computes in a second."""
        return self.num_tokens[case] / self.seconds[name][case]

    def ratio(self, name: str, other: str, case: str) -> float:
        """Return the speed of a contender as a multiple of another's."""
        return self.seconds[other][case] / self.seconds[name][case]


def measure_shape(
    precisions: Sequence[Precision], sizes: Sequence[Size], num_runs: int, openvino: Path | None
) -> tuple[str, Figures]:
    """Time the encoder of random weights; return what it was compared with, and the figures."""
    num_threads = server.tuned_settings().intra_op_threads
    compared, num_tokens = "", {str(size): size.num_texts * size.num_tokens for size in sizes}
    with ExitStack() as opened:
        work = Path(opened.enter_context(models.work_folder(None)))
        checkpoint = work / "checkpoint"
        full_size_xlmr.write_layers(checkpoint, NUM_LAYERS, VOCABULARY)
        sessions = _sessions(checkpoint, work, precisions, num_threads)
        contenders: dict[str, Callable[[Size], Turn]] = {
            name: _session_turns(session) for name, session in sessions.items()
        }
        if openvino:
            process = opened.enter_context(openvino_process.opened(openvino, checkpoint, num_threads))
            compared = process.description
            for precision in openvino_process.PRECISIONS:
                contenders[f"{OPENVINO} {precision}"] = process.turns(precision, TURN_SECONDS)
        seconds: dict[str, dict[str, float]] = {name: {} for name in contenders}
        for size in sizes:
            turns = {name: make(size) for name, make in contenders.items()}
            for name, best in _in_turns(turns, num_runs, str(size)).items():
                seconds[name][str(size)] = best
    return compared, Figures(num_tokens, seconds)


def measure_bulk(
    models_dir: Path, precisions: Sequence[Precision], passages: Sequence[str], num_runs: int
) -> Figures:
    """Time the runs that the service makes of requests for the default model."""
    turns: dict[str, Turn] = {}
    num_tokens = 0
    requests = [
        passages[begin : begin + PASSAGES_PER_REQUEST]
        for begin in range(0, PASSAGES_PER_REQUEST * NUM_REQUESTS, PASSAGES_PER_REQUEST)
    ]
    settings = replace(server.tuned_settings(), models_dir=models_dir)
    for precision in precisions:
        model = bare.open_as_served(Service(settings, precision))
        recorded = [bare.record(model, texts) for texts in requests]
        num_tokens = sum(request.num_tokens for request in recorded)
        turns[precision] = _bulk_turn(model.graphs.session(None), recorded)
    best = _in_turns(turns, num_runs, BULK)
    return Figures({BULK: num_tokens}, {name: {BULK: seconds} for name, seconds in best.items()})


def table(title: str, command: str, figures: Figures) -> list[str]:
    """Lay out the speed of every contender in every case."""
    cases = list(figures.num_tokens)
    header = ("", *(column for case in cases for column in (case, "ratio")))
    rows = [
        (name, *(cell for case in cases for cell in _cells(figures, name, case))) for name in figures.seconds
    ]
    return tables.aligned(f"{title}; {UNITS}", command, header, rows)


def verdicts(figures: Figures) -> list[str]:
    """Compare int8 with fp32, and with OpenVINO where that was measured, in the cases that have a target."""
    lines, ours = [], Precision.INT8
    for case, target in TARGETS.items():
        if case not in figures.num_tokens or not {ours, Precision.FP32} <= figures.seconds.keys():
            continue
        ratio = figures.ratio(ours, Precision.FP32, case)
        lines.append(_verdict(f"{ours} at {case}, to fp32", target, ratio))
    theirs = f"{OPENVINO} {ours}"
    if TARGET_SIZE in figures.num_tokens and {ours, theirs} <= figures.seconds.keys():
        ratio = figures.ratio(ours, theirs, TARGET_SIZE)
        lines.append(_verdict(f"{ours} at {TARGET_SIZE}, to {theirs}", OPENVINO_TARGET, ratio))
    return lines


def _verdict(compared: str, target: float, ratio: float) -> str:
    return f"target of {compared}: at least {target}: {ratio:.2f}, {tables.verdict(ratio >= target)}"


def _cells(figures: Figures, name: str, case: str) -> tuple[str, str]:
    if Precision.FP32 not in figures.seconds:
        return f"{figures.rate(name, case):,.0f}", "-"
    return f"{figures.rate(name, case):,.0f}", f"{figures.ratio(name, Precision.FP32, case):.2f}"


def _sessions(
    checkpoint: Path, work: Path, precisions: Sequence[Precision], num_threads: int
) -> dict[str, Session]:
    write(checkpoint, work, precisions)
    return {
        str(precision): Session(work / precision / "model.onnx", SessionSettings(num_threads))
        for precision in precisions
    }


def write(checkpoint: Path, work: Path, precisions: Sequence[Precision]) -> None:
    """Build and write a graph of the checkpoint at every precision, int8 smoothed as a bake does it."""
    opened = Checkpoint(checkpoint, ())
    sizes = config.read(Architecture.XLM_ROBERTA, opened.config)
    graph, hidden = encoder.build(opened.weights, sizes)
    body = heads.Body(graph, opened.weights, hidden, sizes.hidden_size, Pooling.CLS)
    heads.add_outputs(body, (Output.TOKEN_EMBEDDINGS,))
    smoothed, _ = smoothing.smoothed(graph, _outliers(graph))
    for precision in precisions:
        made = quantize.quantize(smoothed if precision == Precision.INT8 else graph, precision)
        bundle.write_graphs(work, precision, {"model": made}, lambda _: None)


def _outliers(graph: Graph) -> dict[str, LinearInput]:
    """Make up inputs that need smoothing wherever it costs a multiplication: random weights have none."""
    draw, inputs = np.random.default_rng(0), {}
    for value, size in calibration.observed_values(graph).items():
        rows = draw.normal(size=(32, size)).astype(np.float32)
        if lowest_of(graph, value) is None:
            rows[:, ::97] *= 100
        inputs[value] = LinearInput(np.abs(rows).max(axis=0), np.square(rows).mean(axis=0), rows)
    return inputs


def _session_turns(session: Session) -> Callable[[Size], Turn]:
    def make(size: Size) -> Turn:
        ids = np.random.default_rng(0).integers(5, VOCABULARY, (size.num_texts, size.num_tokens))
        inputs = {"input_ids": ids, "attention_mask": np.ones_like(ids)}

        def turn() -> float:
            session.run(inputs, [Output.TOKEN_EMBEDDINGS])  # the caches are another's
            times, end = list[float](), time.perf_counter() + TURN_SECONDS
            while not times or time.perf_counter() < end:
                begin = time.perf_counter()
                session.run(inputs, [Output.TOKEN_EMBEDDINGS])
                times.append(time.perf_counter() - begin)
            return min(times)

        return turn

    return make


def _bulk_turn(session: Session, requests: Sequence[bare.Request]) -> Turn:
    return lambda: bare.time_runs(session, requests)


def _in_turns(turns: Mapping[str, Turn], num_runs: int, case: str) -> dict[str, float]:
    """Let every contender take as many turns, one after another; return the best seconds of each."""
    best = dict.fromkeys(turns, float("inf"))
    for run in range(1, num_runs + 1):
        print(f"{case}: {run}/{num_runs}", file=sys.stderr)
        for name, turn in turns.items():
            best[name] = min(best[name], turn())
    return best
