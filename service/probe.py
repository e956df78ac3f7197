"""`python -m service.probe`: prints, as JSON, the GPUs that a session runs on. Decides nothing.

A process of its own, because gunicorn's master must not load ONNX Runtime or CUDA before it forks.
NOTE: has met a GPU only in the shape of a fake driver yet.
"""

from __future__ import annotations

import ctypes
import json
import sys
from dataclasses import asdict
from typing import Any

from service import providers
from service.devices import Device, Kind
from service.placement import Gpu, Probed

DRIVER = "libcuda.so.1"
SUCCESS = 0


class DriverError(Exception):
    """The driver refuses; the message says what."""


def main() -> None:
    """Print what was found."""
    try:
        probed = probe(ctypes.CDLL(DRIVER))
    except OSError as error:
        probed = Probed(reason=f"the NVIDIA driver's library cannot be loaded ({error})")
    sys.stdout.write(json.dumps(asdict(probed)) + "\n")


def probe(driver: Any) -> Probed:
    """Run a session on each GPU that the driver knows."""
    try:
        found = gpus(driver)
        version = cuda_version(driver)
    except DriverError as error:
        return Probed(reason=str(error))
    if not found:
        return Probed(reason="the NVIDIA driver shows no GPU (is CUDA_VISIBLE_DEVICES set?)")
    reasons = {gpu: providers.unusable(Device(Kind.CUDA, gpu.index)) for gpu in found}
    working = tuple(gpu for gpu, reason in reasons.items() if not reason)
    if working:
        return Probed(working)
    return Probed(reason=f"{reasons[found[0]]} (the driver is for CUDA {version})")


def gpus(driver: Any) -> list[Gpu]:
    """List the GPUs and their free memory. Raises DriverError."""
    count = ctypes.c_int()
    _call(driver, "cuInit", 0)
    _call(driver, "cuDeviceGetCount", ctypes.byref(count))
    return [Gpu(index, _free_bytes(driver, index)) for index in range(count.value)]


def cuda_version(driver: Any) -> str:
    """Return the newest CUDA version that the driver knows. Raises DriverError."""
    version = ctypes.c_int()
    _call(driver, "cuDriverGetVersion", ctypes.byref(version))
    return f"{version.value // 1000}.{version.value % 1000 // 10}"


def _free_bytes(driver: Any, index: int) -> int:
    context, device = ctypes.c_void_p(), ctypes.c_int()
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    _call(driver, "cuDeviceGet", ctypes.byref(device), index)
    _call(driver, "cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
    _call(driver, "cuCtxSetCurrent", context)
    _call(driver, "cuMemGetInfo_v2", ctypes.byref(free), ctypes.byref(total))
    return free.value


def _call(driver: Any, function: str, *arguments: Any) -> None:
    status = getattr(driver, function)(*arguments)
    if status != SUCCESS:
        message = ctypes.c_char_p()
        driver.cuGetErrorString(status, ctypes.byref(message))
        text = (message.value or b"unknown error").decode(errors="replace")
        raise DriverError(f"the NVIDIA driver refuses {function}: {text} ({status})")


if __name__ == "__main__":
    main()
