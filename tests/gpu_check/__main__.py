"""The command of `make gpu-check`: arguments, models, lines. Compares and measures nothing itself."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from convert.bake import BakeRequest, Verification, bake
from convert.catalog import RECIPES
from convert.graph import Graph, to_model
from service.devices import Device, Kind
from service.errors import ProjectError
from service.manifest import Precision
from service.placement import probe_gpus
from service.session import Session, SessionSettings
from tests import golden, tiny
from tests.conftest import GOLDEN_CHECKPOINTS, GOLDEN_QWEN
from tests.gpu_check import parity, placement, speed
from tests.gpu_check.sessions import provider
from tests.qwen_vl import JINA_V4

COMPARED = (Precision.FP32, Precision.FP16, Precision.BF16, Precision.INT8_BLOCK)
PARTS = ("parity", "placement", "speed")
REMEDY = """On a host with an NVIDIA driver, CUDA and cuDNN come as wheels:
    .venv/bin/python -m pip install --constraint constraints.txt --editable '.[test,gpu]'
    make gpu-check"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the checks; return 0 unless one fails, and 0 where there is no CUDA."""
    chosen = _parser().parse_args(arguments)
    device = Device(Kind(chosen.device.partition(":")[0]), int(chosen.device.partition(":")[2] or 0))
    if reason := unusable(device):
        print(f"gpu-check: skipped: {reason}\n{REMEDY}")
        return 0
    with TemporaryDirectory(prefix="gpu-check-", dir=chosen.work_dir) as work:
        failures = _check(Path(work), device, chosen.only, chosen.models)
    print(f"gpu-check: {len(failures)} failures" if failures else "gpu-check: passed")
    return 1 if failures else 0


def unusable(device: Device) -> str | None:
    """Say why sessions cannot run on a device; None where they do."""
    if device.kind == Kind.CUDA and (reason := probe_gpus().reason):
        return reason
    graph = Graph("probe")
    graph.op("Identity", "y", [graph.input("x", np.float32, ["rows"])])
    graph.output("y", ["rows"])
    with TemporaryDirectory() as folder:
        file = Path(folder) / "probe.onnx"
        file.write_bytes(to_model(graph, []).SerializeToString())
        try:
            session = Session(file, SessionSettings(num_threads=1, device=device))
        except ProjectError as error:
            return str(error)
        if provider(session) != placement.PROVIDERS[device.kind]:
            return f"a session that asks for {device} runs on {provider(session)}"
    return None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.gpu_check")
    parser.add_argument("--device", default="cuda:0", help="cpu tries the check itself, by stand-ins")
    parser.add_argument("--only", type=_words, default=PARTS, help=f"of {','.join(PARTS)}")
    parser.add_argument("--models", type=_words, help="tiny models; default: all, and the golden ones")
    parser.add_argument("--work-dir", type=Path, help="for bundles; 12 GB with speed")
    return parser


def _words(value: str) -> tuple[str, ...]:
    return tuple(value.split(","))


def _check(work: Path, device: Device, parts: Sequence[str], models: Sequence[str] | None) -> list[str]:
    """Print what each part finds; return what has failed."""
    failures = []
    for bundle in _bundles(work, models) if {"parity", "placement"} & set(parts) else ():
        if "parity" in parts:
            for row in parity.compared(bundle, device):
                print(row, flush=True)
                failures += [] if row.passed else [str(row)]
        if "placement" in parts:
            found = list(placement.misplaced(bundle, device, device.kind))
            failures += found
            print(
                "\n".join(found) or f"{bundle.name}: every node but those of shapes on {device}", flush=True
            )
    for model in speed.MODELS if "speed" in parts else ():
        bundle = speed.bake_full_size(work, model)
        for line in speed.measured(bundle, device):
            print(line, flush=True)
    return failures


def _bundles(work: Path, models: Sequence[str] | None) -> Iterator[Path]:
    """Bake the tiny models one after the other, then the golden ones where they are at hand."""
    for model in models or tiny.WRITERS:
        tiny.write_and_bake(work / "tiny", model, COMPARED)
        yield work / "tiny" / model
    if models:
        return
    if not golden.is_there():
        print(f"golden models: left out: {golden.MISSING}")
        return
    names = (*GOLDEN_CHECKPOINTS, *GOLDEN_QWEN, JINA_V4)
    golden.make_checkpoints(work / "golden", *names)
    for name in names:
        model = name.removesuffix("-bin").removesuffix("-hf")
        request = BakeRequest(
            out=work / f"golden-{name}",
            source=str(work / "golden" / name),
            precisions=COMPARED,
            verification=Verification.SKIP,
        )
        bake(RECIPES[model], request)
        yield request.out / model


if __name__ == "__main__":
    sys.exit(main())
