"""Hostile images against a live gunicorn: nothing reaches inside, nothing takes its memory or its time.

A server of the test stands for the inside and counts who comes; the hostile one has an address of its own,
which IMAGE_ALLOW_HOSTS admits. What a resolver can do is tested with service.fetching.
"""

from __future__ import annotations

import base64
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from PIL import Image

from tests import pictures, qwen_vl, xlmr
from tests.conftest import Live
from tests.processes import LOCALHOST
from tests.qwen_vl import JINA_V4
from tests.spec import Serve

OUTSIDE = "127.0.0.2"  # the hostile server's address, allowed
MAX_SECONDS, MAX_MEGABYTES = 12, 600
STOPPING = threading.Event()  # the end of the tests here
KIND = b"Content-Type: image/png\r\n"
OK = b"HTTP/1.1 200 OK\r\n"


class Server:
    """Answers every connection in a thread of its own by a function of the path; counts connections."""

    def __init__(self, address: str, answers: dict[str, Callable[[socket.socket], None]]) -> None:
        self.answers, self.connections, self.stopping = answers, 0, threading.Event()
        self.listener = socket.create_server((address, 0))
        self.port = self.listener.getsockname()[1]
        self.threads = [threading.Thread(target=self._accept)]
        self.threads[0].start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            if self.stopping.is_set():
                connection.close()
                return
            self.connections += 1
            self.threads.append(threading.Thread(target=self._serve, args=(connection,)))
            self.threads[-1].start()

    def _serve(self, connection: socket.socket) -> None:
        with connection:
            connection.settimeout(30)
            try:
                path = connection.recv(65536).split(b" ")[1].decode()
                self.answers.get(path, not_found)(connection)
            except (OSError, IndexError):
                pass  # the client has gone, as it should

    def stop(self) -> None:
        self.stopping.set()
        STOPPING.set()
        address = self.listener.getsockname()
        socket.create_connection(address).close()
        self.listener.close()
        for thread in self.threads:
            thread.join()


