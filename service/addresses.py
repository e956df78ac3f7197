"""Which addresses a URL of a caller may lead to, looked up once and checked. Knows no HTTP.

Every address of a name must be allowed: one that is not is reason enough to ask none of them.
"""

from __future__ import annotations

import ipaddress
import re
import socket
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from queue import Empty, SimpleQueue

from service.errors import ImageError

GLOBAL_IPV6 = ipaddress.ip_network("2000::/3")  # outside it nothing is public
# Public by their own numbers, but they lead to whatever IPv4 address is within them, to nobody, or inside:
# clouds serve themselves at 192.0.0.192 and 168.63.129.16. NOTE: `is_global` differs between Python versions.
SPECIAL = tuple(
    ipaddress.ip_network(word)
    for word in (
        *("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20"),
        *("192.0.0.0/24", "192.88.99.0/24", "168.63.129.16/32"),
    )
)
MAPPED = ipaddress.IPv6Network("::ffff:0:0/96")  # of IPv4
MAX_LOOKUPS = 32  # at once; one that hangs holds its thread until the system's resolver gives up

NUMBER = re.compile(r"(^|\.)(\d+|0x[\da-f]*)\.?$", re.IGNORECASE)  # the last label of 127.1 and 0x7f000001

NOT_ALLOWED = (
    "the host of this URL is not allowed or does not exist; IMAGE_ALLOW_HOSTS admits hosts of the inside"
)

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_lookups = threading.BoundedSemaphore(MAX_LOOKUPS)


@dataclass(frozen=True, kw_only=True)
class FetchRules:
    """What may be fetched. Public addresses are allowed, others where a name or a network is listed."""

    allowed_names: frozenset[str] = frozenset()  # lower case
    allowed_networks: tuple[Network, ...] = ()
    max_bytes: int = 8 * 1024 * 1024  # of a file
    max_seconds: float = 10.0  # of a file, from the first look-up to the last byte, redirects included


@dataclass(frozen=True)
class Deadline:
    """A moment by which all is done."""

    end: float  # by the monotonic clock

    def left(self) -> float:
        """Return the seconds left. Raises ImageError when there are none."""
        seconds = self.end - time.monotonic()
        if seconds <= 0:
            raise too_slow()
        return seconds


def parse_allowed(words: Sequence[str]) -> tuple[frozenset[str], tuple[Network, ...]]:
    """Sort host names from addresses and networks. Raises ValueError that names a word that is neither."""
    names, networks = set(), []
    for word in words:
        try:
            networks.append(_network(word))
        except ValueError:
            try:
                names.add(_name(word))
            except ValueError as error:  # UnicodeError among them
                raise ValueError(f"{word!r} is neither a host name nor an address nor a network") from error
    return frozenset(names), tuple(networks)


def _network(word: str) -> Network:
    """Read a network, or an address. Addresses of IPv4 are compared as such: so are networks of them."""
    network = ipaddress.ip_network(word.strip("[]").partition("%")[0])
    if isinstance(network, ipaddress.IPv6Network) and network.subnet_of(MAPPED):
        return ipaddress.IPv4Network((int(network.network_address) & 0xFFFFFFFF, network.prefixlen - 96))
    return network


def _name(word: str) -> str:
    """Read a host name. Raises ValueError, also for what the resolver would take for an address."""
    if not re.fullmatch(r"(?!-)[\w-]+(\.[\w-]+)*\.?", word) or NUMBER.search(word):
        raise ValueError(word)
    return ascii_host(word)


def ascii_host(host: str) -> str:
    """Return a host's name as it is looked up. Raises UnicodeError."""
    if ":" in host:  # an IPv6 address
        return host.lower()
    return host.encode("idna").decode("ascii").lower().removesuffix(".")


def allowed(host: str, port: int, rules: FetchRules, deadline: Deadline) -> tuple[str, ...]:
    """Look a host up; return its addresses, each once. Raises ImageError unless all of them are allowed."""
    addresses = tuple(dict.fromkeys(_look_up(host, port, deadline)))
    is_named = host in rules.allowed_names
    if not addresses or not (is_named or all(_is_allowed(address, rules) for address in addresses)):
        raise ImageError(NOT_ALLOWED, code="image_url_not_allowed")
    return addresses


def _look_up(host: str, port: int, deadline: Deadline) -> list[str]:
    """Ask the resolver, which knows no time limit, in a thread that can be left behind."""
    answer: SimpleQueue[list[str] | Exception] = SimpleQueue()
    lookups = _lookups
    if not lookups.acquire(timeout=deadline.left()):
        raise too_slow()

    def ask() -> None:
        try:
            answer.put(_resolve(host, port))
        except (OSError, UnicodeError):
            answer.put([])
        except Exception as error:  # noqa: BLE001  raised where the answer is waited for
            answer.put(error)
        finally:
            lookups.release()

    try:
        threading.Thread(target=ask, name="image-host", daemon=True).start()
    except RuntimeError:  # the system gives no thread: nobody would release
        lookups.release()
        raise
    try:
        found = answer.get(timeout=deadline.left())
    except Empty:
        raise too_slow() from None
    if isinstance(found, Exception):
        raise found
    return found


def _resolve(host: str, port: int) -> list[str]:
    """Return the addresses of a host. Raises OSError."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(entry[4][0]) for entry in found]


def _is_allowed(written: str, rules: FetchRules) -> bool:
    """Tell whether an address is public, or in a network that is listed."""
    try:
        address: Address = ipaddress.ip_address(written.partition("%")[0])
    except ValueError:
        return False
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    if any((mapped or address) in network for network in rules.allowed_networks):
        return True
    if any(address in network for network in SPECIAL):
        return False
    if isinstance(address, ipaddress.IPv6Address) and address not in GLOBAL_IPV6:
        return False
    return address.is_global and not address.is_multicast and not address.is_reserved


def failed(reason: str) -> ImageError:
    """Say in general words why a file cannot be fetched."""
    return ImageError(f"the URL cannot be fetched: {reason}", code="image_fetch_failed")


def too_slow() -> ImageError:
    """Say that there is no time left."""
    return failed("it takes too long")
