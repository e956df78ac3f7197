"""The process in which torch runs a model: its interpreter, its questions, its end. Knows no service.

It stays open beside the service, idle while the service runs, so that both can be timed in turns.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from tests.bench.errors import BenchError
from tests.processes import PROJECT

DECODER_MODULE, VISION_MODULE = "tests.bench.torch_decoder", "tests.bench.torch_vision"
PACKAGES = ("torch", "transformers")
MAX_TOKENS = 8192  # of a request: beyond it torch takes minutes and gigabytes
STOP_SECONDS = 30


class TorchProcess:
    """An open process that has loaded a checkpoint."""

    def __init__(self, process: subprocess.Popen[str], log: IO[bytes], num_threads: int) -> None:
        """Wait until the checkpoint is loaded. Raises BenchError where it cannot be."""
        self._process, self._log = process, log
        versions = " ".join(f"{name} {version}" for name, version in self._read().items())
        self.description = f"{versions}, fp32, sdpa, {num_threads} threads"

    def seconds(self, num_rows: int, num_tokens: int) -> float:
        """Return the seconds of one forward of a decoder. Raises BenchError where the process has ended."""
        return float(self.ask({"rows": num_rows, "tokens": num_tokens})["seconds"])

    def ask(self, question: dict[str, Any]) -> dict[str, Any]:
        """Return the answer to a question of the module's. Raises BenchError where the process has ended."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(question) + "\n")
            self._process.stdin.flush()
        except OSError as error:
            raise self._ended() from error
        return self._read()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise self._ended()
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _ended(self) -> BenchError:
        status = self._process.wait(STOP_SECONDS)
        self._log.seek(0)
        lines = self._log.read().decode(errors="replace").strip()
        return BenchError(f"the process of torch ended with status {status}:\n{lines}")


def interpreter(wanted: Path | None) -> Path | None:
    """Return the interpreter that has torch: the one asked for, else this one; print why there is none.

    Raises BenchError where the one asked for has no torch.
    """
    if wanted is None:
        if all(importlib.util.find_spec(package) for package in PACKAGES):
            return Path(sys.executable)
        print(f"torch left out: {sys.executable} has not {' and '.join(PACKAGES)}; --torch-python names one")
        return None
    wanted = wanted.absolute()  # the process has another working folder
    command = [str(wanted), "-c", f"import {', '.join(PACKAGES)}"]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise BenchError(
            f"--torch-python {wanted} cannot import {' and '.join(PACKAGES)}: {error}"
        ) from error
    return wanted


@contextmanager
def opened(
    python: Path, checkpoint: Path, num_threads: int, module: str = DECODER_MODULE
) -> Iterator[TorchProcess]:
    """Hold a checkpoint open in torch until the block ends."""
    print(f"{checkpoint.name}: loading it in torch", file=sys.stderr)
    command = [str(python), "-m", module, str(checkpoint), str(num_threads)]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            command,
            cwd=PROJECT,
            env=os.environ | {"HF_HUB_OFFLINE": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
        with process:
            try:
                yield TorchProcess(process, log, num_threads)
            finally:
                process.kill()  # it holds nothing that could be lost
