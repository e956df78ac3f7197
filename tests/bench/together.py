"""One model and two at once under the same number of clients, in turns: do two share the cores well?"""

from __future__ import annotations

import shutil
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import orjson

from service.manifest import MANIFEST_FILE, Precision
from tests.bench import cores, kinds, loops, models, tables
from tests.bench.kinds import LOADS, Kind
from tests.bench.server import MODEL, Service, serve
from tests.bench.texts import Texts
from tests.bench.wire import Request

SECOND = f"{MODEL}-again"
WARM_UP_SECONDS = 1.0
MIN_RATIO = 1.0
HEADER = (
    "precision",
    "load",
    "one model, texts/s",
    "two, texts/s",
    "ratio",
    "lowest",
    "highest",
    "others' cores",
)


@dataclass(frozen=True)
class Figures:
    """Texts a second of every turn with one model and with two."""

    one: dict[Kind, list[float]]
    two: dict[Kind, list[float]]
    other_cores: float

    def ratio(self, kind: Kind) -> float:
        """Return the median rate with two models as a multiple of that with one."""
        return statistics.median(self.two[kind]) / statistics.median(self.one[kind])


def measure(models_dir: Path, precision: Precision, found: Texts, num_rounds: int, seconds: float) -> Figures:
    """Serve a bundle under two names and send every kind of load to one of them, then half to each."""
    one: dict[Kind, list[float]] = {kind: [] for kind in Kind}
    two: dict[Kind, list[float]] = {kind: [] for kind in Kind}
    others = []
    with models.work_folder(None) as work:
        _copy(models_dir / MODEL, Path(work))
        with serve(Path(work), precision, changed={"MODELS_TO_LOAD": f"{MODEL},{SECOND}"}) as service:
            for kind in Kind:
                alone, halves = _streams(kind, found)
                for streams in (alone, halves):
                    _rate(service, streams, WARM_UP_SECONDS)
                for number in range(1, num_rounds + 1):
                    print(f"{precision}: {kind} {number}/{num_rounds}", file=sys.stderr)
                    for streams, rates in ((alone, one), (halves, two)):
                        rate, other_cores = _rate(service, streams, seconds)
                        rates[kind].append(rate)
                        others.append(other_cores)
    return Figures(one, two, max(others))


def table(found: Mapping[Precision, Figures], source: str, command: str) -> list[str]:
    """Lay out the rates and compare them."""
    rows, verdicts = [], []
    for precision, figures in found.items():
        for kind in Kind:
            pairs = zip(figures.one[kind], figures.two[kind], strict=True)
            ratios = [two / one for one, two in pairs]
            medians = [f"{statistics.median(rates[kind]):,.1f}" for rates in (figures.one, figures.two)]
            ratio = figures.ratio(kind)
            spread = [f"{value:.3f}" for value in (ratio, min(ratios), max(ratios))]
            rows.append((precision, kind, *medians, *spread, f"{figures.other_cores:.2f}"))
            verdicts.append(
                f"target of {precision}, {kind}: two models at least {MIN_RATIO:g} times one: {ratio:.3f}, "
                f"{tables.verdict(ratio >= MIN_RATIO)}"
            )
    title = f"one model and the same under two names, as many clients in all; {source}"
    return [*tables.aligned(title, command, HEADER, rows), *verdicts]


def _streams(kind: Kind, found: Texts) -> tuple[list[Iterator[Request]], list[Iterator[Request]]]:
    """Return the clients of one model, and half of them with as many of the other model."""
    number = LOADS[kind].num_clients
    first, second = (kinds.dealt(kinds.requests(kind, found, name), number) for name in (MODEL, SECOND))
    return first, [*first[::2], *second[1::2]]


def _rate(service: Service, streams: Sequence[Iterator[Request]], seconds: float) -> tuple[float, float]:
    run = partial(loops.closed, service.settings.port, streams, seconds)
    sent, used = cores.used_while([service.pid], run)
    return sent.rate(lambda request: request.num_texts), used.others


def _copy(bundle: Path, folder: Path) -> None:
    """Copy a bundle into a folder under its own name and under the second one."""
    for name in (MODEL, SECOND):
        shutil.copytree(bundle, folder / name)
        path = folder / name / MANIFEST_FILE
        path.write_bytes(orjson.dumps(orjson.loads(path.read_bytes()) | {"name": name}))
