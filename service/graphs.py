"""The graphs of a bundle at one precision, opened at start or when a task is first used. No tokens here."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from service import logs
from service.copies import Copies
from service.devices import Kind
from service.errors import BundleError, ModelUnavailable
from service.files import bake_again
from service.manifest import Manifest, Precision
from service.observing import Part
from service.session import Session, SessionSettings

# Graphs that round activations to 8 bits at run time. Attention over padded rows differs in the last bit from
# attention without padding; one rounding that tips over tips others, and with its neighbours the answer for a
# text would move by as much as 8 bits cost at all (cosine 0.998). Unpadded runs are equal to the last bit.
ROUNDS_ACTIVATIONS = frozenset({Precision.INT8, Precision.INT8_BLOCK, Precision.INT4})
WARM_UP_TEXTS = ("warm-up", "a somewhat longer warm-up text")  # of two lengths, so that one is padded


@dataclass(frozen=True)
class Graphs:
    """A bundle's graphs. Tasks that share a graph share its session."""

    folder: Path
    manifest: Manifest
    precision: Precision
    settings: SessionSettings
    copies: Copies | None = None  # prepacked, shared by all workers; None: the bundle's own graphs are opened
    _sessions: dict[str, Session] = field(default_factory=dict)  # by file
    _opening: threading.Lock = field(default_factory=threading.Lock)

    def open(self, tasks: Sequence[str | None]) -> None:
        """Open the graphs of tasks. Raises BundleError when one is missing or broken."""
        for task in tasks:
            self._session(task)

    def open_tasks(self) -> list[str | None]:
        """List one task of every open graph; None where a graph serves all."""
        return [
            variant.task
            for variant in self.manifest.variants
            if variant.precision == self.precision and variant.file in self._sessions
        ]

    def open_files(self) -> frozenset[str]:
        """Name the files of the graphs that are open."""
        return frozenset(self._sessions)

    def session(self, task: str | None) -> Session:
        """Return a task's session, opening it first if need be. Raises ModelUnavailable when it is broken."""
        try:
            return self._session(task)
        except BundleError as error:
            name = self.manifest.name
            logs.write(logging.ERROR, "task failed to load", model=name, task=task, reason=str(error))
            raise ModelUnavailable(
                f"Model {name} failed to load task {task}: {error}", code="model_failed"
            ) from error

    def vision_session(self) -> Session:
        """Return the session of the vision tower, opened when first asked for. Raises ModelUnavailable."""
        name, vision = self.manifest.name, self.manifest.vision
        try:
            if vision is None:
                raise BundleError(f"{self.folder} has no vision tower")
            return self._open(vision.file, may_pad=True, part=Part.VISION)
        except BundleError as error:
            logs.write(logging.ERROR, "vision tower failed to load", model=name, reason=str(error))
            raise ModelUnavailable(
                f"Model {name} failed to load its vision tower: {error}", code="model_failed"
            ) from error

    def _session(self, task: str | None) -> Session:
        may_pad = self.precision not in ROUNDS_ACTIVATIONS and not self.manifest.never_pads
        return self._open(self._file(task), may_pad=may_pad)

    def _open(self, file: str, *, may_pad: bool, part: Part = Part.TEXT) -> Session:
        if file not in self._sessions:
            with self._opening:
                if file not in self._sessions:
                    source = replace(self.settings.source, part=part)
                    # The tower has all threads to itself: a second session would only hold memory.
                    num_lanes = self.settings.num_lanes if part == Part.TEXT else 1
                    settings = replace(self.settings, may_pad=may_pad, num_lanes=num_lanes, source=source)
                    session, is_copy = self._load(file, settings)
                    self._sessions[file] = session
                    name = self.manifest.name
                    logs.write(logging.INFO, "graph opened", model=name, file=file, is_copy=is_copy)
        return self._sessions[file]

    def _load(self, file: str, settings: SessionSettings) -> tuple[Session, bool]:
        """Open the copy of a graph where it has one, else the bundle's own; tell which."""
        if self.copies and settings.device.kind == Kind.CPU and (copy := self.copies.find(file)):
            try:
                return Session(copy, settings, is_prepacked=True), True
            except BundleError as error:
                self.copies.discard(file, str(error))
        if self.copies and settings.device.kind == Kind.CPU:
            self.copies.check_own(file)
        session = Session(self.folder / file, settings)
        if self.copies:
            self.copies.check_unchanged()  # a copy is of this bundle by its name; another has the same files
        return session, False

    def _file(self, task: str | None) -> str:
        for variant in self.manifest.variants:
            if variant.precision == self.precision and variant.task in (task, None):
                return variant.file
        raise BundleError(
            f"{self.folder} has no {self.precision} graph of task {task}: {bake_again(self.folder)}"
        )
