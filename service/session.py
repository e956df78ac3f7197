"""Owns ONNX Runtime: opens a graph and runs it. Knows names of inputs and outputs, nothing of models."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime

from service import providers
from service.devices import CPU, Device, Kind
from service.errors import BundleError, NotOnDevice
from service.observing import Source
from service.providers import Backend

ERROR_SEVERITY = 3
MAX_REASON = 500  # characters of a native error that are worth showing
# What the library's own optimizer saves and how: small constants in the graph, all others in one file, those
# of MatMuls a second time as the processor wants them. Only for this version and this instruction set.
SAVED_DATA = "session.optimized_model_external_initializers_file_name"
SAVED_MIN_BYTES = "session.optimized_model_external_initializers_min_size_in_bytes"
SAVED_PREPACKED = "session.save_external_prepacked_constant_initializers"
INLINE_BYTES = 1024
# Packing a copy's weights on several threads is faster, but holds all of them for a moment, and each thread
# more leaves some 4 MB behind: not for large copies, nor where threads are many.
COPY_DATA_ENDING = ".data"
MAX_PARALLEL_BYTES, MAX_PARALLEL_THREADS = 1 << 30, 2
# A session keeps for its next run the most memory that any has taken: fast, as every page that is new costs
# time. But a long text takes up to a gigabyte, and computes for so long that new pages hardly count.
SHRINK_ARENA, CPU_ARENA = "memory.enable_memory_arena_shrinkage", "cpu:0"

Array = npt.NDArray[np.generic]
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class SessionSettings:
    """How a session may use the host."""

    num_threads: int
    may_pad: bool = True  # whether texts of unequal length may share a run
    num_lanes: int = 1  # narrow runs that may go beside each other, on equal parts of the threads
    max_kept_tokens: int = 1024  # rows x tokens: on the CPU a run of more gives its memory back; of all lanes
    device: Device = CPU
    source: Source = Source()
    gpu_bytes: int | None = None  # the most that the session's arena on a GPU may take; None: no limit


class Session:
    """One open graph."""

    def __init__(self, path: Path, settings: SessionSettings, *, is_prepacked: bool = False) -> None:
        """Open the graph; a prepacked one, for the CPU, is as its maker left it, optimized already.

        Raises BundleError when ONNX Runtime refuses it or its device (NotOnDevice).
        """
        self._native = _native(path, settings, is_prepacked=is_prepacked)
        self._narrow: onnxruntime.InferenceSession | None = None
        # Only a copy can be opened twice: it maps its weights, and the second session takes some 10 MB. The
        # bundle's own graph would have all of them in memory twice.
        if is_prepacked and settings.num_lanes > 1:
            num_threads = max(1, settings.num_threads // settings.num_lanes)
            self._narrow = _native(path, replace(settings, num_threads=num_threads), is_prepacked=True)
        give_memory_back()
        if not providers.is_on(self._native, settings.device):
            raise NotOnDevice(f"{path} does not run on {settings.device}: ONNX Runtime took the CPU instead")
        self.may_pad, self.source = settings.may_pad, settings.source
        self._max_kept_tokens = settings.max_kept_tokens if settings.device.kind == Kind.CPU else math.inf
        self._num_lanes = settings.num_lanes
        self._shapes = {value.name: tuple(value.shape) for value in self._native.get_outputs()}

    @property
    def output_names(self) -> tuple[str, ...]:
        """Return the outputs in the graph's order."""
        return tuple(self._shapes)

    def size_of(self, output: str) -> int:
        """Return the size of the vectors of an output, whose last axis must have one."""
        return int(self._shapes[output][-1])

    @property
    def has_narrow(self) -> bool:
        """Tell whether runs may go beside each other."""
        return self._narrow is not None

    def run(self, inputs: Mapping[str, Array], outputs: Sequence[str]) -> list[Floats]:
        """Compute the named outputs on all threads, one run at a time; a long one gives its memory back."""
        return _run(self._native, inputs, outputs, self._max_kept_tokens)

    def run_narrow(self, inputs: Mapping[str, Array], outputs: Sequence[str]) -> list[Floats]:
        """Compute the named outputs on a lane's threads; others may run beside it.

        What such runs keep together is no more than one on all threads: each a lane's part of it.
        """
        assert self._narrow, "the caller has asked has_narrow"
        return _run(self._narrow, inputs, outputs, self._max_kept_tokens / self._num_lanes)


