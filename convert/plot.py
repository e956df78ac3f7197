"""Draws what a bundle's variants cost in quality and give in speed. Owns matplotlib, which is optional."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from convert import quality
from service.errors import BakeError
from service.manifest import Manifest, Precision, Variant

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INCHES, DOTS_PER_INCH = (7.0, 4.5), 120
SMALLEST_LOSS = 1e-6  # what is lost at most where no loss is seen: the figures have six digits


@dataclass(frozen=True)
class Point:
    """A variant: how many times as fast as fp32, and how far from it."""

    label: str
    precision: Precision
    speed: float
    loss: float  # 1 - mean cosine, or rank correlation
    is_verified: bool


def speed_quality(manifest: Manifest, path: Path) -> None:
    """Write a PNG of the variants' loss over their speed.

    Raises BakeError without matplotlib, and where fewer than two variants have been timed.
    """
    points = list(points_of(manifest))
    if len(points) < 2:
        raise BakeError(f"{manifest.name}: fewer than two variants have speed and quality: nothing to draw")
    check_installed()
    from matplotlib.figure import Figure

    figure = Figure(figsize=INCHES, dpi=DOTS_PER_INCH, layout="constrained")
    axes = figure.add_subplot()
    precisions = list(dict.fromkeys(point.precision for point in points))
    for number, precision in enumerate(precisions):
        same = [point for point in points if point.precision == precision]
        for point in same:
            marker = "o" if point.is_verified else "x"
            axes.plot(point.speed, point.loss, marker, color=f"C{number}")
        worst = max(same, key=lambda point: point.loss)
        axes.annotate(worst.label, (worst.speed, worst.loss), (6, 4), textcoords="offset points")
    is_ranked = manifest.variants[0].rank_quality is not None
    if not is_ranked:
        _draw_floors(axes, precisions)
    axes.set_yscale("log")
    axes.margins(x=0.2, y=0.2)
    axes.set_xlabel("speed at 8x128, fp32 = 1")
    axes.set_ylabel(f"1 - mean {'rank correlation' if is_ranked else 'cosine'} to fp32")
    axes.set_title(f"{manifest.name} (x: not verified)")
    figure.savefig(path)


def _draw_floors(axes: Axes, precisions: Sequence[Precision]) -> None:
    for precision, floors in {Precision.INT8: quality.FLOORS, **quality.FLOORS_OF}.items():
        if precision in precisions:
            floor = 1 - floors.mean_cosine
            axes.axhline(floor, linestyle="--", linewidth=1, color="grey")
            axes.annotate(
                f"floor of {precision}",
                (0.99, floor),
                (0, 3),
                xycoords=axes.get_yaxis_transform(),
                textcoords="offset points",
                ha="right",
                color="grey",
            )


def check_installed() -> None:
    """Raise BakeError with the remedy where matplotlib is missing."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise BakeError(f"--plot needs matplotlib: {sys.executable} -m pip install matplotlib") from error


def points_of(manifest: Manifest) -> Iterator[Point]:
    """List the variants that have been measured, each beside the fp32 one of its task."""
    exact = {
        variant.task: variant.speed
        for variant in manifest.variants
        if variant.precision == Precision.FP32 and variant.speed
    }
    for variant in manifest.variants:
        base, loss = exact.get(variant.task), _loss(variant)
        if base is None or variant.speed is None or loss is None:
            continue
        label = " ".join(filter(None, (variant.task, variant.precision)))
        ratio = variant.speed.tokens_per_second / base.tokens_per_second
        yield Point(label, variant.precision, ratio, max(loss, SMALLEST_LOSS), variant.verified)


def _loss(variant: Variant) -> float | None:
    if variant.rank_quality:
        return 1 - variant.rank_quality.rank_correlation
    return 1 - variant.quality.mean_cosine if variant.quality else None
