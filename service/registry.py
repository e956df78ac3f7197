"""Names to models. Loads bundles in the background and knows which are loading, ready or failed."""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from service import host, logs
from service import manifest as contract
from service.bundles import find_bundles
from service.config import Settings
from service.embedding import EmbeddingModel, open_model
from service.errors import ModelNotFound, ModelUnavailable, ProjectError
from service.scheduler import Scheduler
from service.selection import Choice, choose
from service.session import SessionSettings

MAX_ECHO = 100  # characters of a caller's own text that an error repeats


class State(StrEnum):
    """What a bundle is doing."""

    LOADING = "loading"
    READY = "ready"
    FAILED = "failed"


@dataclass(frozen=True)
class Loaded:
    """A model that serves and the precision chosen for it."""

    model: EmbeddingModel
    choice: Choice


class Registry:
    """The models of one worker."""

    def __init__(self, settings: Settings, scheduler: Scheduler) -> None:
        """Find the bundles. Raises ConfigError when there is nothing to serve."""
        self._settings = settings
        self._scheduler = scheduler
        self._folders = find_bundles(settings)
        self._loaded: dict[str, Loaded] = {}
        self._failed: dict[str, str] = {}

    def start_loading(self) -> threading.Thread:
        """Load every bundle in a thread of its own; the service can answer meanwhile.

        The process waits for the thread at its end: ONNX Runtime does not survive being cut off in a load.
        """
        thread = threading.Thread(target=self.load, name="model-loading")
        thread.start()
        return thread

    def load(self) -> None:
        """Load every bundle; a broken one is remembered with its reason and does not stop the others."""
        for name, folder in self._folders.items():
            if not threading.main_thread().is_alive():
                return  # the process is ending
            try:
                self._loaded[name] = self._open(folder)
            except Exception as error:  # noqa: BLE001  whatever a native library raises must not end the thread
                known = isinstance(error, ProjectError)
                self._failed[name] = str(error) if known else f"{type(error).__name__}: {error}"
                logs.write(logging.ERROR, "model failed to load", model=name, reason=self._failed[name])

    def get(self, name: str) -> EmbeddingModel:
        """Return the model of a name; a hub id or another case finds the same model.

        Raises ModelNotFound, or ModelUnavailable while it is loading or after it has failed.
        """
        short = name.rpartition("/")[2].lower()
        loaded = self._loaded.get(short)
        if loaded:
            return loaded.model
        if short in self._failed:
            raise ModelUnavailable(
                f"Model {short} failed to load: {self._failed[short]}", code="model_failed"
            )
        if short in self._folders:
            raise ModelUnavailable(f"Model {short} is still loading; try again soon.", code="model_loading")
        known = ", ".join(self._loaded) or "none yet"
        raise ModelNotFound(f"Model {name[:MAX_ECHO]!r} not found. Loaded models: {known}.")

    def loaded(self) -> list[Loaded]:
        """List the models that serve."""
        return list(self._loaded.values())

    def failed(self) -> dict[str, str]:
        """Return the reasons of the bundles that could not be loaded, by name."""
        return dict(self._failed)

    def state(self) -> State:
        """Return failed if any bundle failed, else loading until all are ready."""
        if self._failed:
            return State.FAILED
        return State.READY if len(self._loaded) == len(self._folders) else State.LOADING

    def _open(self, folder: Path) -> Loaded:
        manifest = contract.load(folder)
        if self._settings.verify_hashes:
            contract.check_hashes(folder, manifest)
        choice = choose(manifest, self._settings.precision, host.instruction_set())
        session_settings = SessionSettings(num_threads=self._settings.intra_op_threads)
        model = open_model(folder, manifest, choice.precision, session_settings, self._scheduler)
        model.warm_up()
        logs.write(
            logging.INFO,
            "model ready",
            model=manifest.name,
            device="cpu",
            precision=choice.precision,
            verified="verified" if choice.verified else "unverified",
            reason=choice.reason,
            threads=session_settings.num_threads,
        )
        return Loaded(model, choice)