def _run(
    native: onnxruntime.InferenceSession,
    inputs: Mapping[str, Array],
    outputs: Sequence[str],
    max_kept_tokens: float,
) -> list[Floats]:
    if _num_tokens(inputs) <= max_kept_tokens:
        computed: list[Floats] = native.run(list(outputs), dict(inputs))
    else:
        options = onnxruntime.RunOptions()
        options.add_run_config_entry(SHRINK_ARENA, CPU_ARENA)
        computed = native.run(list(outputs), dict(inputs), options)
        give_memory_back()
    return computed


def _native(path: Path, settings: SessionSettings, *, is_prepacked: bool) -> onnxruntime.InferenceSession:
    options, backend = library_options(settings), providers.backend(settings.device, settings.gpu_bytes)
    if is_prepacked:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        backend = replace(backend, disabled_optimizers=[])
        # The library packs each weight once more, to compare: in memory that is given back at once.
        options.add_session_config_entry("session.use_device_allocator_for_initializers", "1")
        if _packs_at_once(path, settings.num_threads):
            options.add_session_config_entry("session.prepack.enable_parallel", "1")
    return _open(path, options, backend)


def save_prepacked(path: Path, graph: Path, data_name: str, num_threads: int) -> None:
    """Write a graph as it is after optimizing, with its constants in a file beside it. Raises BundleError."""
    options = library_options(SessionSettings(num_threads))
    options.optimized_model_filepath = str(graph)
    options.add_session_config_entry(SAVED_DATA, data_name)
    options.add_session_config_entry(SAVED_MIN_BYTES, str(INLINE_BYTES))
    options.add_session_config_entry(SAVED_PREPACKED, "1")
    _open(path, options, providers.backend())


def library_options(settings: SessionSettings) -> onnxruntime.SessionOptions:
    """Return how the library is told to run a graph."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = settings.num_threads
    options.inter_op_num_threads = 1
    options.log_severity_level = ERROR_SEVERITY
    # A pattern is planned and kept for every new shape, and shapes always vary: it takes twice the memory
    # for a long text and saves no time.
    options.enable_mem_pattern = False
    # The library would plan that a value takes the memory of a dead one of equal shape: what is kept for that
    # cannot become anything else meanwhile. Freed instead, a third less is taken and caches stay warmer.
    options.enable_mem_reuse = False
    # Threads spin between the operators of a run, which short texts need, and sleep when no run is left.
    options.add_session_config_entry("session.intra_op.allow_spinning", "1")
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return options


def _open(path: Path, options: onnxruntime.SessionOptions, backend: Backend) -> onnxruntime.InferenceSession:
    try:
        return onnxruntime.InferenceSession(
            str(path),
            options,
            providers=backend.providers,
            disabled_optimizers=backend.disabled_optimizers or None,
        )
    except Exception as error:  # the library has one class per status code and no common parent
        raise BundleError(f"{path} cannot be opened: {str(error)[:MAX_REASON]}") from error


def _packs_at_once(copy: Path, num_threads: int) -> bool:
    data = copy.with_suffix(COPY_DATA_ENDING)
    is_small = data.exists() and data.stat().st_size <= MAX_PARALLEL_BYTES
    return is_small and num_threads <= MAX_PARALLEL_THREADS


def _num_tokens(inputs: Mapping[str, Array]) -> int:
    """Return rows x tokens of a run; each number of an image counts as one: the tower gives all back."""
    return math.prod(next(iter(inputs.values())).shape[:2])


def give_memory_back() -> None:
    """Return to the system what has been freed; only glibc keeps it, and only glibc can be asked."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def pad(sequences: Sequence[npt.NDArray[np.int64]]) -> dict[str, Array]:
    """Stack token ids on the right-padded `input_ids` and `attention_mask`, both (rows, longest) int64."""
    longest = max(len(ids) for ids in sequences)
    input_ids = np.zeros((len(sequences), longest), dtype=np.int64)
    attention_mask = np.zeros_like(input_ids)
    for row, ids in enumerate(sequences):
        input_ids[row, : len(ids)] = ids
        attention_mask[row, : len(ids)] = 1
    return {"input_ids": input_ids, "attention_mask": attention_mask}
