"""Keys, limits and the log of the service as it is run, over sockets."""

from __future__ import annotations

import http.client
import json
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, closing
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.conftest import MODEL, START_SECONDS, Live

ROUTE = "/v1/embeddings"
KEY, WRONG_KEY = "the-right-key-5823", "some-wrong-key-7714"
BEARER = {"Authorization": f"Bearer {KEY}"}
MARK = "nobodysbusiness"
MEGABYTE = 1_000_000
RATE = 20
Serve = Callable[..., AbstractContextManager[Live]]


def body(given: object = "a", **fields: object) -> dict[str, object]:
    return {"model": MODEL, "input": given, **fields}


def address(live: Live) -> str:
    return live.url.removeprefix("http://")


def chunks(num_megabytes: int) -> Iterator[bytes]:
    for _ in range(num_megabytes):
        yield b" " * MEGABYTE


@pytest.fixture(scope="module")
def locked(tiny_models: Path, serve: Serve) -> Iterator[Live]:
    with serve(tiny_models, API_KEYS=f"another,{KEY}") as live:
        yield live


@pytest.mark.parametrize(
    "content", [lambda: b" " * 5 * MEGABYTE, lambda: chunks(5)], ids=["whole", "chunked"]
)
def test_a_connection_goes_on_after_a_refusal(locked: Live, content: Callable[[], Any]):
    with closing(http.client.HTTPConnection(address(locked), timeout=60)) as connection:
        connection.request("POST", ROUTE, body=content(), headers={"Content-Type": "application/json"})
        refused = connection.getresponse()
        refused.read()
        used = connection.sock
        connection.request("POST", ROUTE, body=json.dumps(body()).encode(), headers=BEARER)
        answer = connection.getresponse()
        found = json.loads(answer.read())
        assert connection.sock is used
    assert (refused.status, refused.headers["www-authenticate"].split()[0]) == (401, "Bearer")
    assert (answer.status, len(found["data"])) == (200, 1)


def test_a_refusal_does_not_wait_for_the_body(locked: Live):
    """It is decided by the head alone, but told once what was announced has come, or has not for a while."""
    with closing(http.client.HTTPConnection(address(locked), timeout=60)) as connection:
        connection.request("POST", ROUTE, body=b" " * 40 * MEGABYTE)  # more than MAX_BODY_BYTES, which is 413
        assert connection.getresponse().status == 401


def test_two_workers_share_a_limit(tiny_models: Path, serve: Serve):
    with serve(tiny_models, WORKERS="2", RATE_LIMIT=str(RATE)) as live, ExitStack() as stack:
        begin = time.monotonic()
        clients = one_of_each_worker(live, stack)
        statuses = [client.post(ROUTE, json=body()).status_code for client in clients * RATE]
        refills = (time.monotonic() - begin) * RATE / 60
        assert statuses[:RATE] == [200] * RATE
        assert RATE <= statuses.count(200) <= RATE + refills
        assert statuses.count(429) == 2 * RATE - statuses.count(200)
        refused = next(
            answer
            for answer in iter(lambda: clients[0].post(ROUTE, json=body()), None)
            if answer.status_code == 429
        )
        time.sleep(int(refused.headers["retry-after"]))
        assert clients[1].post(ROUTE, json=body()).status_code == 200
        assert {client.get("/healthz").status_code for client in clients * RATE} == {200}


def one_of_each_worker(live: Live, stack: ExitStack) -> list[httpx.Client]:
    """Return two clients whose connections are kept by different workers, both of which serve."""
    found: dict[int, httpx.Client] = {}
    deadline = time.monotonic() + START_SECONDS
    while len(found) < 2:
        assert time.monotonic() < deadline, "only one worker answers"
        client = stack.enter_context(live.client())
        answer = client.get("/healthz", params={"verbose": "1"})
        if answer.status_code == 200:
            found.setdefault(answer.json()["process"]["pid"], client)
    return [*found.values()]


# --- the log ---------------------------------------------------------------------------------------------