def not_found(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")


def body(content: bytes) -> Callable[[socket.socket], None]:
    """Answer with a file."""
    head = OK + KIND + f"Content-Length: {len(content)}\r\n\r\n".encode()
    return lambda connection: connection.sendall(head + content)


def redirect(location: str) -> Callable[[socket.socket], None]:
    head = f"HTTP/1.1 302 Found\r\nLocation: {location}\r\nContent-Length: 0\r\n\r\n"
    return lambda connection: connection.sendall(head.encode())


def endless(head: bytes, part: bytes, pause: float) -> Callable[[socket.socket], None]:
    """Send a head, then the same part for as long as somebody listens."""

    def answer(connection: socket.socket) -> None:
        connection.sendall(head)
        for _ in range(10_000):
            connection.sendall(part)
            if STOPPING.wait(pause):
                return

    return answer


GOOD = pictures.saved(Image.fromarray(pictures.noise(64, 64)))
FILES = {
    "svg": b"<svg xmlns='http://www.w3.org/2000/svg'><image href='http://127.0.0.1/'/></svg>",
    "html": b"<!doctype html><html><body><img src='a.png'></body></html>",
    "truncated": pictures.saved(Image.fromarray(pictures.noise(200, 200)), "JPEG")[:2000],
    "strip": pictures.saved(Image.new("RGB", (4020, 20))),
    "header": pictures.png_claiming(50_000, 50_000),
    "bomb": pictures.png(12_000, 12_000),
    "text-bomb": pictures.png_text_bomb(200_000_000),
    "profile-bomb": pictures.png_profile_bomb(200_000_000),
    "empty": b"",
}
WITHIN_LIMIT = "bomb-within-the-limit"  # a picture of 64 million pixels, small as a file: it is answered


@pytest.fixture(scope="module")
def inside() -> Iterator[Server]:
    server = Server(LOCALHOST, {"/": body(GOOD)})
    yield server
    server.stop()


@pytest.fixture(scope="module")
def outside(inside: Server) -> Iterator[Server]:
    to_inside = f"http://{LOCALHOST}:{inside.port}/"
    server = Server(OUTSIDE, {})
    here = f"http://{OUTSIDE}:{server.port}"
    server.answers |= {
        "/good": body(GOOD),
        "/redirect-to-good": redirect("/good"),
        "/redirect-inside": redirect(to_inside),
        "/redirect-twice": redirect(f"{here}/redirect-inside"),
        "/redirect-decimal": redirect(f"http://2130706433:{inside.port}/"),
        "/redirect-loop": redirect("/redirect-loop"),
        "/redirect-file": redirect("file:///etc/passwd"),
        "/endless-body": endless(OK + KIND + b"\r\n", bytes(1 << 16), 0),
        "/endless-chunks": endless(
            OK + KIND + b"Transfer-Encoding: chunked\r\n\r\n", b"10000\r\n" + bytes(65536) + b"\r\n", 0
        ),
        "/slow-body": endless(OK + KIND + b"Content-Length: 100000\r\n\r\n", b"a", 0.5),
        "/slow-head": endless(OK, b"X-A: b\r\n", 0.5),
        "/endless-head": endless(OK, b"X-A: bbbbbbbbbbbbbbbbbbbbbbbbbbbb\r\n" * 100, 0),
        "/silent": endless(b"", b"", 1),
        "/too-large": body(bytes(9 << 20)),
        "/gzip": lambda connection: connection.sendall(
            OK + KIND + b"Content-Encoding: gzip\r\nContent-Length: 2\r\n\r\n\x1f\x8b"
        ),
        "/not-http": lambda connection: connection.sendall(b"SSH-2.0-OpenSSH_9.6\r\n"),
        f"/{WITHIN_LIMIT}": body(pictures.png_bomb(8000, 8000)),
        **{f"/{name}": body(content) for name, content in FILES.items()},
    }
    yield server
    server.stop()


@pytest.fixture(scope="module")
def live(serve: Serve, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    folder = tmp_path_factory.mktemp("hostile")
    xlmr.bake_tiny(folder, JINA_V4, qwen_vl.write_jina_v4(folder / ".checkpoints" / JINA_V4))
    proxies = {"HTTP_PROXY": f"http://{LOCALHOST}:9", "http_proxy": f"http://{LOCALHOST}:9", "NO_PROXY": ""}
    with serve(folder, IMAGE_ALLOW_HOSTS=f"{OUTSIDE}/32", **proxies) as running:
        yield running


def worker_of(live: Live) -> int:
    children = Path(f"/proc/{live.process.pid}/task/{live.process.pid}/children").read_text().split()
    (worker,) = children
    return int(worker)


def post(live: Live, image: str) -> httpx.Response:
    body = {"model": JINA_V4, "input": ["a text", {"image": image}]}
    return httpx.post(f"{live.url}/v1/embeddings", json=body, timeout=60)


def ask_within_limits(live: Live, image: str) -> httpx.Response:
    """Ask for an image; check time, and the memory of the worker at its peak."""
    worker = Path(f"/proc/{worker_of(live)}")
    (worker / "clear_refs").write_text("5")  # forget the peak so far
    before = memory_of(worker, "VmRSS")
    begin = time.monotonic()
    answer = post(live, image)
    assert time.monotonic() - begin < MAX_SECONDS
    assert memory_of(worker, "VmHWM") - before < MAX_MEGABYTES
    assert worker_of(live) == int(worker.name), "the worker has died"
    return answer


def memory_of(process: Path, field: str) -> float:
    """Return a figure of /proc/PID/status in megabytes."""
    lines = (process / "status").read_text().splitlines()
    (found,) = (line.split()[1] for line in lines if line.startswith(f"{field}:"))
    return int(found) / 1024


def assert_refused(answer: httpx.Response, code: str) -> str:
    assert answer.status_code == 422, answer.text
    error = answer.json()["error"]
    assert (error["param"], error["code"]) == ("input[1].image", code), error
    return str(error["message"])


INSIDE_URLS = (
    "http://127.0.0.1:{port}/", "http://127.1:{port}/", "http://2130706433:{port}/",
    "http://0x7f000001:{port}/", "http://0x7f.1:{port}/", "http://0177.0.0.1:{port}/",
    "http://017700000001:{port}/", "http://localhost:{port}/", "http://LOCALHOST.:{port}/",
    "http://[::ffff:127.0.0.1]:{port}/", "http://[::ffff:7f00:1]:{port}/", "http://[::127.0.0.1]:{port}/",
    "http://[::1]:{port}/", "http://[::]:{port}/", "http://0.0.0.0:{port}/", "http://0:{port}/",
    "http://[64:ff9b::7f00:1]:{port}/", "http://[64:ff9b:1::7f00:1]/", "http://[2002:7f00:1::]/",
    "http://[fe80::1]/", "http://[fc00::1]/", "http://[ff02::1]/", "http://169.254.169.254/latest/meta-data/",
    "http://10.0.0.1/", "http://172.16.0.1/", "http://192.168.0.1/", "http://100.64.0.1/",
    "http://224.0.0.1/", "http://255.255.255.255/", "http://198.18.0.1/", "https://127.0.0.1:{port}/",
    "HTTP://127.0.0.1:{port}/", "http://127.0.0.3:{port}/", "http://127.0.0.2.:0x50/",
    "http://\uff11\uff12\uff17.0.0.1:{port}/", "http://127\u30020\u30020\u30021:{port}/",
)  # fmt: skip


@pytest.mark.parametrize("url", INSIDE_URLS, ids=json.dumps)
def test_inside_addresses_in_every_notation(live: Live, inside: Server, url: str) -> None:
    before = inside.connections
    answer = post(live, url.format(port=inside.port))
    assert answer.status_code == 422, answer.text
    error = answer.json()["error"]
    assert error["code"] in ("image_url_not_allowed", "image_url_invalid"), error
    if error["code"] == "image_url_not_allowed":
        assert "not allowed" in error["message"]
    assert inside.connections == before
    for secret in ("127.0", str(inside.port), "169.254", "::", "2130706433"):
        assert secret not in error["message"]


@pytest.mark.parametrize("path", ["redirect-inside", "redirect-twice", "redirect-decimal"])
def test_redirects_to_the_inside(live: Live, inside: Server, outside: Server, path: str) -> None:
    before = inside.connections, outside.connections
    answer = ask_within_limits(live, f"http://{OUTSIDE}:{outside.port}/{path}")
    message = assert_refused(answer, "image_url_not_allowed")
    assert "not allowed" in message and LOCALHOST not in message and str(inside.port) not in message
    assert inside.connections == before[0]
    assert outside.connections > before[1], "the redirect was not asked for"


def test_what_is_allowed_is_answered(live: Live, outside: Server) -> None:
    here = f"http://{OUTSIDE}:{outside.port}"
    given = post(live, base64.b64encode(GOOD).decode())
    assert given.status_code == 200, given.text
    for path in ("good", "redirect-to-good"):
        assert ask_within_limits(live, f"{here}/{path}").json() == given.json()


FAILURES = {
    "redirect-loop": "image_fetch_failed",
    "redirect-file": "image_url_invalid",
    "endless-body": "image_too_large",
    "endless-chunks": "image_too_large",
    "too-large": "image_too_large",
    "endless-head": "image_fetch_failed",
    "not-http": "image_fetch_failed",
    "missing": "image_fetch_failed",
    "gzip": "invalid_image",
    "svg": "invalid_image",
    "html": "invalid_image",
    "truncated": "invalid_image",
    "strip": "invalid_image",
    "text-bomb": "invalid_image",
    "profile-bomb": "invalid_image",
    "empty": "invalid_image",
    "header": "image_too_large",
    "bomb": "image_too_large",
}


@pytest.mark.parametrize("path", FAILURES)
def test_hostile_files_and_servers(live: Live, outside: Server, path: str) -> None:
    answer = ask_within_limits(live, f"http://{OUTSIDE}:{outside.port}/{path}")
    assert_refused(answer, FAILURES[path])


def test_servers_that_take_their_time(live: Live, outside: Server) -> None:
    """All at once, as each is left only when the time is up; texts are answered meanwhile."""
    paths = ("slow-body", "slow-head", "silent")
    begin = time.monotonic()
    with ThreadPoolExecutor(len(paths)) as pool:
        asked = [pool.submit(post, live, f"http://{OUTSIDE}:{outside.port}/{path}") for path in paths]
        body = {"model": JINA_V4, "input": "a text"}
        assert httpx.post(f"{live.url}/v1/embeddings", json=body, timeout=5).status_code == 200
        for answer in asked:
            assert "too long" in assert_refused(answer.result(), "image_fetch_failed")
    assert time.monotonic() - begin < MAX_SECONDS


@pytest.mark.parametrize("name", FILES)
def test_hostile_files_in_the_body(live: Live, name: str) -> None:
    answer = ask_within_limits(live, base64.b64encode(FILES[name]).decode())
    assert_refused(answer, FAILURES[name])


def test_a_bomb_within_the_limit_is_answered_in_bounded_memory(live: Live, outside: Server) -> None:
    answer = ask_within_limits(live, f"http://{OUTSIDE}:{outside.port}/{WITHIN_LIMIT}")
    assert answer.status_code == 200, answer.text


def test_several_bombs_at_once_take_the_memory_of_one(live: Live) -> None:
    bomb = base64.b64encode(pictures.png_bomb(8000, 8000)).decode()
    worker = Path(f"/proc/{worker_of(live)}")
    (worker / "clear_refs").write_text("5")
    before = memory_of(worker, "VmRSS")
    answers: list[int] = []
    threads = [
        threading.Thread(target=lambda: answers.append(post(live, bomb).status_code)) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [200] * 4
    assert memory_of(worker, "VmHWM") - before < MAX_MEGABYTES
