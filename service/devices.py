"""What sessions may run on. Knows names, opens nothing."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


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