QUOTED = json.dumps(MARK)
# method, path, body, more headers
REQUESTS: dict[str, tuple[str, str, bytes, dict[str, str]]] = {
    "right": ("POST", ROUTE, json.dumps(body([MARK, MARK])).encode(), {}),
    "query": ("POST", f"{ROUTE}?api_key={KEY}&text={MARK}", json.dumps(body()).encode(), {}),
    "rerank": ("POST", "/v1/rerank", f'{{"query": {QUOTED}, "documents": [{QUOTED}]}}'.encode(), {}),
    "too-long": ("POST", ROUTE, json.dumps(body(f"{MARK} " * 1000)).encode(), {}),
    "broken-json": ("POST", ROUTE, f'{{"input": {QUOTED}'.encode(), {}),
    "no-object": ("POST", ROUTE, QUOTED.encode(), {}),
    "surrogate": ("POST", ROUTE, f'{{"model": "{MODEL}", "input": "{MARK} \\ud800"}}'.encode(), {}),
    "wrong-utf8": ("POST", ROUTE, MARK.encode() + b"\xff\xfe", {}),
    "wrong-type": ("POST", ROUTE, json.dumps(body({MARK: MARK})).encode(), {}),
    "wrong-task": ("POST", ROUTE, json.dumps(body("a", task=MARK)).encode(), {}),
    "wrong-model": ("POST", ROUTE, f'{{"model": {QUOTED}, "input": {QUOTED}}}'.encode(), {}),
    "wrong-option": ("POST", ROUTE, json.dumps(body(MARK, embedding_type=MARK)).encode(), {}),
    "wrong-field": ("POST", ROUTE, json.dumps({MARK: MARK}).encode(), {}),
    "conflict": ("POST", ROUTE, json.dumps(body("a", texts=MARK)).encode(), {}),
    "image": ("POST", ROUTE, json.dumps(body({"image": f"http://127.0.0.1/{MARK}"})).encode(), {}),
    "data-uri": ("POST", ROUTE, json.dumps(body({"image": f"data:image/png;base64,{MARK}"})).encode(), {}),
    "content-type": ("POST", ROUTE, MARK.encode(), {"Content-Type": f"text/{MARK}"}),
    "request-id": ("POST", ROUTE, b"{}", {"X-Request-ID": f"{MARK} {KEY}"}),
    "accept": ("POST", ROUTE, json.dumps(body()).encode(), {"Accept-Encoding": MARK, "Accept": MARK}),
    "method": ("PUT", ROUTE, MARK.encode(), {}),
    "nowhere": ("POST", f"/nowhere?{MARK}", MARK.encode(), {}),
    "no-key": ("POST", ROUTE, json.dumps(body(MARK)).encode(), {"Authorization": ""}),
    "wrong-key": ("POST", ROUTE, json.dumps(body(MARK)).encode(), {"Authorization": f"Bearer {WRONG_KEY}"}),
    "wrong-scheme": ("GET", "/", b"", {"Authorization": f"Basic {WRONG_KEY}"}),
}  # fmt: skip
HEAD = f"POST {ROUTE} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\n"
# What is no HTTP, or ends in the middle; a length that is too small makes the rest a request of its own.
BROKEN = {
    "short-length": f"{HEAD}Content-Length: 2\r\n\r\n{{}}{MARK} {KEY} {MARK}\r\n\r\n",
    "request-line": f"{MARK} {KEY}\r\n\r\n",
    "header": f"{HEAD}{MARK} {KEY}\r\n\r\n",
    "header-name": f"{HEAD}{MARK} x: {KEY}\r\n\r\n",
    "folding": f"{HEAD}A: b\r\n {MARK}\r\n\r\n",
    "chunk": f"{HEAD}Transfer-Encoding: chunked\r\n\r\n{MARK}\r\n{MARK}\r\n",
    "encoding": f"{HEAD}Transfer-Encoding: {MARK}\r\n\r\n",
    "expectation": f"{HEAD}Expect: {MARK}\r\n\r\n",
    "version": f"GET /{MARK}?{KEY} HTTP/7.{MARK}\r\n\r\n",
    "half-a-head": f"{HEAD}X-Note: {MARK}",
    "half-a-line": f"{MARK} {KEY}",
    "half-a-body": f'{HEAD}Content-Length: 1000\r\n\r\n{{"input": "{MARK}',
    "connection": f"{HEAD}Content-Length: {MARK}\r\n\r\n",
}


@pytest.mark.parametrize("log_format", ["json", "text"])
def test_the_log_has_no_texts_and_no_keys(tiny_models: Path, serve: Serve, log_format: str):
    settings = {"API_KEYS": f"{KEY},another", "LOG_LEVEL": "debug", "LOG_FORMAT": log_format}
    with serve(tiny_models, **settings) as live:
        for method, path, content, headers in REQUESTS.values():
            with live.client() as client:
                sent = {"Content-Type": "application/json", **BEARER, **headers}
                answer = client.request(method, path, content=content, headers=sent)
                assert answer.status_code < 500
        for broken in BROKEN.values():
            host, port = address(live).split(":")
            with socket.create_connection((host, int(port)), timeout=10) as connection:
                connection.sendall(broken.encode())
                connection.shutdown(socket.SHUT_WR)
                while connection.recv(65536):
                    pass
        assert httpx.get(f"{live.url}/livez").status_code == 200
    written = live.log.read_text()
    assert written.count(ROUTE) >= len(REQUESTS) / 2 and "Invalid request from ip=" in written
    leaks = [line for line in written.splitlines() if any(word in line for word in (MARK, KEY, WRONG_KEY))]
    assert not leaks
