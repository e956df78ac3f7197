"""Fetching from servers of the test: to which address, under which name, for how long, how much.

What a whole service does with hostile servers is in tests/test_hostile_images.py.
"""

from __future__ import annotations

import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from ipaddress import ip_network
from pathlib import Path

import pytest

from service import addresses, fetching
from service.addresses import FetchRules
from service.errors import ImageError
from service.fetching import fetch

LOCAL = FetchRules(allowed_networks=(ip_network("127.0.0.0/8"),), max_seconds=5)
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nfile"


@dataclass
class Asked:
    """What came to a server: the requests, and how many connections."""

    port: int
    requests: list[str] = field(default_factory=list)
    connections: int = 0


@contextmanager
def serving(
    answer: Callable[[str], bytes], address: str = "127.0.0.1", context: ssl.SSLContext | None = None
) -> Iterator[Asked]:
    """Answer connections one after the other with the bytes that a request is given."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    listener = socket.create_server((address, 0), family=family)
    asked = Asked(listener.getsockname()[1])
    stopping = threading.Event()

    def serve() -> None:
        while True:
            connection, _ = listener.accept()
            with connection, suppress(OSError):
                if stopping.is_set():
                    return
                asked.connections += 1
                connection.settimeout(10)
                if context:
                    with context.wrap_socket(connection, server_side=True) as wrapped:
                        reply(wrapped)
                else:
                    reply(connection)

    def reply(connection: socket.socket) -> None:
        received = connection.recv(65536).decode()
        asked.requests.append(received)
        connection.sendall(answer(received))

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield asked
    finally:
        stopping.set()
        socket.create_connection((address, asked.port)).close()
        thread.join()
        listener.close()


def refused(url: str, code: str, rules: FetchRules = LOCAL) -> str:
    with pytest.raises(ImageError) as error:
        fetch(url, rules)
    assert error.value.code == code, error.value.message
    return error.value.message


@pytest.mark.parametrize(
    ("url", "line"),
    [
        ("http://127.0.0.1:{port}", "GET / HTTP/1.1"),
        ("HTTP://127.0.0.1:{port}/a/b.png?c=d&e=%20#f", "GET /a/b.png?c=d&e=%20 HTTP/1.1"),
        ("http://127.0.0.1:{port}/grün?ü", "GET /gr%C3%BCn?%C3%BC HTTP/1.1"),
        ("http://127.0.0.1:{port}?x", "GET /?x HTTP/1.1"),
    ],
)
def test_a_request(url: str, line: str) -> None:
    with serving(lambda received: OK) as asked:
        assert fetch(url.format(port=asked.port), LOCAL) == b"file"
    (received,) = asked.requests
    lines = received.split("\r\n")
    assert lines[0] == line
    headers = dict(entry.lower().split(": ", 1) for entry in lines[1:] if entry)
    assert headers["host"] == f"127.0.0.1:{asked.port}"
    assert headers["accept-encoding"] == "identity"
    assert headers["user-agent"] == "jina-onnx-server"
    assert {"cookie", "authorization", "referer"} & set(headers) == set()


@pytest.mark.parametrize(
    "url",
    [
        "ftp://127.0.0.1/", "file:///etc/passwd", "gopher://127.0.0.1/", "data:,a", "//127.0.0.1/",
        "127.0.0.1", "http:", "http://", "http:///a", "http://:80/", "http://a:b@127.0.0.1/", "http://a@127.0.0.1/",
        "http://127.0.0.1:0/", "http://127.0.0.1:65536/", "http://127.0.0.1:x/", "http://[::1/", "http://[1]/",
        "http://127.0.0.1\\@a/", "http://a b/", "http://a\r\nX: y/", "http://a/\x00",
        "http://a/\\b", "http://[::1]a.example/", "http://[fe80::1%25eth0]/",
        "http://" + "a" * 64 + "/", "http://a..b/", "http://127.0.0.1/" + "a" * 4096,
    ],
    ids=repr,
)  # fmt: skip
def test_urls_that_are_none(url: str) -> None:
    refused(url, "image_url_invalid")


def test_the_connection_goes_to_the_address_that_was_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that is outside when it is checked and inside a moment later."""
    found = iter([["127.0.0.2"], ["127.0.0.3"]])
    monkeypatch.setattr(addresses, "_resolve", lambda host, port: next(found))
    rules = FetchRules(allowed_networks=(ip_network("127.0.0.2/32"),), max_seconds=5)
    with serving(lambda received: OK, "127.0.0.2") as asked:
        url = f"http://a.example:{asked.port}/"
        assert fetch(url, rules) == b"file"
        assert f"Host: a.example:{asked.port}" in asked.requests[0]
        refused(url, "image_url_not_allowed", rules)
        assert asked.connections == 1


def test_the_system_resolves_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    asked_names = []
    resolve = socket.getaddrinfo

    def counted(host: str, *arguments: object, **options: object) -> object:
        asked_names.append(host)
        return resolve("127.0.0.1" if host == "a.example" else host, *arguments, **options)  # type: ignore

    monkeypatch.setattr(socket, "getaddrinfo", counted)
    with serving(lambda received: OK) as asked:
        assert fetch(f"http://a.example:{asked.port}/", LOCAL) == b"file"
    assert asked_names.count("a.example") == 1
    assert set(asked_names) <= {"a.example", "127.0.0.1"}


