"""The service as it is run: gunicorn in processes of its own, spoken to over sockets."""

from __future__ import annotations

import gzip
import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, closing
from pathlib import Path
from typing import Any, BinaryIO

import httpx
import numpy as np
import pytest

from tests.checkpoints import HIDDEN
from tests.conftest import MODEL, START_SECONDS, Live
from tests.processes import GUNICORN, PROJECT, environment, free_port

ROUTE = "/v1/embeddings"
JSON = {"Content-Type": "application/json"}
TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
MEGABYTE = 1_000_000
NUM_COPIES = 60
Serve = Callable[..., AbstractContextManager[Live]]


def request(given: object, **fields: object) -> dict[str, object]:
    return {"model": MODEL, "input": given, **fields}


def body(given: object, **fields: object) -> bytes:
    return json.dumps(request(given, **fields)).encode()


def embed(live: Live, given: object, **fields: object) -> np.ndarray:
    with live.client() as client:
        answer = client.post(ROUTE, json=request(given, **fields))
    assert answer.status_code == 200, answer.text
    return np.array([item["embedding"] for item in answer.json()["data"]])


def wait_until(is_reached: Callable[[], object]) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not is_reached():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.02)


def health(live: Live) -> tuple[int, dict[str, Any]] | None:
    """Ask for the health; None while nobody listens."""
    try:
        answer = httpx.get(f"{live.url}/healthz")
    except httpx.TransportError:
        return None
    return answer.status_code, answer.json()


def many_bundles(models: Path, folder: Path) -> Path:
    """Fill a models folder with copies of the tiny bundle, so that loading takes a while."""
    for number in range(NUM_COPIES):
        copy = shutil.copytree(models / MODEL, folder / f"copy{number}")
        manifest = json.loads((copy / "manifest.json").read_text())
        (copy / "manifest.json").write_text(json.dumps(manifest | {"name": copy.name}))
    return folder


