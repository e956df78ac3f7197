"""What graphs compute on a device against fp32 on the CPU. Opens them, knows no command line."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from service import manifest as contract
from service.devices import CPU, Device, Kind
from service.manifest import Manifest, Precision, Variant
from tests.cuda_kernels import without_kernel
from tests.gpu_check.sessions import Run, graphs, opened

# Largest error of an output, its norm by that of fp32 on the CPU. Stand-ins of tiny and golden models reach
# 5e-3 in fp16 and 7e-2 in bf16; fp32 is exact on CUDA too, where sessions do without TF32.
LIMITS = {Precision.FP32: 1e-3, Precision.FP16: 1e-2, Precision.BF16: 1e-1, Precision.INT8_BLOCK: 1e-1}

HALF = frozenset({Precision.FP16, Precision.BF16})  # which are for CUDA: not to run there is a failure


@dataclass(frozen=True)
class Row:
    """An output of a graph, compared; or why a graph was left out."""

    model: str
    graph: str
    run: str = ""
    output: str = ""
    error: float = 0.0
    limit: float = 0.0
    left_out: str = ""
    is_refused: bool = False  # left out, though the device is what the precision is for

    @property
    def passed(self) -> bool:
        """Tell whether the error is within its limit; NaN is not."""
        return not self.is_refused if self.left_out else self.error <= self.limit

    def __str__(self) -> str:
        """Describe the row in a line."""
        if self.left_out:
            return f"{self.model} {self.graph}: {'FAIL' if self.is_refused else 'left out'}: {self.left_out}"
        verdict = "PASS" if self.passed else "FAIL"
        return (
            f"{self.model} {self.graph} {self.run} {self.output}: {verdict}, "
            f"error {self.error:.1e} of at most {self.limit:.0e}"
        )


def compared(folder: Path, device: Device) -> Iterator[Row]:
    """Compare every graph of a bundle that the device can run, and the vision tower."""
    manifest = contract.load(folder)
    exact = {variant.task: variant for variant in manifest.variants if variant.precision == Precision.FP32}
    for variant, made in graphs(folder, manifest):
        is_tower = manifest.vision is not None and variant.file == manifest.vision.file
        pair = (variant if is_tower else exact[variant.task], variant)
        yield from _of_variant(folder, manifest, pair, made, device)


def _of_variant(
    folder: Path, manifest: Manifest, pair: tuple[Variant, Variant], made: list[Run], device: Device
) -> Iterator[Row]:
    exact, variant = pair
    missing = lacking(folder / variant.file) if device.kind == Kind.CUDA else []
    if missing:
        reason, is_half = f"CUDA has no kernel for {missing[0]}", variant.precision in HALF
        yield Row(manifest.name, variant.file, left_out=reason, is_refused=is_half)
        return
    limit = LIMITS[variant.precision]
    with opened(folder, manifest, exact, CPU) as one, opened(folder, manifest, variant, device) as other:
        for run in made:
            expected, computed = (each.run(run.inputs, each.output_names) for each in (one, other))
            for name, values, near in zip(one.output_names, expected, computed, strict=True):
                error = relative_error(run.answers(name, near), run.answers(name, values))
                yield Row(manifest.name, variant.file, run.name, name, error, limit)


def lacking(graph: Path) -> list[str]:
    """List the nodes of a graph's file that have no CUDA kernel."""
    return without_kernel(onnx.load(str(graph), load_external_data=False))


def relative_error(near: np.ndarray, exact: np.ndarray) -> float:
    """Return the norm of the difference by the norm of what is exact."""
    wide = exact.astype(np.float64)
    return float(np.linalg.norm(near - wide) / max(float(np.linalg.norm(wide)), 1e-9))
