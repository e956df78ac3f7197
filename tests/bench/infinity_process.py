"""infinity-emb, which serves the same weights from an environment of its own. Knows no measurement.

Torch in float32 on all cores, batches of 32 texts, its default; BetterTransformer, its default too, where the
environment has it: an optimum below 2.0, which needs transformers below 4.49. Its ONNX path needs an exporter
that is gone.
"""

from __future__ import annotations

import http.client
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from convert.catalog import RECIPES
from convert.source import locate
from tests.bench import child
from tests.bench.errors import BenchError
from tests.bench.server import MODEL, POLL_SECONDS, START_SECONDS, STOP_SECONDS
from tests.processes import LOCALHOST, free_port

PACKAGES = ("infinity_emb", "torch", "sentence_transformers", "fastapi", "uvicorn")
INSTALL = "ENV/bin/pip install 'infinity-emb[torch,server]==0.0.77' 'transformers==4.57.6' 'click==8.1.8'"
LEFT_OUT = (
    "infinity left out: --infinity-python names an interpreter that has it, in an environment of its own: "
    f"python3 -m venv ENV && {INSTALL}"
)
NAMED = ("infinity_emb", "torch", "transformers", "sentence_transformers")
VERSIONS = (
    f"from importlib.metadata import version as v; print(*(f'{{n}} {{v(n)}}' for n in {NAMED}), sep=', ')"
)
BETTER = "optimum.bettertransformer"
HAS_BETTER = f"import importlib.util as u; print(bool(u.find_spec('optimum') and u.find_spec({BETTER!r})))"
OPTIONS = (
    "--served-model-name", MODEL, "--engine", "torch", "--device", "cpu", "--dtype", "float32",
    "--batch-size", "32", "--no-compile", "--no-model-warmup",
    "--url-prefix", "/v1", "--host", LOCALHOST,
)  # fmt: skip
QUIET = {
    "DO_NOT_TRACK": "1",
    "INFINITY_ANONYMOUS_USAGE_STATS": "0",
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
}


@dataclass(frozen=True)
class Infinity:
    """A running server."""

    port: int
    pid: int
    description: str


def interpreter(wanted: Path | None) -> Path | None:
    """Return the interpreter asked for; print what is left out without one.

    Raises BenchError where it has no infinity.
    """
    if wanted is None:
        print(LEFT_OUT)
        return None
    return child.check_packages(wanted, "--infinity-python", PACKAGES)


@contextmanager
def serve(python: Path, num_threads: int) -> Iterator[Infinity]:
    """Run it on a free port until the block ends. Raises BenchError, with its log, where it fails."""
    model, _ = locate(RECIPES[MODEL], None, offline=True)
    port = free_port()
    has_better = _said(python, HAS_BETTER) == "True"
    better = "bettertransformer" if has_better else "no-bettertransformer"
    words = ["v2", "--model-id", str(model), "--port", str(port), f"--{better}", *OPTIONS]
    command = [str(python), "-c", "from infinity_emb.cli import cli; cli()", *words]
    variables = os.environ | QUIET | {"OMP_NUM_THREADS": str(num_threads)}
    print("starting infinity", file=sys.stderr)
    description = (
        f"{_said(python, VERSIONS)}; float32, {num_threads} threads, batches of 32, {better}, no-compile"
    )
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, env=variables, stdout=log, stderr=subprocess.STDOUT)
        try:
            _wait_until_ready(port, process)
            yield Infinity(port, process.pid, description)
        except BenchError as error:
            log.seek(0)
            raise BenchError(f"{error}\n{log.read().decode(errors='replace').strip()}") from error
        finally:
            process.terminate()
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _said(python: Path, code: str) -> str:
    found = subprocess.run([str(python), "-c", code], check=True, capture_output=True, text=True)
    return found.stdout.strip()


def _wait_until_ready(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise BenchError(f"infinity ended with status {process.returncode}")
        connection = http.client.HTTPConnection(LOCALHOST, port, timeout=START_SECONDS)
        try:
            connection.request("GET", "/v1/models")
            if connection.getresponse().status == http.client.OK:
                return
        except OSError:
            pass
        finally:
            connection.close()
        time.sleep(POLL_SECONDS)
    raise BenchError("infinity did not become ready")
