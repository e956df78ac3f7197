"""How ONNX Runtime reaches a device: providers, options, and whether a session runs there. Knows no model.

NOTE: the options for CUDA are checked for their names against the library, but have not run on a GPU yet.
"""

from __future__ import annotations

import contextlib
import functools
import sys
from dataclasses import dataclass

import numpy as np
import onnxruntime

from service.devices import CPU, Device, Kind

RUNTIME_VERSION: str = onnxruntime.__version__
NAMES = {Kind.CPU: "CPUExecutionProvider", Kind.CUDA: "CUDAExecutionProvider"}
# Faster apart than fused on the CPU (5 times per call), and the optimizer would fuse them again. On CUDA the
# fused operator is the fast one.
DISABLED_OPTIMIZERS = {Kind.CPU: ["SkipLayerNormFusion"], Kind.CUDA: list[str]()}
CUDA_OPTIONS = {
    # Doubling, the default, keeps up to twice the memory that the longest text has ever needed.
    "arena_extend_strategy": "kSameAsRequested",
    # The default times every algorithm for every new shape, and shapes always vary.
    "cudnn_conv_algo_search": "HEURISTIC",
    # 10 bits of mantissa: fp32 would be no more exact than fp16. Whoever wants speed takes fp16 or bf16.
    "use_tf32": "0",
}
# y = x + x over one float: the smallest graph that CUDA has to compute something for.
DOUBLING = (
    b'\x08\x08\x12\x00:5\n\x0e\n\x01x\n\x01x\x12\x01y"\x03Add\x12\x01g'
    b"Z\x0f\n\x01x\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x01"
    b"b\x0f\n\x01y\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x01B\x04\n\x00\x10\r"
)
QUIET = 4  # a provider that cannot be loaded is what is being asked

Provider = str | tuple[str, dict[str, str]]


@dataclass(frozen=True)
class Backend:
    """What an InferenceSession is made with to run on a device."""

    providers: list[Provider]
    disabled_optimizers: list[str]


def backend(device: Device = CPU, gpu_bytes: int | None = None) -> Backend:
    """Return how to make a session for a device; `gpu_bytes` limits its arena there.

    A session on CUDA has the CPU beside it, for the shapes that it computes; its libraries are loaded here.
    """
    cpu: Provider = NAMES[Kind.CPU]
    disabled = DISABLED_OPTIMIZERS[device.kind]
    if device.kind == Kind.CPU:
        return Backend([cpu], disabled)
    load_libraries()
    options = CUDA_OPTIONS | {"device_id": str(device.index)}
    if gpu_bytes is not None:
        options["gpu_mem_limit"] = str(gpu_bytes)
    return Backend([(NAMES[Kind.CUDA], options), cpu], disabled)


def is_on(session: onnxruntime.InferenceSession, device: Device) -> bool:
    """Tell whether a session has the device's provider: ONNX Runtime takes the CPU without an error."""
    return NAMES[device.kind] in session.get_providers()


def unusable(device: Device) -> str:
    """Return why no session runs on a device; empty: one has, and its answer was right."""
    name = NAMES[device.kind]
    if name not in onnxruntime.get_available_providers():
        return f"the installed onnxruntime {RUNTIME_VERSION} has no {name}: install onnxruntime-gpu"
    options = onnxruntime.SessionOptions()
    options.log_severity_level = QUIET
    try:
        session = onnxruntime.InferenceSession(DOUBLING, options, providers=backend(device).providers)
        if not is_on(session, device):
            return f"ONNX Runtime {RUNTIME_VERSION} cannot load its {name}"
        (doubled,) = session.run(["y"], {"x": np.array([3], dtype=np.float32)})
    except Exception as error:  # noqa: BLE001  the library has one class per status code and no common parent
        return f"a session on {device} fails: {error}"
    return "" if doubled.tolist() == [6] else f"a session on {device} computes 3 + 3 = {doubled.tolist()}"


@functools.cache
def load_libraries() -> None:
    """Load CUDA and cuDNN from their wheels, if they are installed so; what is missing shows in a session."""
    with contextlib.redirect_stdout(sys.stderr):  # where it says what it did not find
        onnxruntime.preload_dlls()