def statistics(pid: int) -> list[str]:
    """Return a process's fields of /proc from its state on."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    except OSError:
        return ["gone", "0"]


def workers(live: Live) -> set[int]:
    pids = (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit())
    return {pid for pid in pids if statistics(pid)[1] == str(live.process.pid)}


def cpu_seconds(pid: int) -> float:
    user, system = statistics(pid)[11:13]
    return (int(user) + int(system)) / TICKS_PER_SECOND


# --- right requests --------------------------------------------------------------------------------------


def test_port_answers_while_models_load(tiny_models: Path, tmp_path: Path, serve: Serve):
    with serve(many_bundles(tiny_models, tmp_path), wait=False) as live:
        answers: list[tuple[int, dict[str, Any]]] = []

        def is_ready() -> bool:
            answers.extend(filter(None, [health(live)]))
            return bool(answers) and answers[-1][0] == 200

        wait_until(is_ready)
        assert answers[0] == (503, {"status": "loading"})
        assert all(answer == answers[0] for answer in answers[:-1])
        assert answers[-1] == (200, {"status": "ok"})
        assert len(httpx.get(f"{live.url}/v1/models").json()["data"]) == NUM_COPIES


def test_requests_of_a_first_visit(live: Live):
    with live.client() as client:
        answer = client.post(ROUTE, headers=JSON, content=body(["Hello, world!", "How are you?"]))
        models = client.get("/v1/models").json()["data"]
        assert [client.get(path).status_code for path in ("/", "/healthz", "/readyz", "/livez")] == [200] * 4
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/json")
    assert answer.headers["x-request-id"]
    found = answer.json()
    assert [item["index"] for item in found["data"]] == [0, 1]
    np.testing.assert_allclose(
        [np.linalg.norm(item["embedding"]) for item in found["data"]], 1, rtol=0, atol=1e-6
    )
    assert found["usage"] == {"prompt_tokens": 26, "total_tokens": 26}
    assert [model["id"] for model in models] == [MODEL]


def test_many_at_once_get_their_own_answers(live: Live):
    texts = [f"text {number}" for number in range(64)]
    expected = embed(live, texts)
    with ThreadPoolExecutor(16) as pool:
        found = np.concatenate(list(pool.map(lambda text: embed(live, text), texts)))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("precision", ["fp32", "int8", "int8-block"])
def test_precisions(tiny_models: Path, serve: Serve, precision: str):
    variants = json.loads((tiny_models / MODEL / "manifest.json").read_text())["variants"]
    verified = {variant["precision"]: variant["verified"] for variant in variants}
    with serve(tiny_models, PRECISION=precision) as live:
        (model,) = httpx.get(f"{live.url}/v1/models").json()["data"]
        norms = np.linalg.norm(embed(live, ["a", "hello " * 8]), axis=1)
    assert (model["precision"], model["verified"]) == (precision, verified[precision])
    np.testing.assert_allclose(norms, 1, rtol=0, atol=1e-6)


# --- wrong requests --------------------------------------------------------------------------------------


def chunks(num_bytes: int) -> Iterator[bytes]:
    for _ in range(num_bytes // MEGABYTE):
        yield b" " * MEGABYTE


LARGE = 40 * MEGABYTE
# method, path, body, more headers, status, code
WRONG: dict[str, tuple[str, str, Callable[[], Any], dict[str, str], int, str]] = {
    "invalid-json": ("POST", ROUTE, lambda: b"{not json", {}, 422, "invalid_json"),
    "empty-body": ("POST", ROUTE, lambda: b"", {}, 422, "invalid_json"),
    "deep-nesting": ("POST", ROUTE, lambda: b"[" * 100_000, {}, 422, "invalid_json"),
    "lone-surrogate": ("POST", ROUTE, lambda: body("a \ud800 b"), {}, 422, "invalid_json"),
    "wrong-type": ("POST", ROUTE, lambda: body(5), {}, 422, "wrong_type"),
    "empty-list": ("POST", ROUTE, lambda: body([]), {}, 422, "empty_input"),
    "too-long": ("POST", ROUTE, lambda: body("word " * 1000), {}, 422, "input_too_long"),
    "10-mb-string": ("POST", ROUTE, lambda: body("word " * 2 * MEGABYTE), {}, 422, "input_too_long"),
    "3000-inputs": ("POST", ROUTE, lambda: body(["a"] * 3000), {}, 422, "too_many_inputs"),
    "40-mb": ("POST", ROUTE, lambda: b" " * LARGE, {}, 413, "body_too_large"),
    "40-mb-close": ("POST", ROUTE, lambda: b" " * LARGE, {"Connection": "close"}, 413, "body_too_large"),
    "40-mb-chunked": ("POST", ROUTE, lambda: chunks(LARGE), {}, 413, "body_too_large"),
    "40-mb-chunked-close": (
        "POST", ROUTE, lambda: chunks(LARGE), {"Connection": "close"}, 413, "body_too_large"
    ),
    "unknown-model": ("POST", ROUTE, lambda: b'{"model": "x", "input": "a"}', {}, 404, "model_not_found"),
    "wrong-method": ("GET", ROUTE, lambda: None, {}, 405, "method_not_allowed"),
    "wrong-method-with-body": ("PUT", ROUTE, lambda: body("a"), {}, 405, "method_not_allowed"),
    "unknown-route": ("POST", "/v1/nope", lambda: body("a"), {}, 404, "route_not_found"),
    "wrong-content-type": (
        "POST", ROUTE, lambda: body("a"), {"Content-Type": "text/plain"}, 415, "unsupported_media_type"
    ),
    "compressed": (
        "POST", ROUTE, lambda: gzip.compress(body("a")), {"Content-Encoding": "gzip"},
        415, "unsupported_media_type",
    ),
    # A large body that nobody wants is read away all the same: cut off, clients would report a broken pipe.
    "wrong-content-type-5-mb": (
        "POST", ROUTE, lambda: b" " * 5 * MEGABYTE, {"Content-Type": "text/plain"},
        415, "unsupported_media_type",
    ),
    "wrong-content-type-5-mb-close": (
        "POST", ROUTE, lambda: b" " * 5 * MEGABYTE, {"Content-Type": "text/plain", "Connection": "close"},
        415, "unsupported_media_type",
    ),
    "wrong-method-5-mb": ("PUT", ROUTE, lambda: b" " * 5 * MEGABYTE, {}, 405, "method_not_allowed"),
    "unknown-route-5-mb-chunked": (
        "POST", "/v1/nope", lambda: chunks(5 * MEGABYTE), {}, 404, "route_not_found"
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    ("method", "path", "content", "headers", "status", "code"), WRONG.values(), ids=WRONG
)
def test_wrong_request_is_answered_and_harms_nothing(
    live: Live,
    method: str,
    path: str,
    content: Callable[[], Any],
    headers: dict[str, str],
    status: int,
    code: str,
):
    before = workers(live)
    with closing(http.client.HTTPConnection(live.url.removeprefix("http://"), timeout=60)) as connection:
        connection.request(method, path, body=content(), headers=JSON | headers)
        answer = connection.getresponse()
        found = json.loads(answer.read())
        connection.request("POST", ROUTE, body=body("still there"), headers=JSON)
        next_answer = connection.getresponse()
        next_found = json.loads(next_answer.read())
    assert (answer.status, found["error"]["code"]) == (status, code)
    assert answer.headers["content-type"] == "application/json" and answer.headers["x-request-id"]
    assert found["detail"] == found["error"]["message"]
    assert (next_answer.status, len(next_found["data"])) == (200, 1)
    assert workers(live) == before != set()


@pytest.mark.parametrize("text", ["", "a\x00b", "\x00", "🦊"], ids=["empty", "nul-inside", "nul", "emoji"])
def test_unusual_texts_are_embedded(live: Live, text: str):
    assert np.isfinite(embed(live, text)).all()


def raw(method: str, path: str, content: bytes, content_type: str = "application/json") -> bytes:
    head = f"{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Type: {content_type}\r\n"
    return f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content


def read_answer(stream: BinaryIO) -> tuple[int, Any]:
    status = int(stream.readline().split()[1])
    headers = http.client.parse_headers(stream)
    return status, json.loads(stream.read(int(headers["content-length"])))


FIRST = {
    "422": (raw("POST", ROUTE, b"{"), 422),
    "404": (raw("POST", "/nope", body("a" * 50_000)), 404),
    "405": (raw("PUT", ROUTE, body("a" * 50_000)), 405),
    "415": (raw("POST", ROUTE, body("a" * 50_000), "text/plain"), 415),
}


def connect(live: Live) -> socket.socket:
    host, port = live.url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=60)


@pytest.mark.parametrize("is_pipelined", [True, False], ids=["pipelined", "one-by-one"])
@pytest.mark.parametrize(("first", "status"), FIRST.values(), ids=FIRST)
def test_connection_goes_on_after_an_error(live: Live, first: bytes, status: int, is_pipelined: bool):
    second = raw("POST", ROUTE, body(["a", "b"]))
    with connect(live) as connection, connection.makefile("rb") as stream:
        connection.sendall(first + second if is_pipelined else first)
        assert read_answer(stream)[0] == status
        if not is_pipelined:
            connection.sendall(second)
        assert read_answer(stream)[0] == 200


def test_broken_chunk_is_broken_http(live: Live):
    head = raw("POST", ROUTE, b"").replace(b"Content-Length: 0", b"Transfer-Encoding: chunked")
    with connect(live) as connection, connection.makefile("rb") as stream:
        connection.sendall(head + b"no size\r\n\r\n")
        status, found = read_answer(stream)
    assert (status, found["error"]["type"]) == (400, "invalid_request_error")


@pytest.mark.parametrize("path", [ROUTE, "/nowhere"])
def test_a_stalled_upload_holds_its_thread_for_a_while_only(
    tiny_models: Path, serve: Serve, path: str, tmp_path: Path
):
    """The limits are those of service.bodies, shortened by a module that Python loads first."""
    (tmp_path / "sitecustomize.py").write_text(
        "import service.bodies as bodies; bodies.STALL_SECONDS = bodies.DISCARD_SECONDS = 0.3"
    )
    pythonpath = f"{tmp_path}{os.pathsep}{PROJECT}"
    with serve(tiny_models, THREADS="1", PYTHONPATH=pythonpath) as live:
        host, port = live.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=60) as connection:
            head = (
                f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 100000"
            )
            connection.sendall(head.encode() + b"\r\n\r\n{}}")
            assert read_answer(connection.makefile("rb"))[0] == (400 if path == ROUTE else 404)
        assert embed(live, "hello").shape == (1, HIDDEN)


def test_a_body_that_is_not_whole_is_broken_http(live: Live):
    with connect(live) as connection, connection.makefile("rb") as stream:
        connection.sendall(raw("POST", ROUTE, body("hello"))[:-1])
        connection.shutdown(socket.SHUT_WR)
        status, found = read_answer(stream)
    assert (status, "not whole" in found["detail"]) == (400, True)


def test_broken_http_gets_the_body_of_every_error(live: Live):
    with connect(live) as connection, connection.makefile("rb") as stream:
        connection.sendall(b"no http at all\r\n\r\n")
        status, found = read_answer(stream)
    assert (status, found["error"]["code"]) == (400, "broken_http")
    assert found["detail"] == found["error"]["message"]


def test_refusals_do_not_wait_for_uploads_that_were_refused(tiny_models: Path, serve: Serve):
    """Each refused upload that never comes used to hold one of 17 threads for 5 s."""
    head = b"POST /nowhere HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{"
    with serve(tiny_models, THREADS="1") as live, ExitStack() as stack:
        connections = [stack.enter_context(connect(live)) for _ in range(170)]
        for connection in connections:
            connection.settimeout(20)  # half of what it took
            connection.sendall(head)
        for connection in connections:
            assert read_answer(connection.makefile("rb"))[0] == 404


def expecting(content: bytes, path: str = ROUTE, kind: str = "application/json") -> bytes:
    """Return the head of a request that waits with its body until it is told to go on."""
    whole = raw("POST", path, content, kind)
    return whole[: whole.index(b"\r\n\r\n")] + b"\r\nExpect: 100-continue\r\n\r\n"


def test_a_body_that_waits_is_invited_when_it_is_wanted(live: Live):
    content = body("hello")
    with connect(live) as connection, connection.makefile("rb") as stream:
        for _ in range(2):  # the connection goes on
            connection.sendall(expecting(content))
            assert (stream.readline(), stream.readline()) == (b"HTTP/1.1 100 Continue\r\n", b"\r\n")
            connection.sendall(content)
            assert read_answer(stream)[0] == 200


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (expecting(b"x" * LARGE), 413),
        (expecting(b"x", kind="text/plain"), 415),
        (expecting(b"x", path="/nowhere"), 404),
    ],
    ids=["too large", "no JSON", "no route"],
)
def test_a_body_that_waits_is_not_invited_to_be_refused(live: Live, head: bytes, status: int):
    with connect(live) as connection, connection.makefile("rb") as stream:
        connection.sendall(head)
        line = stream.readline()
        assert line.split()[1] == str(status).encode()
        assert b"connection: close" in stream.read().lower()  # to its end: nobody reads a body that may come


def test_a_newcomer_is_served_where_idle_connections_are_as_many_as_there_may_be(
    tiny_models: Path, serve: Serve, tmp_path: Path
):
    few = "import runpy; globals().update(runpy.run_path('gunicorn.conf.py')); worker_connections = 40"
    (tmp_path / "few.py").write_text(few)
    with (
        serve(tiny_models, THREADS="1", configuration=str(tmp_path / "few.py")) as live,
        ExitStack() as stack,
    ):
        for _ in range(100):
            connection = stack.enter_context(connect(live))
            connection.settimeout(20)  # idle ones are kept for 75 s
            connection.sendall(raw("POST", ROUTE, body("hello")))
            assert read_answer(connection.makefile("rb"))[0] == 200


def test_half_heads_hold_no_more_than_half_of_the_threads(tiny_models: Path, serve: Serve):
    """Each held a thread for 30 s, and health had none."""
    with serve(tiny_models, THREADS="1") as live, ExitStack() as stack:
        halves = [stack.enter_context(connect(live)) for _ in range(60)]  # the worker has 17 threads
        for connection in halves:
            connection.sendall(b"GET /livez HTTP/1.1\r\nHos")
        with connect(live) as connection, connection.makefile("rb") as stream:
            connection.settimeout(15)  # half of what it took
            connection.sendall(raw("POST", ROUTE, body("hello")))
            assert read_answer(stream)[0] == 200
        for connection in halves[-20:]:  # those that wait are served once the rest has come
            connection.settimeout(15)
            connection.sendall(b"t: x\r\n\r\n")
            assert b" 200 " in connection.makefile("rb").readline()


def test_open_connections_hold_no_thread(tiny_models: Path, serve: Serve):
    with serve(tiny_models, THREADS="1") as live, ExitStack() as stack:
        connections = [stack.enter_context(connect(live)) for _ in range(4)]
        for _ in range(3):
            for connection in connections:
                connection.sendall(raw("POST", ROUTE, body("hello")))
                with connection.makefile("rb") as stream:
                    assert read_answer(stream)[0] == 200


def test_connections_that_never_send_hold_no_thread(tiny_models: Path, serve: Serve):
    with serve(tiny_models, THREADS="1") as live, ExitStack() as stack:
        for _ in range(200):
            stack.enter_context(connect(live))
        with connect(live) as connection, connection.makefile("rb") as stream:
            connection.settimeout(10)  # a tenth of what it would take if each held a thread for its 5 s
            connection.sendall(raw("POST", ROUTE, body("hello")))
            assert read_answer(stream)[0] == 200


def test_no_connection_is_promised_over_a_body_that_never_came(
    tiny_models: Path, serve: Serve, tmp_path: Path
):
    (tmp_path / "sitecustomize.py").write_text("import service.bodies as it; it.DISCARD_SECONDS = 0.3")
    with serve(tiny_models, PYTHONPATH=f"{tmp_path}{os.pathsep}{PROJECT}") as live:
        with connect(live) as connection, connection.makefile("rb") as stream:
            connection.sendall(b"POST /nowhere HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{}")
            head = b"".join(iter(stream.readline, b"\r\n")).lower()
        assert b"404" in head
        assert b"connection: close" in head


def test_heads_that_break_off_hold_no_thread_for_ever(tiny_models: Path, serve: Serve, tmp_path: Path):
    """Of a worker that gives a client less time, by a module that Python loads first."""
    (tmp_path / "sitecustomize.py").write_text("import service.worker as worker; worker.STALL_SECONDS = 0.3")
    pythonpath = f"{tmp_path}{os.pathsep}{PROJECT}"
    with serve(tiny_models, THREADS="1", PYTHONPATH=pythonpath) as live, ExitStack() as stack:
        for _ in range(40):  # the worker has 17 threads
            stack.enter_context(connect(live)).sendall(b"POST /v1/emb")
        assert embed(live, "hello").shape == (1, HIDDEN)
        assert "Traceback" not in live.log.read_text()


# --- processes -------------------------------------------------------------------------------------------


def test_killed_worker_comes_back(tiny_models: Path, serve: Serve):
    with serve(tiny_models) as live:
        before = embed(live, "hello")
        (killed,) = workers(live)
        os.kill(killed, signal.SIGKILL)
        wait_until(lambda: workers(live) - {killed} and health(live) == (200, {"status": "ok"}))
        assert killed not in workers(live)
        np.testing.assert_array_equal(embed(live, "hello"), before)
        assert live.process.poll() is None


def test_sigterm_lets_a_request_finish(real_models: Path, serve: Serve):
    texts = [f"{number} " + "some longer words about nothing " * 60 for number in range(96)]
    with serve(real_models) as live, ThreadPoolExecutor(1) as pool:
        (worker,) = workers(live)
        idle = cpu_seconds(worker)
        answer = pool.submit(embed, live, texts, truncate=True)
        wait_until(lambda: cpu_seconds(worker) > idle + 0.5)
        assert not answer.done(), "the request must be in flight"
        live.process.send_signal(signal.SIGTERM)
        np.testing.assert_allclose(np.linalg.norm(answer.result(), axis=1), np.ones(96), rtol=0, atol=1e-6)
        assert live.process.wait(START_SECONDS) == 0


@pytest.mark.parametrize("moment", ["loading", "ready"])
def test_a_stop_is_clean(tiny_models: Path, tmp_path: Path, serve: Serve, moment: str):
    """Native threads that are cut off, or made before the fork, abort the process: 'terminate called'."""
    with serve(many_bundles(tiny_models, tmp_path), wait=moment == "ready", LOG_FORMAT="text") as live:
        wait_until(lambda: "model ready" in live.log.read_text())
        live.process.send_signal(signal.SIGTERM)
        assert live.process.wait(START_SECONDS) == 0
    written = live.log.read_text()
    assert "terminate" not in written
    assert "Worker exiting" in written
    assert moment == "ready" or written.count("model ready") < NUM_COPIES


def test_the_master_holds_no_native_thread_pool(tiny_models: Path):
    """What the master imports is in every worker from before the fork."""
    code = (
        "import runpy, sys; runpy.run_path('gunicorn.conf.py');"
        "print([name for name in ('onnxruntime', 'tokenizers') if name in sys.modules])"
    )
    settings = environment(MODELS_DIR=str(tiny_models))
    command = [sys.executable, "-c", code]
    found = subprocess.run(command, cwd=PROJECT, env=settings, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_idle_service_takes_no_processor_time(live: Live):
    embed(live, ["warm", "up"])
    for number in range(20):
        embed(live, [f"text {number}"] * 32)
    time.sleep(0.5)
    pids = workers(live) | {live.process.pid}
    before = sum(map(cpu_seconds, pids))
    time.sleep(3)
    assert sum(map(cpu_seconds, pids)) - before < 0.02 * 3


# --- settings --------------------------------------------------------------------------------------------


def start(models: Path, **settings: str) -> subprocess.CompletedProcess[str]:
    """Run a start that is expected to fail."""
    return subprocess.run(
        GUNICORN,
        cwd=PROJECT,
        env=environment(HOST="127.0.0.1", PORT=str(free_port()), MODELS_DIR=str(models))
        | {"CUDA_VISIBLE_DEVICES": ""}  # of a host that has some
        | settings,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=START_SECONDS,
        check=False,
    )


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("PORT", "abc", "whole number from 1 to 65535"),
        ("PORT", "70000", "65535"),
        ("PRECISION", "int5", "int8-block"),
        ("DEVICE", "cuda", "pip install '.[gpu]'"),
        ("DEVICE", "cuda:1", "DEVICE=auto"),
        ("DEVICE", "tpu", "cpu"),
        ("API_KEYS", "x,", "key 2 of 2"),
        ("RATE_LIMIT", "often", "whole number"),
        ("CORS_ORIGINS", "everybody", "https://"),
        ("COMPRESSION", "zstd", "never"),
        ("REQUEST_TIMEOUT", "0", "above 0"),
        ("MAX_QUEUE_TOKENS", "many", "whole number"),
        ("WORKERS", "zero", "from 1 to 1024, or auto"),
        ("MODELS_TO_LOAD", "nope", MODEL),
        ("MODELS_TO_LOAD", "all-minilm-l6", f"Did you mean {MODEL}?"),
        ("MAX_INPUTS", "0", "from 1"),
        ("VERIFY_HASHES", "yes", "0 or 1"),
        ("LOG_LEVEL", "loud", "info"),
    ],
)
def test_wrong_setting_stops_the_start(tiny_models: Path, name: str, value: str, reason: str):
    ended = start(tiny_models, **{name: value})
    assert ended.returncode != 0
    (line,) = ended.stdout.splitlines()
    assert name in line and reason in line


def test_a_port_that_is_taken_stops_the_start_with_the_remedy(tiny_models: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ended = start(tiny_models, HOST="127.0.0.1", PORT=str(port))
    assert ended.returncode == 1
    *_, line = ended.stdout.splitlines()
    assert f"('127.0.0.1', {port})" in line and "PORT=18080" in line


def test_a_slip_in_the_name_of_a_setting_is_a_warning(tiny_models: Path, serve: Serve) -> None:
    with serve(tiny_models, API_KEY="a-key") as live:
        assert "API_KEY is set, which is no setting; was API_KEYS meant?" in live.log.read_text()


def test_no_bundle_stops_the_start(tmp_path: Path):
    ended = start(tmp_path)
    assert ended.returncode != 0
    (line,) = ended.stdout.splitlines()
    assert "MODELS_DIR" in line and re.search(r"python -m convert all-minilm-l6-v2\b", line)


def test_precision_that_was_not_baked_stops_the_start(tiny_models: Path, tmp_path: Path):
    bundle = shutil.copytree(tiny_models / MODEL, tmp_path / MODEL)
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["variants"] = [variant for variant in manifest["variants"] if variant["precision"] != "int8"]
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    ended = start(tmp_path, PRECISION="int8")
    assert ended.returncode != 0
    (line,) = ended.stdout.splitlines()
    assert all(part in line for part in ("PRECISION", "int8", "fp32", "int8-block"))


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_hashes_are_verified_on_request(tiny_models: Path, tmp_path: Path, serve: Serve):
    bundle = shutil.copytree(tiny_models / MODEL, tmp_path / MODEL)
    flip_a_byte(bundle / "int8" / "weights.data")
    with serve(tmp_path, PRECISION="fp32") as live:  # not noticed: sizes are right, and it is not opened
        assert embed(live, "hello").shape == (1, HIDDEN)
    with serve(tmp_path, wait=False, PRECISION="fp32", VERIFY_HASHES="1") as live:
        wait_until(lambda: (health(live) or (0, {}))[1].get("status") == "error")
        status, found = health(live) or (0, {})
        with live.client() as client:
            refused = client.post(ROUTE, json=request("hello"))
    assert status == 503 and "sha256" in found["failed"][MODEL]
    assert "weights.data" in found["failed"][MODEL]
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "model_failed")


def test_broken_bundle_beside_a_good_one(tiny_models: Path, tmp_path: Path, serve: Serve):
    shutil.copytree(tiny_models / MODEL, tmp_path / MODEL)
    broken = shutil.copytree(tiny_models / MODEL, tmp_path / "broken")
    (broken / "manifest.json").write_bytes(b'{"name": "\xff')
    with serve(tmp_path, wait=False) as live:
        wait_until(lambda: live.process.poll() is not None or "error" in str(health(live)))
        assert live.process.poll() is None, live.log.read_text()
        assert httpx.get(f"{live.url}/readyz").status_code == 200
        assert embed(live, "hello").shape == (1, HIDDEN)


@pytest.mark.parametrize("log_format", ["json", "text"])
def test_log_lines(tiny_models: Path, serve: Serve, log_format: str):
    with serve(tiny_models, LOG_FORMAT=log_format) as live:
        embed(live, "my secret words")
        with live.client() as client:
            client.post(ROUTE, headers={"X-Request-ID": "call-1"}, content=b"{my secret words")
    written = live.log.read_text()
    lines = written.splitlines()
    (line,) = [line for line in lines if "call-1" in line]
    assert "secret" not in written
    if log_format == "text":
        assert "request_id=call-1" in line and "status=422" in line and "path=/v1/embeddings" in line
    else:
        found = [json.loads(line) for line in lines]  # gunicorn's own among them
        assert all({"time", "level", "message"} <= set(entry) for entry in found)
        assert json.loads(line).items() >= {"request_id": "call-1", "status": 422, "path": ROUTE}.items()


WITHOUT_HEAVY_PACKAGES = f"""
import importlib, sys
from pathlib import Path

