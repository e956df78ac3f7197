"""Figures to aligned text. Knows no measurement."""

from __future__ import annotations

from collections.abc import Sequence

Row = Sequence[str]


def aligned(title: str, command: str, header: Row, rows: Sequence[Row]) -> list[str]:
    """Lay out a table under its title and the command that made it, columns after the first to the right."""
    widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]
    return ["", title, f"$ {command}", *(_line(row, widths) for row in (header, *rows))]


def verdict(is_met: bool) -> str:
    """Name the outcome of a comparison with a target."""
    return "met" if is_met else "MISSED"


def _line(row: Row, widths: Sequence[int]) -> str:
    first, *others = (
        cell.rjust(width) if column else cell.ljust(width)
        for column, (cell, width) in enumerate(zip(row, widths, strict=True))
    )
    return "  ".join((first, *others)).rstrip()
