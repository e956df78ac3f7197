"""What those who work tell of it while they do. Knows nobody who listens, and no numbers but those told."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol


class Part(StrEnum):
    """Which of a model's graphs."""

    TEXT = "text"
    VISION = "vision"  # its tokens are cells of pictures, four patches


@dataclass(frozen=True)
class Source:
    """What a graph belongs to."""

    model: str = ""
    precision: str = ""
    part: Part = Part.TEXT


class Graph(Protocol):
    """What runs."""

    source: Source


@dataclass(frozen=True)
class Answer:
    """How a request ended."""

    route: str  # as the service spells it, whatever the caller did; empty for a path that is none
    status: int
    seconds: float
    model: str = ""
    num_tokens: int = 0  # those of `usage`


class Unserved(StrEnum):
    """Why a request was not computed to its end."""

    REFUSED = "refused"  # there was no room
    TIMED_OUT = "timed_out"
    DISCONNECTED = "disconnected"


class Observer(Protocol):
    """Takes note of what happens, from any thread, without ever waiting."""

    def answered(self, answer: Answer) -> None:
        """Note a request that has been answered."""

    def unserved(self, reason: Unserved) -> None:
        """Note a request that is not computed."""

    def queue_changed(self, num_requests: int, num_tokens: int) -> None:
        """Note that so many more, or fewer, are held and wait."""

    def waited(self, seconds: float) -> None:
        """Note how long a request was there before its first run began."""

    def ran(self, graph: Graph, num_rows: int, num_tokens: int, num_padding: int, seconds: float) -> None:
        """Note a run of so many rows, their own tokens, and those that were added to make rows equal."""

    def loaded(self, model: str, precision: str, device: str) -> None:
        """Note a model that serves from now on."""


class Nobody:
    """Listens to nothing."""

    def answered(self, answer: Answer) -> None:
        """Do nothing."""

    def unserved(self, reason: Unserved) -> None:
        """Do nothing."""

    def queue_changed(self, num_requests: int, num_tokens: int) -> None:
        """Do nothing."""

    def waited(self, seconds: float) -> None:
        """Do nothing."""

    def ran(self, graph: Graph, num_rows: int, num_tokens: int, num_padding: int, seconds: float) -> None:
        """Do nothing."""

    def loaded(self, model: str, precision: str, device: str) -> None:
        """Do nothing."""


NOBODY = Nobody()
