"""What sessions may run on, and what DEVICE asks for. Knows names, opens nothing."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum

WORDS = re.compile(r"(?P<kind>auto|cpu|cuda)|cuda:(?P<index>\d{1,3})")


class Kind(StrEnum):
    """Processors."""

    CPU = "cpu"
    CUDA = "cuda"


@dataclass(frozen=True)
class Device:
    """A processor and its number among those of its kind."""

    kind: Kind = Kind.CPU
    index: int = 0

    def __str__(self) -> str:
        """Return its name as DEVICE spells it."""
        return self.kind if self.kind == Kind.CPU else f"{self.kind}:{self.index}"


CPU = Device()


@dataclass(frozen=True)
class Wish:
    """What DEVICE asks for; a `kind` of None: CUDA where it works, else the CPU."""

    kind: Kind | None = None
    index: int | None = None  # None: any of its kind

    def __str__(self) -> str:
        """Return the wish as DEVICE spells it."""
        number = "" if self.index is None else f":{self.index}"
        return f"{self.kind or 'auto'}{number}"


def parse(word: str) -> Wish:
    """Read auto, cpu, cuda or cuda:N. Raises ValueError."""
    found = WORDS.fullmatch(word.lower())
    if not found:
        raise ValueError(f"{word!r} is not auto, cpu, cuda or cuda:N")
    if found["index"] is not None:
        return Wish(Kind.CUDA, int(found["index"]))
    return Wish(None if found["kind"] == "auto" else Kind(found["kind"]))