def test_the_next_address_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(addresses, "_resolve", lambda host, port: ["127.0.0.9", "127.0.0.1"])
    with serving(lambda received: OK) as asked:
        assert fetch(f"http://a.example:{asked.port}/", LOCAL) == b"file"
    refused(f"http://a.example:{asked.port}/", "image_fetch_failed")


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_are_checked_like_the_first(status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    names = {"a.example": ["127.0.0.2"], "b.example": ["127.0.0.1"], "127.0.0.2": ["127.0.0.2"]}
    monkeypatch.setattr(addresses, "_resolve", lambda host, port: names[host])
    rules = FetchRules(allowed_networks=(ip_network("127.0.0.2/32"),), max_seconds=5)

    def answer(received: str) -> bytes:
        places = {"/relative": "/file", "/inside": f"http://b.example:{inside.port}/", "/loop": "/loop"}
        path = received.split(" ")[1]
        if path not in places:
            return OK
        return f"HTTP/1.1 {status} X\r\nLocation: {places[path]}\r\nContent-Length: 0\r\n\r\n".encode()

    with serving(lambda received: OK) as inside, serving(answer, "127.0.0.2") as asked:
        here = f"http://a.example:{asked.port}"
        assert fetch(f"{here}/relative", rules) == b"file"
        before = asked.connections
        refused(f"{here}/inside", "image_url_not_allowed", rules)
        assert (asked.connections, inside.connections) == (before + 1, 0)
        assert "redirected" in refused(f"{here}/loop", "image_fetch_failed", rules)
        assert asked.connections == before + 2 + fetching.MAX_REDIRECTS


def test_a_redirect_to_another_scheme() -> None:
    head = b"HTTP/1.1 302 X\r\nLocation: file:///etc/passwd\r\nContent-Length: 0\r\n\r\n"
    with serving(lambda received: head) as asked:
        refused(f"http://127.0.0.1:{asked.port}/", "image_url_invalid")


def test_an_ipv6_address_has_brackets_as_host() -> None:
    if not socket.has_dualstack_ipv6():
        pytest.skip("needs IPv6")
    rules = FetchRules(allowed_networks=(ip_network("::1/128"),), max_seconds=5)
    with serving(lambda received: OK, "::1") as asked:
        assert fetch(f"http://[::1]:{asked.port}/", rules) == b"file"
    assert f"Host: [::1]:{asked.port}\r\n" in asked.requests[0]


def test_a_redirect_in_letters_of_its_own() -> None:
    head = "HTTP/1.1 302 X\r\nLocation: /grün\r\nContent-Length: 0\r\n\r\n".encode()
    with serving(lambda received: head if received.startswith("GET / ") else OK) as asked:
        assert fetch(f"http://127.0.0.1:{asked.port}/", LOCAL) == b"file"
    assert asked.requests[1].startswith("GET /gr%C3%BCn HTTP/1.1")


@pytest.mark.parametrize("place", [b"/a\tb", b"/a b", b"/\\b", b"/\xff"], ids=repr)
def test_a_redirect_to_no_url(place: bytes) -> None:
    head = b"HTTP/1.1 302 X\r\nLocation: " + place + b"\r\nContent-Length: 0\r\n\r\n"
    with serving(lambda received: head) as asked:
        refused(f"http://127.0.0.1:{asked.port}/", "image_url_invalid")
        assert asked.connections == 1


@pytest.mark.parametrize("head", [b"", b"HTTP/1.1 200 OK\r\n\r\n"], ids=["in-the-head", "in-the-body"])
def test_drops_that_never_end(head: bytes) -> None:
    stopping = threading.Event()
    listener = socket.create_server(("127.0.0.1", 0))

    def drip() -> None:
        connection, _ = listener.accept()
        with connection, suppress(OSError):
            connection.recv(65536)
            connection.sendall(head or b"HTTP/1.1 200 OK\r\nX-A: ")
            while not stopping.wait(0.1):
                connection.sendall(b"a")

    thread = threading.Thread(target=drip)
    thread.start()
    rules = FetchRules(allowed_networks=LOCAL.allowed_networks, max_seconds=1)
    ended = threading.Timer(10, stopping.set)  # where the deadline does not hold
    ended.start()
    begin = time.monotonic()
    assert "too long" in refused(
        f"http://127.0.0.1:{listener.getsockname()[1]}/", "image_fetch_failed", rules
    )
    assert time.monotonic() - begin < 5
    ended.cancel()
    stopping.set()
    thread.join()
    listener.close()


def test_the_shared_context_is_not_changed_by_requests(
    certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """OpenSSL reads it without a lock when another thread connects."""
    trusting = ssl.create_default_context(cafile=str(certificate))
    changes: list[list[str]] = []
    monkeypatch.setattr(trusting, "set_alpn_protocols", changes.append)
    monkeypatch.setattr(addresses, "_resolve", lambda host, port: ["127.0.0.1"])
    monkeypatch.setattr(fetching, "_tls", lambda: trusting)
    with serving(lambda received: OK, context=server_context(certificate)) as asked:
        assert fetch(f"https://a.example:{asked.port}/", LOCAL) == b"file"
    assert changes == []


def test_a_redirect_without_a_place() -> None:
    with serving(lambda received: b"HTTP/1.1 302 X\r\nContent-Length: 0\r\n\r\n") as asked:
        assert "status 302" in refused(f"http://127.0.0.1:{asked.port}/", "image_fetch_failed")


def test_proxies_of_the_environment_are_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(lambda received: OK) as asked, serving(lambda received: OK) as proxy:
        for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
            monkeypatch.setenv(name.lower(), f"http://127.0.0.1:{proxy.port}")
        assert fetch(f"http://127.0.0.1:{asked.port}/", LOCAL) == b"file"
    assert (asked.connections, proxy.connections) == (1, 0)


ANSWERS: dict[str, tuple[bytes, str]] = {
    "long-body": (b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + bytes(11), "image_too_large"),
    "long-by-its-head": (b"HTTP/1.1 200 OK\r\nContent-Length: 11\r\n\r\n", "image_too_large"),
    "long-chunks": (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"8\r\n12345678\r\n" * 2 + b"0\r\n\r\n",
        "image_too_large",
    ),
    "short": (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nfile", "image_fetch_failed"),
    "no-length": (b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n", "image_fetch_failed"),
    "nothing": (b"", "image_fetch_failed"),
    "not-http": (b"hello\r\n\r\n", "image_fetch_failed"),
    "head-without-end": (b"HTTP/1.1 200 OK\r\n" + b"X-A: b\r\n" * 100_000, "image_fetch_failed"),
    "status-404": (b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", "image_fetch_failed"),
    "status-206": (b"HTTP/1.1 206 Partial\r\nContent-Length: 0\r\n\r\n", "image_fetch_failed"),
}


@pytest.mark.parametrize("case", ANSWERS)
def test_answers_that_are_no_file(case: str) -> None:
    sent, code = ANSWERS[case]
    rules = FetchRules(allowed_networks=LOCAL.allowed_networks, max_bytes=10, max_seconds=5)
    with serving(lambda received: sent) as asked:
        message = refused(f"http://127.0.0.1:{asked.port}/", code, rules)
    assert "127.0" not in message and str(asked.port) not in message


def test_a_file_as_large_as_allowed() -> None:
    sent = b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + bytes(10)
    rules = FetchRules(allowed_networks=LOCAL.allowed_networks, max_bytes=10, max_seconds=5)
    with serving(lambda received: sent) as asked:
        assert fetch(f"http://127.0.0.1:{asked.port}/", rules) == bytes(10)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a certificate of a.example that signs itself; key and certificate in one file."""
    if shutil.which("openssl") is None:
        pytest.skip("needs the openssl command to make a certificate")
    folder = tmp_path_factory.mktemp("certificate")
    options = ["-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=a.example"]
    options += ["-addext", "subjectAltName=DNS:a.example", "-keyout", "key.pem", "-out", "cert.pem"]
    subprocess.run(["openssl", "req", "-x509", *options], cwd=folder, check=True, capture_output=True)
    both = folder / "both.pem"
    both.write_bytes((folder / "key.pem").read_bytes() + (folder / "cert.pem").read_bytes())
    return both


def server_context(certificate: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    return context


def test_certificates_are_checked_under_the_name_of_the_url(
    certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(addresses, "_resolve", lambda host, port: ["127.0.0.1"])
    with serving(lambda received: OK, context=server_context(certificate)) as asked:
        refused(f"https://a.example:{asked.port}/", "image_fetch_failed")  # by nobody that is trusted
        trusting = ssl.create_default_context(cafile=str(certificate))
        monkeypatch.setattr(fetching, "_tls", lambda: trusting)
        assert fetch(f"https://a.example:{asked.port}/", LOCAL) == b"file"
        refused(f"https://b.example:{asked.port}/", "image_fetch_failed")  # of another name
        assert len(asked.requests) == 1


def test_tls_that_never_ends_its_beginning(monkeypatch: pytest.MonkeyPatch) -> None:
    stopping = threading.Event()
    listener = socket.create_server(("127.0.0.1", 0))

    def drip() -> None:
        connection, _ = listener.accept()
        with connection, suppress(OSError):
            connection.sendall(b"\x16\x03\x03\x40\x00")  # a record of 16 kB
            while not stopping.wait(0.1):
                connection.sendall(b"\x02")

    thread = threading.Thread(target=drip)
    thread.start()
    rules = FetchRules(allowed_networks=LOCAL.allowed_networks, max_seconds=1)
    begin = time.monotonic()
    refused(f"https://127.0.0.1:{listener.getsockname()[1]}/", "image_fetch_failed", rules)
    assert time.monotonic() - begin < 5
    stopping.set()
    thread.join()
    listener.close()
