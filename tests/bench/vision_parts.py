"""Where the time of a request of images goes: the tower, the text graph, the rest. Knows no HTTP.

The graphs are timed in this process, inside the service's own model: groups and padding are the service's by
construction. What all layers would take is computed: only the part of the tower that grows with its blocks is
multiplied; of the text graph everything is, as all but its layers is a lookup and a mean.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from service import images
from service import manifest as contract
from service.config import Settings
from service.embedding import EmbeddingModel, open_model
from service.graphs import Graphs
from service.manifest import Precision
from service.options import EmbedOptions
from service.scheduler import Scheduler
from service.session import Array, Floats, Session, SessionSettings
from tests.bench import server
from tests.bench.full_size_v4 import JINA_V4, Sizes
from tests.bench.image_cases import ImageCase

TOWER, TEXT = "tower", "text"
HEADER = ("images", "tower s", "text s", "rest s", "all s", "tower s*", "text s*", "all s*", "images/s*")


@dataclass(frozen=True)
class Seconds:
    """The seconds of a request and of its parts."""

    total: float
    tower: float
    text: float

    @property
    def rest(self) -> float:
        """Return what is neither: files to patches, HTTP, the mean."""
        return self.total - self.tower - self.text

    def at_depth_of(self, full: Sizes, few: Sizes, patches: Sequence[int]) -> Seconds:
        """Compute what a model of the same widths and more layers would take."""
        share = sum(few.share_of_blocks(number) * number for number in patches) / sum(patches)
        tower = self.tower * (1 - share + share * full.blocks / few.blocks)
        text = self.text * full.text.layers / few.text.layers
        return Seconds(self.rest + tower + text, tower, text)


class Timed:
    """Stands in for a session and adds up the seconds of its runs."""

    def __init__(self, session: Session, part: str, seconds: defaultdict[str, float]) -> None:
        """Look like the session in all but `run`."""
        self._session, self._part, self._seconds = session, part, seconds

    def __getattr__(self, name: str) -> Any:
        """Return what the session says of itself."""
        return getattr(self._session, name)

    def run(self, inputs: Mapping[str, Array], outputs: Sequence[str]) -> list[Floats]:
        """Run the session."""
        begin = time.perf_counter()
        computed = self._session.run(inputs, outputs)
        self._seconds[self._part] += time.perf_counter() - begin
        return computed


class TimedGraphs:
    """Stands in for a model's graphs: their sessions are timed."""

    def __init__(self, graphs: Graphs, task: str) -> None:
        """Open the tower and the graph of a task."""
        self.seconds: defaultdict[str, float] = defaultdict(float)  # by part
        self._graphs = graphs
        self._tower = Timed(graphs.vision_session(), TOWER, self.seconds)
        self._text = Timed(graphs.session(task), TEXT, self.seconds)

    def __getattr__(self, name: str) -> Any:
        """Return what the graphs say of themselves."""
        return getattr(self._graphs, name)

    def session(self, task: str | None) -> Timed:
        """Return the graph of the task."""
        return self._text

    def vision_session(self) -> Timed:
        """Return the tower."""
        return self._tower


def time_bare(
    bundle: Path, precision: Precision, num_runs: int, cases: Iterable[ImageCase], task: str
) -> list[dict[str, float]]:
    """Return, for each case, the least seconds of each part; the first of the runs does not count."""
    settings = server.tuned_settings()
    graphs = Graphs(bundle, contract.load(bundle), precision, SessionSettings(settings.intra_op_threads))
    opened = open_model(graphs, Scheduler(settings.max_batch_tokens))
    timed = TimedGraphs(graphs, task)
    stand_in = cast(Graphs, timed)
    assert opened.tower is not None  # the cases are of images
    model = replace(opened, graphs=stand_in, tower=replace(opened.tower, graphs=stand_in))
    return [_least(model, timed, case, num_runs, task) for case in cases]


def _least(
    model: EmbeddingModel, timed: TimedGraphs, case: ImageCase, num_runs: int, task: str
) -> dict[str, float]:
    vision = model.manifest.vision
    assert vision is not None
    pixels = [images.resized(images.decode(file, Settings.image_max_pixels), vision) for file in case.files]
    runs = []
    for _ in range(1 + num_runs):
        timed.seconds.clear()
        model.embed(pixels, EmbedOptions(task=task))
        runs.append(dict(timed.seconds))
    return {part: min(run[part] for run in runs[1:]) for part in (TOWER, TEXT)}


def row(who: str, seconds: Seconds, few: Sizes, case: ImageCase) -> tuple[str, ...]:
    """Lay out the parts as measured and, beside them, those of the published depth."""
    full = seconds.at_depth_of(JINA_V4, few, case.patches)
    measured = (seconds.tower, seconds.text, seconds.rest, seconds.total)
    computed = (full.tower, full.text, full.total)
    rate = f"{case.num_images / full.total:.3f}"
    return f"{case.label}: {who}", *(f"{value:.3f}" for value in (*measured, *computed)), rate
