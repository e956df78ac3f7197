"""The texts that ship with the converter: those a search may read, and those that judge what it found."""

from __future__ import annotations

import json
from pathlib import Path

FOLDER = Path(__file__).parent / "data"
SEARCH_FILE, EVALUATION_FILE = FOLDER / "sentences.jsonl", FOLDER / "evaluation.jsonl"


def search() -> list[str]:
    """Read the texts that calibration and the search for a mixture use."""
    return _read(SEARCH_FILE)


def evaluation() -> list[str]:
    """Read the texts that quality is measured on. Nothing is chosen by them."""
    return _read(EVALUATION_FILE)


def _read(path: Path) -> list[str]:
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line)["text"] for line in lines]
