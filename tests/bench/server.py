"""One real gunicorn: how it is started, waited for and stopped. Knows settings, no measurement."""

from __future__ import annotations

import http.client
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

import orjson

from service import config
from service.config import Settings
from service.manifest import Precision
from tests.bench.errors import BenchError
from tests.processes import GUNICORN, LOCALHOST, PROJECT, environment, free_port

MODEL = "all-minilm-l6-v2"
START_SECONDS, STOP_SECONDS = 120, 60
ANSWER_SECONDS = 7200  # 32,768 tokens in one text take most of an hour on two cores
POLL_SECONDS = 0.1
# The settings of the environment that a benchmark may vary; all others are fixed or left out.
TUNABLE = ("INTRA_OP_THREADS", "MAX_BATCH_TOKENS", "THREADS")


@dataclass(frozen=True)
class Service:
    """A running service that has one model at one precision, and the settings it runs with."""

    settings: Settings
    precision: Precision
    model: str = MODEL
    pid: int = 0  # of gunicorn's master
    seconds_to_ready: float = 0

    @property
    def bundle(self) -> Path:
        """Return the folder of the model that is served."""
        return self.settings.models_dir / self.model

    def connect(self) -> http.client.HTTPConnection:
        """Open a connection that is kept alive."""
        connection = http.client.HTTPConnection(LOCALHOST, self.settings.port, timeout=ANSWER_SECONDS)
        connection.connect()
        return connection


def tuned() -> dict[str, str]:
    """Return the tunable settings that the environment has."""
    return {name: os.environ[name] for name in TUNABLE if os.environ.get(name)}


def tuned_settings() -> Settings:
    """Return the settings of a service that is started now, in all that a benchmark may vary."""
    return config.from_environment(tuned())


@contextmanager
def serve(
    models_dir: Path, precision: Precision, model: str = MODEL, changed: Mapping[str, str] | None = None
) -> Iterator[Service]:
    """Run gunicorn on a free port until the block ends, with some settings `changed`.

    Raises BenchError, with its log, where it fails.
    """
    variables = _settings(models_dir, precision, model) | dict(changed or {})
    service = Service(config.from_environment(variables), precision, model)
    with tempfile.TemporaryFile() as log:
        begin = time.perf_counter()
        process = subprocess.Popen(GUNICORN, cwd=PROJECT, env=variables, stdout=log, stderr=subprocess.STDOUT)
        try:
            _wait_until_ready(service, process)
            seconds = time.perf_counter() - begin
            _check_precision(service)
            yield replace(service, pid=process.pid, seconds_to_ready=seconds)
        except (BenchError, OSError, http.client.HTTPException) as error:
            raise BenchError(f"{model}: {precision}: {error}\n{_read(log)}".rstrip()) from error
        finally:
            _stop(process)
        if warnings := _read(log):
            print(f"{model}: {precision}: the service logged:\n{warnings}", file=sys.stderr)


def _settings(models_dir: Path, precision: Precision, model: str) -> dict[str, str]:
    """Return the environment with the settings of the service replaced, but for the tunable ones."""
    return environment(
        TUNABLE,
        HOST=LOCALHOST,
        PORT=str(free_port()),
        DEVICE="cpu",
        WORKERS="1",
        MODELS_DIR=str(models_dir.resolve()),
        MODELS_TO_LOAD=model,
        PRECISION=precision,
        LOG_LEVEL="warning",
    )


def _wait_until_ready(service: Service, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_SECONDS
    reason = "no answer"
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise BenchError(f"gunicorn ended with status {process.returncode}")
        try:
            status, body = _get(service, "/healthz")
        except OSError as error:
            reason = str(error)
        else:
            if status == http.client.OK:
                return
            reason = body.decode(errors="replace")
            if orjson.loads(body).get("status") == "error":
                break
        time.sleep(POLL_SECONDS)
    raise BenchError(f"the service did not become ready: {reason}")


def _check_precision(service: Service) -> None:
    """Make sure that what is measured is what was asked for; of several workers one may still be loading."""
    deadline = time.monotonic() + START_SECONDS
    served: dict[str, str] = {}
    while not served and time.monotonic() < deadline:
        entries = orjson.loads(_get(service, "/v1/models")[1])["data"]
        served = {entry["id"]: entry["precision"] for entry in entries}
    if service.model not in served or {*served.values()} != {service.precision}:
        raise BenchError(f"the service has {served} instead of {service.model} at {service.precision}")


def _get(service: Service, path: str) -> tuple[int, bytes]:
    connection = service.connect()
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def _stop(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _read(log: IO[bytes]) -> str:
    log.seek(0)
    return log.read().decode(errors="replace").strip()
