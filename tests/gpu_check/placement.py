"""Where ONNX Runtime has placed the nodes of a graph, read from its own profile of a run."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest import mock

import onnxruntime

from service import manifest as contract
from service.devices import Device, Kind
from service.manifest import Manifest, Variant
from tests.cuda_kernels import may_be_on_cpu
from tests.gpu_check.parity import lacking
from tests.gpu_check.sessions import Run, graphs, opened

PROVIDERS = {Kind.CPU: "CPUExecutionProvider", Kind.CUDA: "CUDAExecutionProvider"}
KERNEL_TIME = "_kernel_time"


@dataclass(frozen=True)
class Placed:
    """A node that has run: its operator, the types of its inputs and outputs, and its provider."""

    name: str
    operator: str
    types: tuple[str, ...]
    provider: str


def misplaced(folder: Path, device: Device, wanted: Kind) -> Iterator[str]:
    """Describe the nodes of a bundle's graphs that ran elsewhere than wanted and compute no shape."""
    manifest = contract.load(folder)
    for variant, made in graphs(folder, manifest):
        if device.kind == Kind.CUDA and lacking(folder / variant.file):
            continue  # parity names it
        for node in nodes(folder, manifest, variant, device, made):
            if node.provider != PROVIDERS[wanted] and not may_be_on_cpu(node.operator, node.types):
                yield f"{manifest.name} {variant.file}: {node.operator} {node.name} ran on {node.provider}"


def nodes(
    folder: Path, manifest: Manifest, variant: Variant, device: Device, made: Sequence[Run]
) -> list[Placed]:
    """Run a graph and list its nodes, each once."""
    with TemporaryDirectory() as kept:
        with profiling(Path(kept)), opened(folder, manifest, variant, device) as session:
            for run in made:
                session.run(run.inputs, session.output_names)
            profile = Path(session._native.end_profiling())
        events = json.loads(profile.read_text(encoding="utf-8"))
    found = [_placed(event) for event in events if _is_node(event)]
    return list(dict.fromkeys(found))


@contextmanager
def profiling(folder: Path) -> Iterator[None]:
    """Have the sessions that the service opens meanwhile write a profile into a folder."""
    native = onnxruntime.SessionOptions

    def options() -> onnxruntime.SessionOptions:
        made = native()
        made.enable_profiling = True
        made.profile_file_prefix = str(folder / "profile")
        return made

    with mock.patch.object(onnxruntime, "SessionOptions", options):
        yield


def _is_node(event: dict[str, object]) -> bool:
    return event.get("cat") == "Node" and str(event["name"]).endswith(KERNEL_TIME)


def _placed(event: dict[str, object]) -> Placed:
    arguments = event["args"]
    assert isinstance(arguments, dict)
    types = [
        kind
        for side in ("input_type_shape", "output_type_shape")
        for value in arguments.get(side, [])
        for kind in value
    ]
    name = str(event["name"]).removesuffix(KERNEL_TIME)
    return Placed(name, str(arguments["op_name"]), tuple(types), str(arguments["provider"]))
