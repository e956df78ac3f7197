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
from convert.graph import Graph
from convert.quantize import SWITCHES, switchable
from convert.rewriting import linear_layers
from convert.smoothing import Calibration
from service.manifest import Kind, Manifest, Precision, Variant
from service.session import Array, Session

CALIBRATION_TEXTS = 128
FEW_TEXTS, FEW_CHARACTERS = 12, 200  # to see the effect of single layers
# Of a reranker: a pair takes as long as a text of twice the length.
SEARCH_QUERIES, SEARCH_DOCUMENTS = 4, 16
FEW_QUERIES, FEW_DOCUMENTS = 2, 6
OBSERVING = "observing"  # ending of the names of graphs that are only run to calibrate
SEARCH_FOLDER = "search"
SEARCH_MEMORY_FACTOR = 1.25  # of what fp32 alone needs: the layers are there in both forms


@dataclass(frozen=True)
class Tuned:
    """Graphs as built and smoothed ones; what calibration saw, where it is needed; the mixture of int8."""

    graphs: GraphsByTask
    smoothed: GraphsByTask = field(default_factory=dict)
    inputs: Mapping[str | None, Calibration] = field(default_factory=dict)  # of the graphs as built
    mixture: Mapping[str, Precision] = field(default_factory=dict)


@dataclass(eq=False)
class Switched:
    """Stands in for the session of a switchable graph with switches set."""

    session: Session
    switches: mixture.Switches
    may_pad: bool = False  # as of every graph that rounds
    has_narrow: bool = False

    def run(self, inputs: Mapping[str, Array], outputs: Sequence[str]) -> list[mixture.Floats]:
        """Compute the named outputs."""
        return self.session.run({**inputs, SWITCHES: self.switches}, outputs)


def observing_graphs(graphs: GraphsByTask) -> dict[str, Graph]:
    """Make, by file names, the graphs that calibration runs; their weights are those of fp32."""
    return {_observing_name(task): calibration.observing(graph) for task, graph in graphs.items()}


def calibrated(
    staged: Path, manifest: Manifest, graphs: GraphsByTask, *, keeps_inputs: bool = False
) -> Tuned:
    """Run the observing graphs on calibration texts; return the graphs with smoothed ones beside them.

    What was seen takes up to a third of a gigabyte a task: it is kept only where asked for.
    """
    chosen = texts.search()[:CALIBRATION_TEXTS]
    inputs: dict[str | None, Calibration] = {}
    smoothed: GraphsByTask = {}
    with progress.bar(len(graphs) * len(chosen), "calibrate", "text") as bar:
        for task, graph in graphs.items():
            variant = _exact_variant(manifest, task)
            file = staged / Precision.FP32 / f"{_observing_name(task)}.onnx"
            values = list(calibration.observed_values(graph))
            recording = calibration.Recording(Session(file, running.settings()), values)
            model = running.open_variant(staged, manifest, variant, recording.as_session())
            running.answers(model, variant, chosen, bar.update)
            del model  # its session too: the next task opens another
            seen = dict(recording.seen())
            del recording
            smoothed[task], _ = smoothing.smoothed(graph, seen)
            if keeps_inputs:
                inputs[task] = seen
    return Tuned(graphs, smoothed, inputs)


def searched(staged: Path, manifest: Manifest, tuned: Tuned) -> dict[str, Precision]:
    """Search for the layers that int8 leaves to a more accurate scheme, the same ones in every task."""
    tasks = list(tuned.smoothed)
    steps = mixture.num_steps(len(list(linear_layers(tuned.smoothed[tasks[0]]))))
    with (
        closing(Opened(staged, manifest, tuned)) as opened,
        progress.bar(steps, "search", "step") as bar,
    ):
        found = mixture.searched(tasks, opened.subject, partial(bar.update, 1))
        bar.update(steps - bar.n)  # it has ended, mostly before it has tried all
        return found


class Opened:
    """One graph at a time that holds every linear layer in both forms: those of all tasks take too much."""

    def __init__(self, staged: Path, manifest: Manifest, tuned: Tuned) -> None:
        """Open nothing yet."""
        self._staged, self._manifest, self._tuned = staged, manifest, tuned
        self._open: dict[str | None, mixture.Subject] = {}
        self._exact: dict[str | None, mixture.Floats] = {}  # answers of fp32 by task

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
        variant, graph = _exact_variant(self._manifest, task), self._tuned.smoothed[task]
        is_reranker = self._manifest.kind == Kind.RERANKER
        queries, few_queries = (SEARCH_QUERIES, FEW_QUERIES) if is_reranker else (0, 0)
        whole, few = searched_texts(is_reranker=is_reranker)
        if task not in self._exact:
            exact = running.open_variant(self._staged, self._manifest, variant)
            self._exact[task] = running.answers(exact, variant, whole, num_queries=queries)
            del exact
        both, _ = switchable(graph, Precision.INT8)
        bundle.write_graphs(self._staged, SEARCH_FOLDER, {describe.MODEL_GRAPH: both}, lambda count: None)
        session = Session(self._staged / SEARCH_FOLDER / f"{describe.MODEL_GRAPH}.onnx", running.settings())
        sizes = {layer.name: int(np.prod(weight.shape)) for layer, weight in linear_layers(graph)}

        def answers(chosen: Sequence[str], num_queries: int, switches: mixture.Switches) -> mixture.Floats:
            switched = cast(Session, Switched(session, switches))
            model = running.open_variant(self._staged, self._manifest, variant, switched)
            return running.answers(model, variant, chosen, num_queries=num_queries)

        return mixture.Subject(
            kind=self._manifest.kind,
            sizes=sizes,
            exact=self._exact[task],
            answers=partial(answers, whole, queries),
            exact_few=answers(few, few_queries, np.zeros(len(sizes), dtype=np.bool_)),
            few_answers=partial(answers, few, few_queries),
        )


def searched_texts(*, is_reranker: bool) -> tuple[list[str], list[str]]:
    """Return the texts that a search judges by, and a few to see the effect of single layers.

    Of a reranker the first are queries and the others documents, each with each.
    """
    whole = texts.search()
    short = [text for text in whole if len(text) < FEW_CHARACTERS]
    if is_reranker:
        return whole[: SEARCH_QUERIES + SEARCH_DOCUMENTS], short[: FEW_QUERIES + FEW_DOCUMENTS]
    return whole, short[:FEW_TEXTS]


def _exact_variant(manifest: Manifest, task: str | None) -> Variant:
    (found,) = [
        variant
        for variant in manifest.variants
        if variant.precision == Precision.FP32 and variant.task == task
    ]
    return found


def _observing_name(task: str | None) -> str:
    return f"{describe.graph_name(task)}.{OBSERVING}"
