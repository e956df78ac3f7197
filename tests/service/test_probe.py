"""Asking the driver: a fake one with GPUs, and this host's own, whatever it is."""

from __future__ import annotations

import json
import subprocess
from typing import Any

import pytest

from service import placement, probe, providers
from service.devices import Device
from service.placement import Gpu, Probed
from tests.processes import PROJECT

NO_DEVICE = 100


class FakeDriver:
    """Answers as libcuda does, through the references it is given."""

    def __init__(self, free: list[int], status: int = 0) -> None:
        self.free, self.status, self.current = free, status, -1

    def cuInit(self, flags: int) -> int:  # noqa: N802  the driver's own names
        return self.status

    def cuDeviceGetCount(self, count: Any) -> int:  # noqa: N802
        count._obj.value = len(self.free)
        return 0

    def cuDriverGetVersion(self, version: Any) -> int:  # noqa: N802
        version._obj.value = 13010
        return 0

    def cuDeviceGet(self, device: Any, index: int) -> int:  # noqa: N802
        device._obj.value = index
        return 0

    def cuDevicePrimaryCtxRetain(self, context: Any, device: Any) -> int:  # noqa: N802
        context._obj.value = device.value + 1
        return 0

    def cuCtxSetCurrent(self, context: Any) -> int:  # noqa: N802
        self.current = context.value - 1
        return 0

    def cuMemGetInfo_v2(self, free: Any, total: Any) -> int:  # noqa: N802
        free._obj.value, total._obj.value = self.free[self.current], 10**11
        return 0

    def cuGetErrorString(self, status: int, message: Any) -> int:  # noqa: N802
        message._obj.value = b"no CUDA-capable device is detected"
        return 0


def test_gpus_that_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(providers, "unusable", lambda device: "")
    assert probe.probe(FakeDriver([7, 9 << 33])) == Probed((Gpu(0, 7), Gpu(1, 9 << 33)))


def test_a_gpu_that_does_not_work_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(providers, "unusable", lambda device: "broken" if device.index == 0 else "")
    assert probe.probe(FakeDriver([7, 9])) == Probed((Gpu(1, 9),))


def test_none_that_works_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def unusable(device: Device) -> str:
        return f"a session on {device} fails: no kernel image"

    monkeypatch.setattr(providers, "unusable", unusable)
    assert probe.probe(FakeDriver([7, 9])).reason == (
        "a session on cuda:0 fails: no kernel image (the driver is for CUDA 13.1)"
    )


@pytest.mark.parametrize(
    ("driver", "reason"),
    [
        (
            FakeDriver([], NO_DEVICE),
            "the NVIDIA driver refuses cuInit: no CUDA-capable device is detected (100)",
        ),
        (FakeDriver([]), "the NVIDIA driver shows no GPU (is CUDA_VISIBLE_DEVICES set?)"),
    ],
)
def test_no_gpu_is_a_reason(driver: FakeDriver, reason: str) -> None:
    assert probe.probe(driver) == Probed(reason=reason)


def test_the_command_prints_one_line_of_json() -> None:
    """On whatever host: either GPUs or a reason, never both."""
    ended = subprocess.run(
        placement.PROBE_COMMAND, cwd=PROJECT, capture_output=True, text=True, timeout=120, check=True
    )
    (line,) = ended.stdout.splitlines()
    found = json.loads(line)
    assert bool(found["gpus"]) != bool(found["reason"])
