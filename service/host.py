"""What this host offers: cores, instruction set, free memory. Reads the operating system, decides nothing."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

CGROUP_ROOT = Path("/sys/fs/cgroup")
PROC = Path("/proc")
# First match wins: from the richest 8-bit arithmetic to the poorest.
INSTRUCTION_SETS = ("amx_int8", "avx512_vnni", "avx_vnni", "avx512f", "avx2", "i8mm", "asimddp", "asimd")
FAST_INT8 = frozenset({"amx_int8", "avx512_vnni", "avx_vnni", "i8mm", "asimddp"})


def num_usable_cores(cgroup_root: Path = CGROUP_ROOT, proc: Path = PROC) -> int:
    """Return the cores this process may use: the smaller of its affinity and its cgroup quota, at least 1."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quotas = [quota for folder in _cgroup_folders(cgroup_root, proc) if (quota := _cpu_quota(folder))]
    return max(1, min([float(cores), *quotas]).__floor__())


def instruction_set(proc: Path = PROC) -> str:
    """Return the name of the best 8-bit instruction set of the processor, or its architecture."""
    try:
        flags = set((proc / "cpuinfo").read_text().replace(":", " ").split())
    except OSError:
        flags = set()
    return next((name for name in INSTRUCTION_SETS if name in flags), platform.machine())


def available_memory(cgroup_root: Path = CGROUP_ROOT, proc: Path = PROC) -> int | None:
    """Return the bytes that can be allocated, by free memory and cgroup limits; None if unknown."""
    rooms = [
        room for folder in _cgroup_folders(cgroup_root, proc) if (room := _memory_room(folder)) is not None
    ]
    try:
        lines = (proc / "meminfo").read_text().splitlines()
    except OSError:
        lines = []
    rooms += [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    return min(rooms, default=None)


@dataclass(frozen=True)
class ProcessMemory:
    """What a process has in memory."""

    resident_bytes: int  # with mapped files, which it may share with others
    anonymous_bytes: int  # its own


def memory_of(pid: int, proc: Path = PROC) -> ProcessMemory | None:
    """Return the memory of a process; None where it has ended or the system does not say."""
    try:
        lines = (proc / str(pid) / "status").read_text().splitlines()
        kilobytes = {
            name: int(rest.split()[0])
            for name, _, rest in (line.partition(":") for line in lines)
            if name in ("VmRSS", "RssAnon")
        }
        return ProcessMemory(kilobytes["VmRSS"] * 1024, kilobytes["RssAnon"] * 1024)
    except (OSError, KeyError):
        return None


def _cgroup_folders(root: Path, proc: Path) -> Iterator[Path]:
    """List the folders whose limits bind this process: its own cgroups and all above them (v2 and v1)."""
    try:
        lines = (proc / "self" / "cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        base = root / controllers if controllers else root
        relative = Path(path.lstrip("/"))
        for part in (relative, *relative.parents):
            yield base / part


def _cpu_quota(folder: Path) -> float | None:
    try:
        if (folder / "cpu.max").exists():
            quota, period = (folder / "cpu.max").read_text().split()
        else:
            quota = (folder / "cpu.cfs_quota_us").read_text().strip()
            period = (folder / "cpu.cfs_period_us").read_text().strip()
    except (OSError, ValueError):
        return None
    if quota == "max" or int(quota) <= 0:
        return None
    return int(quota) / int(period)


def _memory_room(folder: Path) -> int | None:
    for limit, usage in (
        ("memory.max", "memory.current"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes"),
    ):
        try:
            used = int((folder / usage).read_text()) - _reclaimable(folder)
            return int((folder / limit).read_text()) - used
        except (OSError, ValueError):
            continue
    return None


def _reclaimable(folder: Path) -> int:
    """Return the bytes of page cache that the kernel gives back under pressure, part of a cgroup's usage.

    Mapped weights are of it, active ones too.
    """
    try:
        lines = (folder / "memory.stat").read_text().splitlines()
    except OSError:
        return 0
    fields = {name: int(value) for name, value in (line.split() for line in lines)}
    names = ("total_inactive_file", "total_active_file")  # v1, which counts the cgroups below apart
    if names[0] not in fields:
        names = ("inactive_file", "active_file")
    return sum(fields.get(name, 0) for name in names)
