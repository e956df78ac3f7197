"""What a start chooses and shows, in processes of its own. GPUs are pretended: no test here needs one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import httpx

from tests.conftest import MODEL, START_SECONDS, Live
from tests.processes import PROJECT, environment

Serve = Callable[..., AbstractContextManager[Live]]
HIDDEN_GPUS = {"CUDA_VISIBLE_DEVICES": ""}  # of a host that has some
# gunicorn's own configuration behind a probe that tells of two GPUs; sessions find out that there are none.
PRETENDING = f"""
from pathlib import Path
from service import placement
from service.placement import Gpu, Probed
placement.probe_gpus = lambda: Probed((Gpu(0, 10**10), Gpu(1, 10**10)))
exec(compile(Path({str(PROJECT / "gunicorn.conf.py")!r}).read_text(), "gunicorn.conf.py", "exec"))
"""


def verbose(live: Live) -> dict[str, Any]:
    body: dict[str, Any] = httpx.get(f"{live.url}/healthz", params={"verbose": "1"}).json()
    return body


def by_worker(live: Live, count: int, without: int = 0) -> dict[int, dict[str, Any]]:
    """Ask until so many workers have answered that have loaded; `without` is one that is gone."""
    found: dict[int, dict[str, Any]] = {}
    deadline = time.monotonic() + START_SECONDS
    while len(found) < count:
        assert time.monotonic() < deadline, "the workers did not all answer"
        try:
            body = verbose(live)
        except httpx.TransportError:
            continue
        if body["status"] != "loading" and body["process"]["pid"] != without:
            found[body["process"]["pid"]] = body
    return found


def gpu_of(body: dict[str, Any]) -> str:
    """Return the GPU that a worker was given, which it found not to work."""
    gpu, found, _ = body["process"]["reason"].partition(" does not work: ")
    assert found, body
    return str(gpu)


def log_lines(live: Live) -> list[dict[str, Any]]:
    return [json.loads(line) for line in live.log.read_text().splitlines() if line.startswith("{")]


def test_the_choice_is_shown_everywhere(tiny_models: Path, serve: Serve) -> None:
    settings = {"DEVICE": "auto", "PRECISION": "int8-block", "INTRA_OP_THREADS": "1"}
    with serve(tiny_models, **settings, **HIDDEN_GPUS) as live:
        plain = httpx.get(f"{live.url}/healthz").json()
        body = verbose(live)
        (model,) = httpx.get(f"{live.url}/v1/models").json()["data"]
        lines = log_lines(live)
    assert plain == {"status": "ok"}
    assert body["status"] == "ok"
    process, shown = body["process"], body["models"][MODEL]
    assert set(process) == {"pid", "onnxruntime", "instruction_set", "device", "reason", "memory_bytes"}
    assert process["device"] == "cpu"
    assert process["reason"]
    assert 0 < shown["memory_bytes"] < process["memory_bytes"]
    expected = {"device": "cpu", "precision": "int8-block", "reason": "set by PRECISION"}
    assert expected.items() <= shown.items()
    assert shown["threads"] == 1
    assert {**expected, "verified": shown["verified"]}.items() <= model.items()
    (ready,) = [line for line in lines if line["message"] == "model ready"]
    word = "verified" if shown["verified"] else "unverified"
    assert {**expected, "verified": word, "model": MODEL}.items() <= ready.items()


def test_a_worker_for_each_gpu_and_the_cpu_where_it_does_not_work(
    tiny_models: Path, tmp_path: Path, serve: Serve
) -> None:
    config = tmp_path / "pretending.py"
    config.write_text(PRETENDING)
    with serve(tiny_models, configuration=str(config), wait=False, **HIDDEN_GPUS) as live:
        before = by_worker(live, 2)
        gone = min(before)
        os.kill(gone, signal.SIGKILL)
        after = by_worker(live, 2, without=gone)
    for body in (*before.values(), *after.values()):
        assert body["models"][MODEL]["device"] == body["process"]["device"] == "cpu"
    was, now = ({pid: gpu_of(body) for pid, body in bodies.items()} for bodies in (before, after))
    assert sorted(was.values()) == ["cuda:0", "cuda:1"]
    (new,) = set(now) - set(was)
    assert now[new] == was[gone]


def test_a_gpu_that_is_named_and_does_not_work_is_an_error_of_every_model(
    tiny_models: Path, tmp_path: Path, serve: Serve
) -> None:
    config = tmp_path / "pretending.py"
    config.write_text(PRETENDING)
    with serve(tiny_models, configuration=str(config), wait=False, DEVICE="cuda:1", **HIDDEN_GPUS) as live:
        (body,) = by_worker(live, 1).values()
    assert body["status"] == "error"
    assert body["process"]["device"] == "cuda:1"
    assert body["failed"][MODEL].startswith("cuda:1 does not work: ")


UNDER_ANOTHER_SERVER = """
import time
from falcon.testing import TestClient
from service.wsgi import app

client = TestClient(app)
while client.simulate_get("/healthz").json["status"] == "loading":
    time.sleep(0.01)
print(client.simulate_get("/healthz?verbose=1").text)
"""


def test_without_gunicorn_the_process_places_itself(tiny_models: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", UNDER_ANOTHER_SERVER],
        cwd=PROJECT,
        env=environment(MODELS_DIR=str(tiny_models), **HIDDEN_GPUS),
        stdout=subprocess.PIPE,
        text=True,
        timeout=START_SECONDS,
        check=True,
    )
    body = json.loads(ended.stdout)
    assert body["process"]["device"] == body["models"][MODEL]["device"] == "cpu"
    assert body["process"]["memory_bytes"] > 0
