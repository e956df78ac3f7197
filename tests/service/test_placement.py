"""Sharing out GPUs and memory among workers; what a probe says, made up and, on this host, real."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

from service import devices, placement
from service.devices import CPU, Device, Kind, Wish
from service.errors import ConfigError
from service.placement import Gpu, Placement, Plan, Probed
from tests.processes import PROJECT, environment

ROOM = 10_000_000_000
NO_GPU = Probed(reason="this host has no NVIDIA driver")
TWO_GPUS = Probed((Gpu(0, 80_000_000_000), Gpu(1, 40_000_000_000)))
AUTO, ON_CPU, CUDA = Wish(), Wish(Kind.CPU), Wish(Kind.CUDA)


@pytest.fixture(autouse=True)
def room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.host.available_memory", lambda: ROOM)


def never() -> Probed:
    raise AssertionError("a start on the CPU does not pay for a probe")


def test_the_cpu_is_not_probed() -> None:
    made = placement.plan(ON_CPU, 2, never)
    assert made.num_workers == 2
    (place,) = made.places
    assert (place.device, place.reason) == (CPU, "set by DEVICE")
    assert place.memory_bytes == ROOM // 2 - placement.PROCESS_BYTES


def test_unknown_memory_stays_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.host.available_memory", lambda: None)
    assert placement.plan(ON_CPU, 2).places[0].memory_bytes is None


def test_auto_without_a_gpu_is_the_cpu_with_the_reason() -> None:
    made = placement.plan(AUTO, None, lambda: NO_GPU)
    assert made.num_workers == 1
    assert [(place.device, place.reason, place.is_required) for place in made.places] == [
        (CPU, NO_GPU.reason, False)
    ]


@pytest.mark.parametrize(
    ("wish", "probed", "reason"),
    [
        (
            CUDA,
            NO_GPU,
            r"DEVICE is cuda, but this host has no NVIDIA driver; .*CUDA 13.*pip install '\.\[gpu\]'",
        ),
        (Wish(Kind.CUDA, 1), NO_GPU, "DEVICE is cuda:1, but this host has no NVIDIA driver"),
        (Wish(Kind.CUDA, 2), TWO_GPUS, "DEVICE is cuda:2, but this host has only cuda:0, cuda:1"),
    ],
)
def test_cuda_that_is_not_there_stops_the_start(wish: Wish, probed: Probed, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        placement.plan(wish, None, lambda: probed)


@pytest.mark.parametrize(
    ("wish", "wanted", "num_workers", "indexes", "gpu_bytes"),
    [
        (AUTO, None, 2, [0, 1], [72_000_000_000, 36_000_000_000]),
        (CUDA, None, 2, [0, 1], [72_000_000_000, 36_000_000_000]),
        (CUDA, 3, 3, [0, 1], [36_000_000_000, 18_000_000_000]),
        (CUDA, 1, 1, [0, 1], [72_000_000_000, 36_000_000_000]),
        (Wish(Kind.CUDA, 1), None, 1, [1], [36_000_000_000]),
        (Wish(Kind.CUDA, 1), 2, 2, [1], [18_000_000_000]),
    ],
)
def test_gpus_are_shared_out(
    wish: Wish, wanted: int | None, num_workers: int, indexes: list[int], gpu_bytes: list[int]
) -> None:
    made = placement.plan(wish, wanted, lambda: TWO_GPUS)
    assert made.num_workers == num_workers
    assert [place.device for place in made.places] == [Device(Kind.CUDA, index) for index in indexes]
    assert [place.gpu_bytes for place in made.places] == gpu_bytes
    assert {place.is_required for place in made.places} == {wish.kind == Kind.CUDA}
    assert {place.memory_bytes for place in made.places} == {ROOM // num_workers - placement.PROCESS_BYTES}


@pytest.mark.parametrize(
    ("taken", "expected"), [([], 0), ([0], 1), ([1], 0), ([0, 1], 0), ([0, 1, 0], 1), ([1, 1], 0)]
)
def test_a_worker_takes_the_place_of_the_one_that_died(taken: list[int], expected: int) -> None:
    assert Plan((Placement(), Placement()), 2).least_used(taken) == expected


@pytest.mark.parametrize(
    "place",
    [Placement(), Placement(Device(Kind.CUDA, 1), "because", is_required=True, memory_bytes=5, gpu_bytes=7)],
)
def test_a_place_survives_the_environment(place: Placement) -> None:
    assert placement.from_environment({placement.VARIABLE: place.encode()}) == place


def test_without_a_master_there_is_no_place() -> None:
    assert placement.from_environment({}) is None
    assert placement.alone(ON_CPU).memory_bytes == ROOM - placement.PROCESS_BYTES


# --- the probe -------------------------------------------------------------------------------------------


def test_a_host_without_a_driver_is_not_probed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(placement, "DRIVER_FILES", (tmp_path / "nvidiactl",))
    monkeypatch.setattr(subprocess, "run", never)
    assert placement.probe_gpus() == NO_GPU


def test_a_host_with_a_driver_is_asked_in_a_process_of_its_own(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """On a host without a GPU, a file that pretends to be a driver's leads to the true reason."""
    monkeypatch.setattr(placement, "DRIVER_FILES", (tmp_path,))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    probed = placement.probe_gpus()
    assert probed.gpus == ()
    assert "NVIDIA driver" in probed.reason


