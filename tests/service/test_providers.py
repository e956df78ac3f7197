"""How sessions are made for devices. What CUDA answers is faked: no test here needs a GPU."""

from __future__ import annotations

import mmap
import re
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from service import providers
from service.devices import CPU, Device, Kind
from service.errors import NotOnDevice
from service.session import Session, SessionSettings
from tests.conftest import MODEL

GPU = Device(Kind.CUDA, 1)
CUDA_LIBRARY = Path(onnxruntime.__file__).parent / "capi" / "libonnxruntime_providers_cuda.so"


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Note that libraries were to be loaded, and load none."""
    asked: list[str] = []
    monkeypatch.setattr(providers, "load_libraries", lambda: asked.append("loaded"))
    return asked


def test_the_cpu_keeps_norms_apart_and_loads_nothing(loads: list[str]) -> None:
    made = providers.backend()
    assert (made.providers, made.disabled_optimizers) == (["CPUExecutionProvider"], ["SkipLayerNormFusion"])
    assert not loads


def test_cuda_fuses_norms_and_keeps_fp32_exact(loads: list[str]) -> None:
    made = providers.backend(GPU, 5_000)
    assert made.disabled_optimizers == []
    assert made.providers[1:] == ["CPUExecutionProvider"]
    assert made.providers[0][0] == "CUDAExecutionProvider"
    assert made.providers[0][1] == {
        "device_id": "1",
        "gpu_mem_limit": "5000",
        "arena_extend_strategy": "kSameAsRequested",
        "cudnn_conv_algo_search": "HEURISTIC",
        "use_tf32": "0",
    }
    assert loads
    assert "gpu_mem_limit" not in providers.backend(GPU).providers[0][1]
    assert "device_id" not in providers.CUDA_OPTIONS  # not changed by a call


@pytest.mark.skipif(not CUDA_LIBRARY.exists(), reason="the CPU wheel of ONNX Runtime is installed")
@pytest.mark.parametrize("word", ["device_id", "gpu_mem_limit", *providers.CUDA_OPTIONS])
def test_the_library_knows_the_options(word: str) -> None:
    with CUDA_LIBRARY.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        assert content.find(word.encode()) >= 0


def test_the_probe_graph_doubles() -> None:
    onnx.checker.check_model(onnx.load_from_string(providers.DOUBLING))
    session = onnxruntime.InferenceSession(providers.DOUBLING, providers=["CPUExecutionProvider"])
    assert session.run(["y"], {"x": np.array([21], dtype=np.float32)})[0].tolist() == [42]


class FakeNative:
    """A session on the providers it is told, with the answer it is told."""

    def __init__(self, names: list[str], answer: object) -> None:
        self.names, self.answer = names, answer

    def get_providers(self) -> list[str]:
        return self.names

    def run(self, outputs: object, inputs: object) -> list[np.ndarray]:
        if isinstance(self.answer, Exception):
            raise self.answer
        return [np.array(self.answer)]


BOTH, CPU_ALONE = ["CUDAExecutionProvider", "CPUExecutionProvider"], ["CPUExecutionProvider"]


@pytest.mark.parametrize(
    ("available", "names", "answer", "reason"),
    [
        (BOTH, BOTH, [6.0], "^$"),
        (CPU_ALONE, CPU_ALONE, [6.0], "has no CUDAExecutionProvider: install onnxruntime-gpu"),
        (BOTH, CPU_ALONE, [6.0], "cannot load its CUDAExecutionProvider"),
        (BOTH, BOTH, [float("nan")], r"3 \+ 3 = \[nan\]"),
        (BOTH, BOTH, RuntimeError("CUDA error 700"), "a session on cuda:1 fails: CUDA error 700"),
    ],
    ids=["works", "wheel", "silent-cpu", "wrong-answer", "fails"],
)
def test_why_a_gpu_is_unusable(
    monkeypatch: pytest.MonkeyPatch,
    loads: list[str],
    available: list[str],
    names: list[str],
    answer: object,
    reason: str,
) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: available)
    monkeypatch.setattr(onnxruntime, "InferenceSession", lambda *_, **__: FakeNative(names, answer))
    assert re.search(reason, providers.unusable(GPU))


def test_the_cpu_is_usable() -> None:
    assert providers.unusable(CPU) == ""


def test_a_session_that_silently_took_the_cpu_is_refused(
    tiny_models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_cpu = providers.backend()
    monkeypatch.setattr(providers, "backend", lambda device, gpu_bytes: on_cpu)
    with pytest.raises(NotOnDevice, match=r"model\.onnx does not run on cuda:1"):
        Session(tiny_models / MODEL / "fp32" / "model.onnx", SessionSettings(1, device=GPU))
