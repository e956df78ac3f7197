"""Trying one choice after another: what fails on a GPU is passed over with its reason."""

from __future__ import annotations

from typing import cast

import pytest

from service.devices import CPU, Device, Kind
from service.errors import BundleError, ModelOutputInvalid, NotOnDevice
from service.loading import Model, first_that_runs
from service.manifest import Precision
from service.selection import Choice

FP16, BF16, FP32 = Precision.FP16, Precision.BF16, Precision.FP32
GPU = Device(Kind.CUDA)
FAILURES = {
    FP16: ModelOutputInvalid("m"),
    BF16: NotOnDevice("bf16/model.onnx does not run on cuda:0"),
    FP32: RuntimeError("CUDA out of memory"),
}


def choice(precision: Precision, device: Device = GPU) -> Choice:
    return Choice(precision, verified=True, reason="first", device=device)


class Opener:
    """Fails for some precisions on the GPU, and for some on the CPU."""

    def __init__(self, *failing: Precision, on: Device = GPU) -> None:
        self.failing, self.device = failing, on
        self.asked: list[tuple[Precision, Device]] = []

    def __call__(self, wanted: Choice) -> Model:
        self.asked.append((wanted.precision, wanted.device))
        if wanted.precision in self.failing and wanted.device == self.device:
            raise FAILURES[wanted.precision]
        return cast(Model, "a model")


def test_the_first_that_answers_is_taken() -> None:
    opener = Opener()
    assert first_that_runs("m", [choice(FP16), choice(BF16)], opener).choice == choice(FP16)
    assert opener.asked == [(FP16, GPU)]


def test_what_is_not_finite_in_fp16_is_tried_in_bf16_then_fp32_then_on_the_cpu() -> None:
    ladder = [choice(FP16), choice(BF16), choice(FP32), choice(FP32, CPU)]
    for count in range(1, 4):
        opener = Opener(*(FP16, BF16, FP32)[:count])
        loaded = first_that_runs("m", ladder, opener)
        assert (loaded.choice.precision, loaded.choice.device) == (
            ladder[count].precision,
            ladder[count].device,
        )
        assert len(opener.asked) == count + 1
        assert loaded.choice.reason.startswith("first; fp16 failed on cuda:0: Model m computed a value that")
        assert ("out of memory" in loaded.choice.reason) == (count == 3)


def test_what_fails_on_the_cpu_is_raised_as_it_is() -> None:
    with pytest.raises(RuntimeError, match="out of memory"):
        first_that_runs("m", [choice(FP32, CPU)], Opener(FP32, on=CPU))


def test_where_nothing_runs_every_reason_is_said() -> None:
    with pytest.raises(
        BundleError, match="m runs in no precision: fp16 failed.*not finite.*bf16 failed.*cuda:0"
    ):
        first_that_runs("m", [choice(FP16), choice(BF16)], Opener(FP16, BF16))
