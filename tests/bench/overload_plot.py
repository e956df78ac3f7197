"""Draws the overload curve. Needs matplotlib, which the tests bring; measures nothing."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure

from service.manifest import Precision
from tests.bench.overload import MAX_REFUSAL_MILLISECONDS, PERCENTILES, Figures
from tests.bench.server import MODEL

INCHES, DOTS_PER_INCH = (7.0, 6.5), 120


def draw(figures: Figures, precision: Precision, path: Path) -> None:
    """Write a PNG of rates and latencies over the offered load."""
    figure = Figure(figsize=INCHES, dpi=DOTS_PER_INCH, layout="constrained")
    rates, latencies = figure.subplots(2, 1, sharex=True)
    factors = [level.factor for level in figures.levels]
    offered = [level.offered_per_second for level in figures.levels]
    rates.plot(factors, offered, ":", color="grey", label="offered")
    rates.plot(factors, [level.accepted_per_second for level in figures.levels], "o-", label="accepted (200)")
    rates.plot(factors, [level.refused_per_second for level in figures.levels], "s-", label="refused (429)")
    rates.set_ylabel("requests/s")
    rates.legend()
    for percentile, style in enumerate(("o-", "o--")):
        values = [level.accepted[percentile] for level in figures.levels]
        latencies.plot(factors, values, style, color="C0", label=f"accepted, p{PERCENTILES[percentile]}")
    values = [level.refused[1] for level in figures.levels]
    latencies.plot(factors, values, "s--", color="C1", label="refused, p99")
    over = [level for level in figures.levels if level.factor > 1]
    for levels, limits, what in (
        (over, [figures.bound_milliseconds(level) for level in over], "a full queue and a batch"),
        (figures.levels, [MAX_REFUSAL_MILLISECONDS] * len(factors), "limit of refusals"),
    ):
        places = [level.factor for level in levels]
        latencies.plot(places, limits, "--", linewidth=1, color="grey")
        latencies.annotate(what, (places[0], limits[0]), (0, 3), textcoords="offset points", color="grey")
    latencies.set_yscale("log")
    latencies.set_ylabel("ms since a request was due")
    latencies.set_xlabel("offered load, capacity = 1")
    latencies.legend()
    waiting = f"{figures.max_queue_tokens:,} tokens may wait"
    figure.suptitle(f"{MODEL} in {precision}, requests of 1 to 8 texts, {waiting}")
    figure.savefig(path)