def test_a_probe_that_does_not_end_is_a_reason(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(placement, "DRIVER_FILES", (tmp_path,))
    monkeypatch.setattr(placement, "PROBE_SECONDS", 0.01)
    assert "did not start within" in placement.probe_gpus().reason


FAILED = json.dumps({"gpus": [], "reason": "ONNX Runtime cannot load it"})
NATIVE = "[E:onnxruntime] Failed to load library x.so with error: libcublasLt.so.13: cannot open\n"


@pytest.mark.parametrize(
    ("returncode", "stdout", "stderr", "probed"),
    [
        (0, 'noise\n{"gpus": [{"index": 0, "free_bytes": 5}], "reason": ""}\n', NATIVE, Probed((Gpu(0, 5),))),
        (0, FAILED, "", Probed(reason="ONNX Runtime cannot load it")),
        (0, FAILED, NATIVE, Probed(reason="ONNX Runtime cannot load it: libcublasLt.so.13: cannot open")),
        (-11, "", "a\nsegfault\n", Probed(reason="the probe of CUDA ended with status -11: segfault")),
        (0, "", "", Probed(reason="the probe of CUDA ended with status 0: no output")),
        (0, FAILED + "\nbye", "", Probed(reason="the probe of CUDA said 'bye' at its end")),
        (0, "[]", "", Probed(reason="the probe of CUDA said '[]' at its end")),
    ],
    ids=["works", "reason", "native-reason", "crash", "silent", "no-json", "other-json"],
)
def test_what_a_probe_says(returncode: int, stdout: str, stderr: str, probed: Probed) -> None:
    assert placement.decode(returncode, stdout, stderr) == probed


# --- gunicorn's hooks ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("num_workers", "is_told"), [(2, False), (3, True)])
def test_more_workers_than_cores_are_told_of(
    monkeypatch: pytest.MonkeyPatch, num_workers: int, is_told: bool
) -> None:
    monkeypatch.setattr("service.host.num_usable_cores", lambda: 2)
    on_cpu = placement.plan(devices.parse("cpu"), num_workers)
    assert bool(placement.warning(on_cpu)) == is_told
    assert placement.warning(placement.plan(devices.parse("auto"), num_workers, lambda: TWO_GPUS)) is None


def test_hooks_pin_workers_and_replace_the_dead(tiny_models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", environment(MODELS_DIR=str(tiny_models)))
    monkeypatch.setattr(placement, "probe_gpus", lambda: TWO_GPUS)
    monkeypatch.setattr("service.host.num_usable_cores", lambda: 8)
    hooks = runpy.run_path(str(PROJECT / "gunicorn.conf.py"))
    assert hooks["workers"] == 2
    assert os.environ["WORKERS"] == "2"
    assert os.environ["RAYON_NUM_THREADS"] == "4"
    cfg = SimpleNamespace(uid=os.getuid(), gid=os.getgid())
    master = {"reload": None, "manage_workers": None, "stop": None, "handle_term": None}
    log = SimpleNamespace(warning=print)
    server = SimpleNamespace(WORKERS={}, SIG_QUEUE=None, cfg=cfg, log=log, **master)
    hooks["on_starting"](server)

    def fork(pid: int) -> str:
        worker = SimpleNamespace(is_ready=False)
        hooks["pre_fork"](server, worker)
        server.WORKERS[pid] = worker
        hooks["post_fork"](server, worker)
        place = placement.from_environment(os.environ)
        assert place is not None
        return str(place.device)

    assert [fork(1), fork(2)] == ["cuda:0", "cuda:1"]
    del server.WORKERS[1]
    assert fork(3) == "cuda:0"
    del server.WORKERS[2]
    assert fork(4) == "cuda:1"
