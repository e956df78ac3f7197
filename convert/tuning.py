"""Makes graphs fit for rounding by running them: calibration, smoothing, the search for a mixture.

Needs float32 graphs written in a staging folder. Reads the search texts alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
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
    tasks = list(tuned.smoothed)
    steps = mixture.num_steps(len(list(linear_layers(tuned.smoothed[tasks[0]]))))
    with (
        closing(Opened(staged, manifest, tuned)) as opened,
        progress.bar(steps, "search", "step") as bar,
    ):
        return mixture.searched(tasks, opened.subject, partial(bar.update, 1))


class Opened:
    """One graph at a time that holds every linear layer in both forms: those of all tasks take too much."""

    def __init__(self, staged: Path, manifest: Manifest, tuned: Tuned) -> None:
        """Open nothing yet."""
        self._staged, self._manifest, self._tuned = staged, manifest, tuned
        self._open: dict[str | None, mixture.Subject] = {}
        self._exact: dict[tuple[str | None, int], mixture.Floats] = {}  # by task and number of texts

    def subject(self, task: str | None) -> mixture.Subject:
        """Return the subject of a task, writing and opening its graph unless it is the one that is open."""
        if task not in self._open:
            self.close()
            self._open[task] = self._opened(task)
        return self._open[task]

    def close(self) -> None:
        """Close and remove the graph that is open."""
        self._open.clear()
        folder = self._staged / SEARCH_FOLDER
        for file in folder.glob("*"):
            file.unlink()
        if folder.exists():
            folder.rmdir()

    def _opened(self, task: str | None) -> mixture.Subject:
        graph = self._tuned.smoothed[task]
        both, _ = switchable(graph, Precision.INT8, self._tuned.smoothed_inputs[task])
        bundle.write_graphs(self._staged, SEARCH_FOLDER, {describe.MODEL_GRAPH: both}, lambda count: None)
        session = Session(self._staged / SEARCH_FOLDER / f"{describe.MODEL_GRAPH}.onnx", running.settings())
        variant = _exact_variant(self._manifest, task)
        whole = texts.search()
        few = [text for text in whole if len(text) < FEW_CHARACTERS][:FEW_TEXTS]
        sizes = {layer.name: int(np.prod(weight.shape)) for layer, weight in linear_layers(graph)}

        def answers(chosen: Sequence[str], switches: mixture.Switches) -> mixture.Floats:
            switched = cast(Session, Switched(session, switches))
            model = running.open_variant(self._staged, self._manifest, variant, switched)
            return running.answers(model, variant, chosen)

        def exact(chosen: Sequence[str]) -> mixture.Floats:
            key = task, len(chosen)
            if key not in self._exact:
                self._exact[key] = answers(chosen, np.zeros(len(sizes), dtype=np.bool_))
            return self._exact[key]

        return mixture.Subject(
            kind=self._manifest.kind,
            sizes=sizes,
            exact=exact(whole),
            answers=partial(answers, whole),
            exact_few=exact(few),
            few_answers=partial(answers, few),
        )


def _exact_variant(manifest: Manifest, task: str | None) -> Variant:
    (found,) = [
        variant
        for variant in manifest.variants
        if variant.precision == Precision.FP32 and variant.task == task
    ]
    return found


def _observing_name(task: str | None) -> str:
    return f"{describe.graph_name(task)}.{OBSERVING}"
