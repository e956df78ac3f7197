"""Limits of the host, read from a made-up /proc and /sys/fs/cgroup."""

from __future__ import annotations

from pathlib import Path

import pytest

from service import host


def fake(tmp_path: Path, files: dict[str, str]) -> tuple[Path, Path]:
    for name, content in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return tmp_path / "cgroup", tmp_path / "proc"


@pytest.fixture(autouse=True)
def eight_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(8)))


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({}, 8),
        ({"proc/self/cgroup": "0::/\n", "cgroup/cpu.max": "max 100000"}, 8),
        ({"proc/self/cgroup": "0::/\n", "cgroup/cpu.max": "250000 100000"}, 2),
        ({"proc/self/cgroup": "0::/\n", "cgroup/cpu.max": "50000 100000"}, 1),
        (
            {
                "proc/self/cgroup": "0::/a/b\n",
                "cgroup/a/b/cpu.max": "max 1",
                "cgroup/a/cpu.max": "300000 100000",
            },
            3,
        ),
        (
            {
                "proc/self/cgroup": "4:cpu:/x\n",
                "cgroup/cpu/x/cpu.cfs_quota_us": "400000",
                "cgroup/cpu/x/cpu.cfs_period_us": "100000",
            },
            4,
        ),
        (
            {
                "proc/self/cgroup": "4:cpu:/x\n",
                "cgroup/cpu/x/cpu.cfs_quota_us": "-1",
                "cgroup/cpu/x/cpu.cfs_period_us": "100000",
            },
            8,
        ),
    ],
    ids=["none", "unlimited", "quota", "part", "parent", "v1", "v1-unlimited"],
)
def test_cores(tmp_path: Path, files: dict[str, str], cores: int) -> None:
    assert host.num_usable_cores(*fake(tmp_path, files)) == cores


def test_memory_is_the_smallest_room(tmp_path: Path) -> None:
    files = {
        "proc/meminfo": "MemTotal: 100 kB\nMemAvailable:   9000 kB\n",
        "proc/self/cgroup": "0::/a\n",
        "cgroup/a/memory.max": "5000000",
        "cgroup/a/memory.current": "1000000",
        "cgroup/a/memory.stat": "anon 500000\nactive_file 200000\ninactive_file 300000\n",
    }
    assert host.available_memory(*fake(tmp_path, files)) == 4_500_000
    (tmp_path / "cgroup/a/memory.max").write_text("max")
    assert host.available_memory(tmp_path / "cgroup", tmp_path / "proc") == 9000 * 1024


def test_memory_of_a_v1_cgroup_counts_those_below_it(tmp_path: Path) -> None:
    files = {
        "proc/self/cgroup": "4:memory:/a\n",
        "cgroup/memory/a/memory.limit_in_bytes": "5000000",
        "cgroup/memory/a/memory.usage_in_bytes": "1000000",
        "cgroup/memory/a/memory.stat": "active_file 1\ninactive_file 2\n"
        "total_active_file 200000\ntotal_inactive_file 300000\n",
    }
    assert host.available_memory(*fake(tmp_path, files)) == 4_500_000


@pytest.mark.parametrize(
    ("flags", "name"),
    [("avx2 avx512_vnni avx512f", "avx512_vnni"), ("sse avx2", "avx2"), ("asimd asimddp", "asimddp")],
)
def test_instruction_set(tmp_path: Path, flags: str, name: str) -> None:
    _, proc = fake(tmp_path, {"proc/cpuinfo": f"model : 1\nflags\t\t: {flags}\n"})
    assert host.instruction_set(proc) == name
