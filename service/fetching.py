"""Fetches files from URLs that callers name, without being led inside. Owns the HTTP client; knows no image.

A host's name is looked up once for each request, every address it has must be allowed, and the connection
goes to an address that was checked: what the name says a moment later is of no concern. A redirect is a
request like the first. Source of the rules: OWASP, Server-Side Request Forgery Prevention.
"""

from __future__ import annotations

import re
import ssl
import time
from dataclasses import dataclass, field
from functools import cache
from typing import Any
from urllib.parse import quote, urljoin, urlsplit

import httpcore2

from service import addresses
from service.addresses import Deadline, FetchRules, ascii_host, failed, too_slow
from service.errors import ImageError

SCHEMES = {"http": 80, "https": 443}
MAX_URL_LENGTH = 4096
MAX_REDIRECTS = 3
REDIRECTS = (301, 302, 303, 307, 308)
FOUND = 200
KEPT_CHARACTERS = "%/:;?@&=+$,!~*'()[]"  # of paths and queries; the others are escaped
FORBIDDEN_CHARACTERS = re.compile(r"[\x00-\x20\x7f\\]")
BRACKETED_HOST = re.compile(
    r"\[[0-9A-Fa-f:.]+\](:[0-9]*)?"
)  # no more: urlsplit lets a name follow the bracket
HEADERS = {
    b"Accept": b"image/*",
    b"Accept-Encoding": b"identity",
    b"User-Agent": b"jina-onnx-server",
}


@dataclass(frozen=True)
class Target:
    """A URL taken apart: what is asked for, and the addresses that may be asked."""

    url: httpcore2.URL
    addresses: tuple[str, ...]


@dataclass(frozen=True)
class TimedStream:
    """A network stream none of whose waits is longer than what is left. Quacks like httpcore2's."""

    inner: httpcore2.NetworkStream
    deadline: Deadline

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """Receive some bytes."""
        return self.inner.read(max_bytes, self.deadline.left())

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """Send all bytes."""
        self.inner.write(buffer, self.deadline.left())

    def close(self) -> None:
        """Close the connection."""
        self.inner.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> TimedStream:
        """Begin TLS, with the certificate of the URL's own name; Python's timeout is that of all of it.

        NOTE: the pool sets the protocols of its context before each connection, while SSL_new in another
        thread may read them. So it has its own context, which trusts nobody; the shared one is used here.
        """
        try:
            inner = self.inner.start_tls(_tls(), server_hostname, self.deadline.left())
        except BaseException:  # the pool has no connection yet that it would close
            self.inner.close()
            raise
        return TimedStream(inner, self.deadline)

    def get_extra_info(self, info: str) -> Any:
        """Return what is known of the connection."""
        return self.inner.get_extra_info(info)


@dataclass(frozen=True)
class CheckedBackend:
    """Connects to checked addresses, whatever host it is asked for. Quacks like httpcore2's."""

    addresses: tuple[str, ...]
    deadline: Deadline
    inner: httpcore2.SyncBackend = field(default_factory=httpcore2.SyncBackend)

    def connect_tcp(self, host: str, port: int, *arguments: Any, **options: Any) -> TimedStream:
        """Connect to the first address that answers."""
        for address in self.addresses[:-1]:
            try:
                return TimedStream(self.inner.connect_tcp(address, port, self._share()), self.deadline)
            except (httpcore2.ConnectError, httpcore2.ConnectTimeout):
                continue
        last = self.inner.connect_tcp(self.addresses[-1], port, self.deadline.left())
        return TimedStream(last, self.deadline)

    def _share(self) -> float:
        """Return how long an address may keep the others waiting."""
        return self.deadline.left() / 2

    def sleep(self, seconds: float) -> None:
        """Wait; never asked for, as nothing is tried again."""
        time.sleep(min(seconds, self.deadline.left()))