BARRED = ("torch", "transformers", "onnx", "optimum", "convert")

class Barrier:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in BARRED:
            raise ImportError(name + " is barred")

sys.meta_path.insert(0, Barrier())
for name in BARRED:
    try:
        importlib.import_module(name)
    except ImportError:
        continue
    sys.exit(name + " could be imported")

for path in sorted(Path("service").rglob("*.py")):
    if path.stem not in ("wsgi", "gunicorn_conf"):  # these two start the service
        importlib.import_module(".".join(path.with_suffix("").parts).removesuffix(".__init__"))

from falcon.testing import TestClient
from service.app import make_app
from service.config import Settings
from service.registry import Registry
from service.scheduler import Scheduler

settings = Settings(models_dir=Path(sys.argv[1]))
registry = Registry(settings, Scheduler(settings.max_batch_tokens))
registry.load()
answer = TestClient(make_app(settings, registry)).simulate_post(
    "{ROUTE}", json={{"model": "{MODEL}", "input": "hello"}}
)
print(answer.status_code, len(answer.json["data"][0]["embedding"]))
"""


def test_service_needs_no_heavy_package(tiny_models: Path):
    ended = subprocess.run(
        [sys.executable, "-c", WITHOUT_HEAVY_PACKAGES, str(tiny_models)],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        timeout=START_SECONDS,
        check=False,
    )
    assert (ended.returncode, ended.stdout) == (0, f"200 {HIDDEN}\n"), ended.stderr
