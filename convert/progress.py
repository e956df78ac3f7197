"""Progress bars. Knows how a terminal and a log file differ."""

from __future__ import annotations

import sys
from typing import Any

from tqdm import tqdm

TERMINAL_SECONDS, FILE_SECONDS = 0.1, 5.0  # between two states of a bar: a log file needs few


def bar(total: int, description: str, unit: str) -> tqdm[Any]:
    """Make a bar on standard error; bytes are shown in thousands and millions."""
    seconds = TERMINAL_SECONDS if sys.stderr.isatty() else FILE_SECONDS
    return tqdm(total=total, desc=description, unit=unit, unit_scale=unit == "B", mininterval=seconds)