def fetch(url: str, rules: FetchRules) -> bytes:
    """Return the bytes of a file. Raises ImageError, which tells nothing of the inside."""
    deadline = Deadline(time.monotonic() + rules.max_seconds)
    try:
        for _ in range(MAX_REDIRECTS + 1):
            found = _ask(_target(url, rules, deadline), rules, deadline)
            if isinstance(found, bytes):
                return found
            url = urljoin(url, found)
    except ImageError:
        raise
    except (httpcore2.TimeoutException, TimeoutError) as error:
        raise too_slow() from error
    except Exception as error:  # noqa: BLE001  the client lets errors of sockets, TLS and parsers through
        raise failed("its server cannot be reached or does not speak HTTP") from error
    raise failed(f"it is redirected more than {MAX_REDIRECTS} times")


def _ask(target: Target, rules: FetchRules, deadline: Deadline) -> bytes | str:
    """Send one request; return the file, or where it is said to be."""
    backend: Any = CheckedBackend(target.addresses, deadline)
    untrusting = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # see TimedStream.start_tls
    with (
        httpcore2.ConnectionPool(ssl_context=untrusting, network_backend=backend, http2=False) as pool,
        pool.stream("GET", target.url, headers=_headers(target.url)) as response,
    ):
        headers = {name.lower(): value for name, value in response.headers}
        if response.status in REDIRECTS and b"location" in headers:
            return _location(headers[b"location"])
        if response.status != FOUND:
            raise failed(f"its server answered with status {response.status}")
        if int(headers.get(b"content-length", b"0")) > rules.max_bytes:
            raise _too_large(rules)
        content = bytearray()
        for part in response.iter_stream():
            content += part
            if len(content) > rules.max_bytes:
                raise _too_large(rules)
        return bytes(content)


def _target(url: str, rules: FetchRules, deadline: Deadline) -> Target:
    """Take a URL apart and look its host up. Raises ImageError for what may not be asked."""
    if len(url) > MAX_URL_LENGTH or FORBIDDEN_CHARACTERS.search(url):
        raise _invalid(f"has a space, a backslash or more than {MAX_URL_LENGTH} characters")
    try:
        parts = urlsplit(url)
        scheme, host, port = parts.scheme.lower(), ascii_host(parts.hostname or ""), parts.port
        path, query = (quote(part, safe=KEPT_CHARACTERS).encode() for part in (parts.path, parts.query))
    except ValueError as error:  # UnicodeError among them
        raise _invalid("is malformed") from error
    if scheme not in SCHEMES:
        raise _invalid("is neither http nor https")
    if not host or port == 0 or ("[" in parts.netloc and not BRACKETED_HOST.fullmatch(parts.netloc)):
        raise _invalid("is malformed")
    if parts.username is not None or parts.password is not None:
        raise _invalid("has a user name or a password, which are not sent")
    target = (path or b"/") + (b"?" + query if query else b"")
    allowed = addresses.allowed(host, port or SCHEMES[scheme], rules, deadline)
    named = httpcore2.URL(scheme=scheme, host=host, port=port, target=target)
    return Target(named, allowed)


@cache
def _tls() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.set_alpn_protocols(["http/1.1"])
    return context


def _headers(url: httpcore2.URL) -> list[tuple[bytes, bytes]]:
    """Return the headers of a request. Host is among them: the client leaves out the brackets of IPv6."""
    host = b"[%b]" % url.host if b":" in url.host else url.host
    if url.port not in (None, SCHEMES[url.scheme.decode()]):
        host += b":%d" % url.port
    return [(b"Host", host), *HEADERS.items()]


def _location(header: bytes) -> str:
    """Read where a redirect leads. Raises ImageError: urljoin would drop characters that no URL has."""
    try:
        location = header.decode()
    except UnicodeDecodeError as error:
        raise _invalid("is malformed") from error
    if FORBIDDEN_CHARACTERS.search(location):
        raise _invalid("is malformed")
    return location


def _invalid(reason: str) -> ImageError:
    return ImageError(f"the URL {reason}", code="image_url_invalid")


def _too_large(rules: FetchRules) -> ImageError:
    return ImageError(f"has more than {rules.max_bytes} bytes (IMAGE_MAX_BYTES)", code="image_too_large")
