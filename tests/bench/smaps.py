"""Where the memory of processes is: shares of mapped files, and what is anonymous. Knows /proc alone."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.bench.memory import KIBIBYTE, PROC

NUM_FIELDS = 6  # of the line that begins a mapping, with the file it maps


@dataclass(frozen=True)
class Shares:
    """Proportional set sizes in bytes: a page that n processes map counts 1/n for each."""

    by_file: dict[Path, int]  # mapped files
    anonymous: int

    @property
    def total(self) -> int:
        """Return the bytes of the process."""
        return sum(self.by_file.values()) + self.anonymous

    def under(self, folders: Collection[Path]) -> int:
        """Return the bytes of the files below any of some folders."""
        return sum(
            size
            for path, size in self.by_file.items()
            if any(path.is_relative_to(folder) for folder in folders)
        )


def shares(pid: int) -> Shares:
    """Read the shares of a process. Raises OSError where it has ended."""
    by_file: dict[Path, int] = {}
    anonymous, path = 0, ""
    for line in (PROC / str(pid) / "smaps").read_text(errors="replace").splitlines():
        name, *values = line.split(maxsplit=NUM_FIELDS - 1)
        if not name.endswith(":"):
            path = values[-1] if len(values) == NUM_FIELDS - 1 else ""
        elif name == "Pss:":
            size = int(values[0]) * KIBIBYTE
            if path.startswith("/"):
                by_file[Path(path)] = by_file.get(Path(path), 0) + size
            else:
                anonymous += size
    return Shares(by_file, anonymous)


def together(found: Sequence[Shares]) -> Shares:
    """Add up the shares of processes."""
    paths = {path for each in found for path in each.by_file}
    by_file = {path: sum(each.by_file.get(path, 0) for each in found) for path in paths}
    return Shares(by_file, sum(each.anonymous for each in found))
