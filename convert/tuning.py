"""Makes graphs fit for rounding by running them: calibration, smoothing, the search for a mixture.

Needs float32 graphs written in a staging folder. Reads the search texts alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import cast

import numpy as np

from convert import bundle, calibration, describe, mixture, progress, running, smoothing, texts
from convert.build import GraphsByTask
from convert.calibrated import LinearInput
from convert.graph import Graph
from convert.quantize import SWITCHES, switchable
from convert.rewriting import linear_layers
from service.manifest import Manifest, Precision, Variant
from service.session import Array, Session

CALIBRATION_TEXTS = 128
FEW_TEXTS, FEW_CHARACTERS = 16, 200  # to see the effect of single layers
OBSERVING = "observing"  # ending of the names of graphs that are only run to calibrate
SEARCH_FOLDER = "search"
SEARCH_MEMORY_FACTOR = 1.25  # of what fp32 alone needs: the layers are there in both forms

Calibration = Mapping[str, LinearInput]


@dataclass(frozen=True)
class Tuned:
    """Graphs as built, what calibration saw in them, and the same of smoothed ones; the mixture of int8."""

    graphs: GraphsByTask
    inputs: Mapping[str | None, Calibration] = field(default_factory=dict)
    smoothed: GraphsByTask = field(default_factory=dict)
    smoothed_inputs: Mapping[str | None, Calibration] = field(default_factory=dict)
    mixture: Mapping[str, Precision] = field(default_factory=dict)


@dataclass(eq=False)
class Switched:
    """Stands in for the session of a switchable graph with switches set."""

    session: Session
    switches: mixture.Switches
    may_pad: bool = False  # as of every graph that rounds

    def run(self, inputs: Mapping[str, Array], outputs: Sequence[str]) -> list[mixture.Floats]:
        """Compute the named outputs."""
        return self.session.run({**inputs, SWITCHES: self.switches}, outputs)


def observing_graphs(graphs: GraphsByTask) -> dict[str, Graph]:
    """Make, by file names, the graphs that calibration runs; their weights are those of fp32."""
    return {_observing_name(task): calibration.observing(graph) for task, graph in graphs.items()}


def calibrated(staged: Path, manifest: Manifest, graphs: GraphsByTask) -> Tuned:
    """Run the observing graphs on calibration texts; return the graphs with smoothed ones beside them."""
    chosen = texts.search()[:CALIBRATION_TEXTS]
    inputs: dict[str | None, Calibration] = {}
    smoothed: dict[str | None, tuple[Graph, dict[str, LinearInput]]] = {}
    with progress.bar(len(graphs) * len(chosen), "calibrate", "text") as bar:
        for task, graph in graphs.items():
            file = staged / Precision.FP32 / f"{_observing_name(task)}.onnx"
            session = Session(file, running.settings())
            recording = calibration.Recording(session, list(calibration.observed_values(graph)))
            variant = _exact_variant(manifest, task)
            model = running.open_variant(staged, manifest, variant, recording.as_session())
            running.answers(model, variant, chosen, bar.update)
            inputs[task] = dict(recording.seen())
            smoothed[task] = smoothing.smoothed(graph, inputs[task])
    return Tuned(
        graphs,
        inputs,
        {task: graph for task, (graph, _) in smoothed.items()},
        {task: seen for task, (_, seen) in smoothed.items()},
    )


def searched(staged: Path, manifest: Manifest, tuned: Tuned) -> dict[str, Precision]:
    """Search for the layers that int8 leaves to a more accurate scheme, the same ones in every task."""
    with subjects(staged, manifest, tuned) as found:
        steps = mixture.num_steps(len(found[0].sizes))
        with progress.bar(steps, "search", "step") as bar:
            return mixture.searched(found, partial(bar.update, 1))


@contextmanager
def subjects(staged: Path, manifest: Manifest, tuned: Tuned) -> Iterator[list[mixture.Subject]]:
    """Open, for a while, graphs that hold every linear layer in both forms, one a task."""
    made = {
        describe.graph_name(task): switchable(graph, Precision.INT8, tuned.smoothed_inputs[task])[0]
        for task, graph in tuned.smoothed.items()
    }
    with _written(staged, made):
        yield [_subject(staged, manifest, task, graph) for task, graph in tuned.smoothed.items()]


def _subject(staged: Path, manifest: Manifest, task: str | None, graph: Graph) -> mixture.Subject:
    variant = _exact_variant(manifest, task)
    session = Session(staged / SEARCH_FOLDER / f"{describe.graph_name(task)}.onnx", running.settings())
    whole = texts.search()
    few = [text for text in whole if len(text) < FEW_CHARACTERS][:FEW_TEXTS]
    sizes = {layer.name: int(np.prod(weight.shape)) for layer, weight in linear_layers(graph)}

    def answers(chosen: Sequence[str], switches: mixture.Switches) -> mixture.Floats:
        switched = cast(Session, Switched(session, switches))
        model = running.open_variant(staged, manifest, variant, switched)
        return running.answers(model, variant, chosen)

    nothing = np.zeros(len(sizes), dtype=np.bool_)
    return mixture.Subject(
        kind=manifest.kind,
        sizes=sizes,
        exact=answers(whole, nothing),
        answers=partial(answers, whole),
        exact_few=answers(few, nothing),
        few_answers=partial(answers, few),
    )


@contextmanager
def _written(staged: Path, graphs: Mapping[str, Graph]) -> Iterator[None]:
    """Write graphs that are only run, and remove them afterwards."""
    with progress.bar(bundle.weights_bytes(graphs), "search: write", "B") as bar:
        records = bundle.write_graphs(staged, SEARCH_FOLDER, graphs, bar.update)
    try:
        yield
    finally:
        for name in records:
            (staged / name).unlink()
        (staged / SEARCH_FOLDER).rmdir()


def _exact_variant(manifest: Manifest, task: str | None) -> Variant:
    (found,) = [
        variant
        for variant in manifest.variants
        if variant.precision == Precision.FP32 and variant.task == task
    ]
    return found


def _observing_name(task: str | None) -> str:
    return f"{describe.graph_name(task)}.{OBSERVING}"
