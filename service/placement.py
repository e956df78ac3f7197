"""Where the workers of a start run and what each may take: GPUs, memory. Knows DEVICE and WORKERS, no model.

gunicorn's master makes the plan, so that a start that cannot be is refused once; each worker is handed its
place through the environment. Which GPUs there are is asked of a process of its own (`service.probe`):
whoever has made a CUDA session cannot fork. NOTE: nothing here has run on a host with a GPU yet.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from service import devices, host
from service.devices import CPU, Device, Kind, Wish
from service.errors import ConfigError

VARIABLE = "WORKER_PLACEMENT"  # gunicorn.conf.py hands a place to a worker in it; nobody else sets it
PROBE_COMMAND = (sys.executable, "-m", "service.probe")
PROBE_SECONDS = 120  # the libraries are some gigabytes, and a disk may be cold
# What every driver leaves: native, in a container, in WSL.
DRIVER_FILES = tuple(
    Path(name) for name in ("/proc/driver/nvidia", "/dev/nvidiactl", "/dev/nvidia0", "/dev/dxg")
)
MAX_REASON = 300  # characters of a native error that are worth showing
GPU_SHARE = 0.9  # of the free memory goes to arenas; the rest is for the contexts of CUDA, cuBLAS and cuDNN
PROCESS_BYTES = 64 << 20  # of a worker without models; 44 MiB measured
REMEDY = (
    "install an NVIDIA driver for CUDA 13, and CUDA 13 and cuDNN 9 (as wheels, in the project's folder: pip "
    "install '.[gpu]'), or use DEVICE=auto or DEVICE=cpu"
)


@dataclass(frozen=True)
class Gpu:
    """A GPU that a session has run on."""

    index: int
    free_bytes: int


@dataclass(frozen=True)
class Probed:
    """The GPUs that work; where there are none, the reason."""

    gpus: tuple[Gpu, ...] = ()
    reason: str = ""


@dataclass(frozen=True)
class Placement:
    """What one worker is given."""

    device: Device = CPU
    reason: str = ""
    is_required: bool = False  # DEVICE names the device: no other may take its place
    memory_bytes: int | None = None  # of the host, its models together; None: unknown
    # The most that the arena of one session may take; None: no limit. Each session has an arena of its own:
    # a worker with several graphs may take more than its share. Not divided by their number: they differ
    # widely in size, some open with later requests, and an even part would refuse a large one that fits.
    gpu_bytes: int | None = None

    def encode(self) -> str:
        """Return what `from_environment` reads."""
        return json.dumps({**asdict(self), "device": str(self.device)})


@dataclass(frozen=True)
class Plan:
    """The places of a start. Workers take them in turn."""

    places: tuple[Placement, ...]
    num_workers: int

    def least_used(self, taken: Sequence[int]) -> int:
        """Return the number of the place that the fewest workers hold: that of one that died."""
        return min(range(len(self.places)), key=taken.count)


def plan(wish: Wish, num_workers: int | None, probe: Callable[[], Probed] | None = None) -> Plan:
    """Share out the GPUs, or the CPU, among the workers; None: one for each GPU, else one.

    Raises ConfigError where DEVICE asks for CUDA and it does not work.
    """
    probed = Probed(reason="set by DEVICE") if wish.kind == Kind.CPU else (probe or probe_gpus)()
    gpus = [gpu for gpu in probed.gpus if wish.index in (None, gpu.index)]
    if wish.kind == Kind.CUDA and not gpus:
        names = ", ".join(str(Device(Kind.CUDA, gpu.index)) for gpu in probed.gpus)
        if names:
            raise ConfigError(f"DEVICE is {wish}, but this host has only {names}: name one of them, or cuda")
        raise ConfigError(f"DEVICE is {wish}, but {probed.reason}; {REMEDY}")
    num_workers = num_workers or len(gpus) or 1
    room = host.available_memory()
    memory_bytes = None if room is None else room // num_workers - PROCESS_BYTES
    if not gpus:
        return Plan((Placement(reason=probed.reason, memory_bytes=memory_bytes),), num_workers)
    sharers = -(-num_workers // len(gpus))  # workers on one GPU
    places = [
        Placement(
            device=Device(Kind.CUDA, gpu.index),
            reason="set by DEVICE" if wish.kind else "a session runs on it",
            is_required=wish.kind == Kind.CUDA,
            memory_bytes=memory_bytes,
            gpu_bytes=int(gpu.free_bytes * GPU_SHARE) // sharers,
        )
        for gpu in gpus
    ]
    return Plan(tuple(places), num_workers)


def warning(plan: Plan) -> str | None:
    """Say what is unwise about a plan: on the CPU each worker computes on a thread of its own at least."""
    num_cores = host.num_usable_cores()
    if plan.num_workers <= num_cores or any(place.device.kind != Kind.CPU for place in plan.places):
        return None
    return (
        f"WORKERS is {plan.num_workers}, more than the {num_cores} of cgroup quota and affinity: together "
        "they compute on more threads than there are cores, which is slower than fewer workers are"
    )


def alone(wish: Wish) -> Placement:
    """Return the place of a process that has no others beside it. Raises ConfigError as `plan` does."""
    return plan(wish, 1).places[0]


def from_environment(environ: Mapping[str, str]) -> Placement | None:
    """Return the place that gunicorn's master has handed over; None: there was no such master."""
    if VARIABLE not in environ:
        return None
    fields = json.loads(environ[VARIABLE])
    wish = devices.parse(fields.pop("device"))
    return Placement(device=Device(wish.kind or Kind.CPU, wish.index or 0), **fields)


def probe_gpus() -> Probed:
    """Ask a process of its own which GPUs a session runs on; a host without a driver is told by its files."""
    if not any(path.exists() for path in DRIVER_FILES):
        return Probed(reason="this host has no NVIDIA driver")
    paths = [str(Path(__file__).parent.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    try:
        ended = subprocess.run(
            PROBE_COMMAND,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
            capture_output=True,
            text=True,
            errors="replace",
            timeout=PROBE_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Probed(reason=f"CUDA did not start within {PROBE_SECONDS} seconds")
    return decode(ended.returncode, ended.stdout, ended.stderr)


def decode(returncode: int, stdout: str, stderr: str) -> Probed:
    """Read what a probe has printed; where no GPU works, its native libraries often say why on stderr."""
    lines = stdout.splitlines()
    if returncode or not lines:
        last = stderr.strip().splitlines()[-1:] or ["no output"]
        return Probed(reason=f"the probe of CUDA ended with status {returncode}: {last[0][:MAX_REASON]}")
    try:
        fields = json.loads(lines[-1])
        probed = Probed(tuple(Gpu(**gpu) for gpu in fields["gpus"]), fields["reason"])
    except (ValueError, KeyError, TypeError):
        return Probed(reason=f"the probe of CUDA said {lines[-1][:MAX_REASON]!r} at its end")
    causes = [line.partition("with error: ")[2] for line in stderr.splitlines() if "with error: " in line]
    if probed.gpus or not causes:
        return probed
    return Probed(reason=f"{probed.reason}: {causes[0][:MAX_REASON]}")
