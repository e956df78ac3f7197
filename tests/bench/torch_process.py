"""The process in which torch runs a model: its interpreter and what it is asked. Knows no service."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.bench import child
from tests.bench.child import Child

DECODER_MODULE, VISION_MODULE = "tests.bench.torch_decoder", "tests.bench.torch_vision"
PACKAGES = ("torch", "transformers")
MAX_TOKENS = 8192  # of a request: beyond it torch takes minutes and gigabytes


class TorchProcess:
    """An open process that has loaded a checkpoint."""

    def __init__(self, opened: Child, num_threads: int) -> None:
        """Describe it by the versions that it has named."""
        self._child = opened
        versions = " ".join(f"{name} {version}" for name, version in opened.greeting.items())
        self.description = f"{versions}, fp32, sdpa, {num_threads} threads"

    def seconds(self, num_rows: int, num_tokens: int) -> float:
        """Return the seconds of one forward of a decoder. Raises BenchError where the process has ended."""
        return float(self.ask({"rows": num_rows, "tokens": num_tokens})["seconds"])

    def ask(self, question: dict[str, Any]) -> dict[str, Any]:
        """Return the answer to a question of the module's. Raises BenchError where the process has ended."""
        return self._child.ask(question)


def interpreter(wanted: Path | None) -> Path | None:
    """Return the interpreter that has torch: the one asked for, else this one; print why there is none.

    Raises BenchError where the one asked for has no torch.
    """
    if wanted is None:
        if all(importlib.util.find_spec(package) for package in PACKAGES):
            return Path(sys.executable)
        print(f"torch left out: {sys.executable} has not {' and '.join(PACKAGES)}; --torch-python names one")
        return None
    return child.check_packages(wanted, "--torch-python", PACKAGES)


@contextmanager
def opened(
    python: Path, checkpoint: Path, num_threads: int, module: str = DECODER_MODULE
) -> Iterator[TorchProcess]:
    """Hold a checkpoint open in torch until the block ends."""
    print(f"{checkpoint.name}: loading it in torch", file=sys.stderr)
    with child.opened("torch", [str(python), "-m", module, str(checkpoint), str(num_threads)]) as process:
        yield TorchProcess(process, num_threads)
