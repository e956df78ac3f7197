"""Names to models. Loads bundles in the background and knows which are loading, ready or failed."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from dataclasses import replace
from enum import StrEnum

from service import commands, footprint, host, lanes, loading, logs, providers, status
from service.bundles import Bundle, find_bundles
from service.config import Settings
from service.copies import Copies, digest_of
from service.devices import CPU
from service.devices import Kind as DeviceKind
from service.embedding import EmbeddingModel
from service.errors import BundleError, InvalidRequest, ModelNotFound, ModelUnavailable, ProjectError
from service.files import check_hashes
from service.graphs import Graphs
from service.loading import Loaded, Model
from service.manifest import Kind, Manifest, Precision
from service.observing import NOBODY, Observer, Source
from service.placement import Placement
from service.reranking import Reranker
from service.scheduler import Scheduler
from service.selection import Choice, Site, choose
from service.session import SessionSettings

CACHE_FOLDER = ".cache"  # in the models folder; its dot tells it from bundles
KINDS = {None: "a model", Kind.EMBEDDING: "an embedding model", Kind.RERANKER: "a reranker"}
MAX_ECHO = 100  # characters of a caller's own text that an error repeats
ROUTES = {Kind.EMBEDDING: "/v1/embeddings", Kind.RERANKER: "/v1/rerank"}  # where a kind of model answers
UNLIMITED = Placement(reason="not placed")  # the CPU, with all the memory that a model may want


class State(StrEnum):
    """What a bundle is doing."""

    LOADING = "loading"
    READY = "ready"
    FAILED = "failed"


class Registry:
    """The models of one worker."""

    def __init__(
        self,
        settings: Settings,
        scheduler: Scheduler,
        placement: Placement = UNLIMITED,
        observer: Observer = NOBODY,
    ) -> None:
        """Find the bundles. Raises ConfigError when there is nothing to serve."""
        self._settings = settings
        self._placement = placement
        self._is_broken = False  # a device that DEVICE names does not work
        self._scheduler, self._observer = scheduler, observer
        self._num_lanes = lanes.count(settings.intra_op_threads)
        self._bundles = find_bundles(settings)
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
        self._check_device()
        for name, bundle in self._bundles.items():
            if not threading.main_thread().is_alive():
                return  # the process is ending
            try:
                self._loaded[name] = self._open(bundle)
            except Exception as error:  # noqa: BLE001  whatever a native library raises must not end the thread
                if not threading.main_thread().is_alive():
                    return
                known = isinstance(error, ProjectError)
                self._failed[name] = str(error) if known else f"{type(error).__name__}: {error}"
                logs.write(logging.ERROR, "model failed to load", model=name, reason=self._failed[name])

    def embedding(self, name: str) -> EmbeddingModel:
        """Return an embedding model, as `get`. Raises InvalidRequest for a model of another kind."""
        model = self.get(name, Kind.EMBEDDING)
        if not isinstance(model, EmbeddingModel):
            raise _wrong_kind(model)
        return model

    def reranker(self, name: str) -> Reranker:
        """Return a reranker, as `get`. Raises InvalidRequest for a model of another kind."""
        model = self.get(name, Kind.RERANKER)
        if not isinstance(model, Reranker):
            raise _wrong_kind(model)
        return model

    def get(self, name: str, wanted: Kind | None = None) -> Model:
        """Return the model of a name; a hub id or another case finds the same model.

        Where there is none, those of the kind that is wanted are named.
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
        if short in self._bundles:
            raise ModelUnavailable(f"Model {short} is still loading; try again soon.", code="model_loading")
        raise self._not_found(name, wanted)

    def _not_found(self, name: str, wanted: Kind | None) -> ModelNotFound:
        loaded = {id_: each.model.manifest.kind for id_, each in self._loaded.items()}
        fitting = [id_ for id_, kind in loaded.items() if wanted in (None, kind)]
        if len(fitting) < len(loaded):
            what = f"is {KINDS[wanted]}"
            remedy = (
                f". Name one that {what} ({', '.join(fitting)}), or"
                if fitting
                else f", none of which {what}:"
            )
        else:
            remedy = ". Name one of these, or" if loaded else ":"
        hint, known = commands.did_you_mean(name.rpartition("/")[2], fitting), ", ".join(loaded) or "none yet"
        return ModelNotFound(
            f"Model {name[:MAX_ECHO]!r} not found.{hint} Loaded models: {known}{remedy} "
            "have the server bake and load yours: python -m convert NAME, then a reload (HUP)."
        )

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
        return State.READY if len(self._loaded) == len(self._bundles) else State.LOADING

    @property
    def placement(self) -> Placement:
        """Return where the models run; once they have begun to load, a device that has been tried."""
        return self._placement

    def _check_device(self) -> None:
        """Try the GPU; where it does not work, go to the CPU, or fail every model if DEVICE names it."""
        place = self._placement
        broken = providers.unusable(place.device) if place.device.kind == DeviceKind.CUDA else ""
        if broken:
            device = place.device if place.is_required else CPU
            self._placement = replace(place, device=device, reason=f"{place.device} does not work: {broken}")
        self._is_broken = bool(broken) and place.is_required
        logs.write(
            logging.INFO,
            "worker placed",
            device=self._placement.device,
            reason=self._placement.reason,
            memory_bytes=self._placement.memory_bytes,
            threads=self._settings.intra_op_threads,
        )

    def _open(self, bundle: Bundle) -> Loaded:
        digest = digest_of(bundle.folder)  # before anything is read: at the end it must still be this one
        manifest = bundle.load()
        if self._settings.verify_hashes:
            check_hashes(bundle.folder, manifest.files)
        place, tasks = self._placement, _first_tasks(manifest, bundle)
        if self._is_broken:
            raise BundleError(f"{place.reason} (DEVICE)")

        cache_dir = self._settings.cache_dir or self._settings.models_dir / CACHE_FOLDER
        copies = Copies(cache_dir, bundle.folder, manifest, digest, self._settings.verify_hashes)

        def open_choice(choice: Choice) -> Model:
            settings = SessionSettings(
                self._settings.intra_op_threads,
                num_lanes=self._num_lanes,
                max_kept_tokens=self._settings.max_batch_tokens,
                device=choice.device,
                gpu_bytes=place.gpu_bytes,
                source=Source(manifest.name, choice.precision),
            )
            graphs = Graphs(bundle.folder, manifest, choice.precision, settings, copies)
            model = loading.open_warm(graphs, tasks, self._scheduler)
            copies.check_unchanged()
            return model

        choices = choose(manifest, self._settings.precision, self._site(), self._needs(copies, tasks))
        loaded = loading.first_that_runs(manifest.name, choices, open_choice)
        fields = status.of_choice(loaded.choice) | status.of_resources(loaded)
        fields["verified"] = "verified" if loaded.choice.verified else "unverified"
        logs.write(logging.INFO, "model ready", model=manifest.name, **fields)
        self._observer.loaded(manifest.name, loaded.choice.precision, str(loaded.choice.device))
        return loaded

    def _needs(self, copies: Copies, tasks: Sequence[str | None]) -> dict[Precision, int]:
        """Estimate what each precision takes of the host's memory: less where workers share copies."""
        manifest, needs = copies.manifest, dict[Precision, int]()
        is_on_cpu = self._placement.device.kind == DeviceKind.CPU  # all workers are, else only some may be
        has_lanes, batch_tokens = self._num_lanes > 1, self._settings.max_batch_tokens
        for precision in manifest.precisions:
            files = footprint.graph_files(manifest, precision, tasks)
            is_shared = is_on_cpu and all(map(copies.can_share, files))
            sharers = (self._settings.workers or 1) if is_shared else 1
            num_sessions = 2 if is_shared and has_lanes else 1  # a copy has a narrow session too
            needs[precision] = footprint.needed_bytes(
                manifest, precision, tasks, batch_tokens, sharers, num_sessions
            )
        return needs

    def _site(self) -> Site:
        """Say what is left for one more model: memory is shared out by estimates, equal in every worker."""
        place = self._placement
        taken = sum(loaded.choice.needed_bytes for loaded in self._loaded.values())
        room = None if place.memory_bytes is None else place.memory_bytes - taken
        return Site(host.instruction_set(), place.device, place.is_required, room)


def _first_tasks(manifest: Manifest, bundle: Bundle) -> Sequence[str | None]:
    """Return the tasks to open at start: those a setting names, else the default one; the others wait."""
    if manifest.serves_all_tasks:
        return (None,)
    wanted = bundle.tasks or (manifest.default_task or manifest.task_names[0],)
    return tuple(dict.fromkeys(task.variant for task in manifest.tasks_of(wanted)))


def _wrong_kind(model: Model) -> InvalidRequest:
    name, kind = model.manifest.name, model.manifest.kind
    article = "an" if kind == Kind.EMBEDDING else "a"
    return InvalidRequest(
        f"Model {name} is {article} {kind} model: send it to {ROUTES[kind]}.",
        param="model",
        code="wrong_model_type",
    )
