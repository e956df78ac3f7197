"""Owns ONNX Runtime: opens a graph and runs it. Knows names of inputs and outputs, nothing of models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime

from service import providers
from service.devices import CPU, Device
from service.errors import BundleError, NotOnDevice

ERROR_SEVERITY = 3
MAX_REASON = 500  # characters of a native error that are worth showing

Array = npt.NDArray[np.generic]
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class SessionSettings:
    """How a session may use the host."""

    num_threads: int
    may_pad: bool = True  # whether texts of unequal length may share a run
    device: Device = CPU
    gpu_bytes: int | None = None  # the most that the session's arena on a GPU may take; None: no limit
    cache_dir: Path | None = None  # where prepacked copies of graphs are kept; None: nowhere


class Session:
    """One open graph."""

    def __init__(self, path: Path, settings: SessionSettings) -> None:
        """Open the graph. Raises BundleError when ONNX Runtime refuses it or its device (NotOnDevice)."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = settings.num_threads
        options.inter_op_num_threads = 1
        options.log_severity_level = ERROR_SEVERITY
        # A pattern is planned and kept for every new shape, and shapes always vary: it takes twice the memory
        # for a long text and saves no time.
        options.enable_mem_pattern = False
        # Threads spin between the operators of a run, which short texts need, and sleep when no run is left.
        options.add_session_config_entry("session.intra_op.allow_spinning", "1")
        options.add_session_config_entry("session.force_spinning_stop", "1")
        backend = providers.backend(settings.device, settings.gpu_bytes)
        try:
            self._native = onnxruntime.InferenceSession(
                str(path),
                options,
                providers=backend.providers,
                disabled_optimizers=backend.disabled_optimizers,
            )
        except Exception as error:  # the library has one class per status code and no common parent
            raise BundleError(f"{path} cannot be opened: {str(error)[:MAX_REASON]}") from error
        if not providers.is_on(self._native, settings.device):
            raise NotOnDevice(f"{path} does not run on {settings.device}: ONNX Runtime took the CPU instead")
        self.may_pad = settings.may_pad
        self.output_names = tuple(value.name for value in self._native.get_outputs())

    def run(self, inputs: Mapping[str, Array], outputs: Sequence[str]) -> list[Floats]:
        """Compute the named outputs."""
        computed: list[Floats] = self._native.run(list(outputs), dict(inputs))
        return computed


def pad(sequences: Sequence[npt.NDArray[np.int64]]) -> dict[str, Array]:
    """Stack token ids on the right-padded `input_ids` and `attention_mask`, both (rows, longest) int64."""
    longest = max(len(ids) for ids in sequences)
    input_ids = np.zeros((len(sequences), longest), dtype=np.int64)
    attention_mask = np.zeros_like(input_ids)
    for row, ids in enumerate(sequences):
        input_ids[row, : len(ids)] = ids
        attention_mask[row, : len(ids)] = 1
    return {"input_ids": input_ids, "attention_mask": attention_mask}
