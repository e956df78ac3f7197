"""Which addresses may be asked, and how a name is looked up."""

from __future__ import annotations

import ipaddress
import threading
import time

import pytest

from service import addresses
from service.addresses import Deadline, FetchRules, allowed, parse_allowed
from service.errors import ImageError

REFUSED = (
    "127.0.0.1", "127.255.255.254", "0.0.0.0", "0.1.2.3", "10.0.0.1", "10.255.255.255", "100.64.0.1",
    "100.127.255.255", "169.254.169.254", "172.16.0.1", "172.31.255.255", "192.0.0.1", "192.0.2.1",
    "192.168.1.1", "198.18.0.1", "198.19.255.255", "198.51.100.1", "203.0.113.1", "224.0.0.1",
    "239.255.255.255", "240.0.0.1", "255.255.255.255", "::", "::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1",
    "::ffff:8.8.8.8", "::127.0.0.1", "::8.8.8.8", "64:ff9b::7f00:1", "64:ff9b::808:808", "64:ff9b:1::1",
    "100::1", "2001::1", "2001:db8::1", "2002:7f00:1::", "2002:808:808::1", "3fff::1", "fc00::1", "fd12::1",
    "192.0.0.192", "192.88.99.1", "168.63.129.16",
    "fe80::1", "fe80::1%eth0", "fec0::1", "ff02::1", "4000::1", "not an address",
)  # fmt: skip
PUBLIC = ("8.8.8.8", "1.1.1.1", "93.184.216.34", "100.63.255.255", "100.128.0.1", "172.32.0.1", "192.169.0.1",
          "2606:4700:4700::1111", "2a00:1450:4001:800::200e")  # fmt: skip


def soon(seconds: float = 5) -> Deadline:
    return Deadline(time.monotonic() + seconds)


def resolving(monkeypatch: pytest.MonkeyPatch, *answers: list[str]) -> list[str]:
    """Answer look-ups one after the other; return the list of the names that were looked up."""
    asked: list[str] = []

    def resolve(host: str, port: int) -> list[str]:
        asked.append(host)
        return answers[min(len(asked), len(answers)) - 1]

    monkeypatch.setattr(addresses, "_resolve", resolve)
    return asked


@pytest.mark.parametrize("address", REFUSED)
def test_addresses_that_are_not_public(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    resolving(monkeypatch, [address])
    with pytest.raises(ImageError, match="not allowed") as error:
        allowed("a.example", 80, FetchRules(), soon())
    assert error.value.code == "image_url_not_allowed"
    assert address not in error.value.message


@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    resolving(monkeypatch, [address, address])
    assert allowed("a.example", 80, FetchRules(), soon()) == (address,)


@pytest.mark.parametrize("found", [["8.8.8.8", "10.0.0.1"], ["10.0.0.1", "8.8.8.8"], ["8.8.8.8", "::1"], []])
def test_every_address_of_a_name_must_be_allowed(monkeypatch: pytest.MonkeyPatch, found: list[str]) -> None:
    resolving(monkeypatch, found)
    with pytest.raises(ImageError, match="not allowed"):
        allowed("a.example", 80, FetchRules(), soon())


def test_a_name_is_looked_up_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = resolving(monkeypatch, ["8.8.8.8"], ["127.0.0.1"])
    assert allowed("a.example", 80, FetchRules(), soon()) == ("8.8.8.8",)
    assert asked == ["a.example"]


@pytest.mark.parametrize(
    ("address", "network", "is_in"),
    [
        ("10.1.2.3", "10.1.0.0/16", True),
        ("10.2.2.3", "10.1.0.0/16", False),
        ("::ffff:10.1.2.3", "10.1.0.0/16", True),
        ("10.1.2.3", "10.1.2.3", True),
        ("10.1.2.3", "::ffff:10.1.0.0/112", True),
        ("::ffff:10.1.2.3", "::ffff:10.1.2.3", True),
        ("fd00::5", "fd00::/8", True),
        ("::1", "[::1]", True),
        ("127.0.0.1", "::/0", False),
    ],
)
def test_listed_networks(monkeypatch: pytest.MonkeyPatch, address: str, network: str, is_in: bool) -> None:
    resolving(monkeypatch, [address])
    _, networks = parse_allowed([network])
    rules = FetchRules(allowed_networks=networks)
    if is_in:
        assert allowed("a.example", 80, rules, soon()) == (address,)
        return
    with pytest.raises(ImageError, match="not allowed"):
        allowed("a.example", 80, rules, soon())


@pytest.mark.parametrize(("host", "is_listed"), [("images.local", True), ("x.images.local", False)])
def test_listed_names(monkeypatch: pytest.MonkeyPatch, host: str, is_listed: bool) -> None:
    resolving(monkeypatch, ["10.0.0.1"])
    names, _ = parse_allowed(["Images.Local."])
    rules = FetchRules(allowed_names=names)
    if is_listed:
        assert allowed(host, 80, rules, soon()) == ("10.0.0.1",)
        return
    with pytest.raises(ImageError, match="not allowed"):
        allowed(host, 80, rules, soon())


def test_a_listed_name_must_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    resolving(monkeypatch, [])
    with pytest.raises(ImageError, match="not allowed"):
        allowed("images.local", 80, FetchRules(allowed_names=frozenset({"images.local"})), soon())


def test_the_words_of_the_setting() -> None:
    names, networks = parse_allowed(
        ["localhost", "a-b.example", "münchen.example", "10.0.0.0/8", "::1", "::/0"]
    )
    assert names == {"localhost", "a-b.example", "xn--mnchen-3ya.example"}
    assert networks == tuple(map(ipaddress.ip_network, ("10.0.0.0/8", "::1/128", "::/0")))
    assert parse_allowed([]) == (frozenset(), ())


@pytest.mark.parametrize(
    "word",
    [
        "10.0.0.1/8",
        "10.0.0",
        "300.0.0.1",
        "http://a.example",
        "a.example:80",
        "*.example",
        "-a",
        "a..b",
        "",
        "a" * 64,
        "ü" * 80,
        "0x7f000001",
        "0x7f.1",
        "127.0x1",
        "a.1",
    ],
)
def test_words_that_are_neither(word: str) -> None:
    with pytest.raises(ValueError, match="neither a host name nor an address nor a network"):
        parse_allowed(["localhost", word])


def test_a_resolver_that_hangs_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    done = threading.Event()

    def resolve(host: str, port: int) -> list[str]:
        done.wait(30)
        return ["8.8.8.8"]

    monkeypatch.setattr(addresses, "_resolve", resolve)
    monkeypatch.setattr(addresses, "_lookups", threading.BoundedSemaphore(2))
    begin = time.monotonic()
    for _ in range(3):  # the third does not even begin: there are two threads for look-ups
        with pytest.raises(ImageError, match="too long") as error:
            allowed("a.example", 80, FetchRules(), soon(0.3))
        assert error.value.code == "image_fetch_failed"
    assert time.monotonic() - begin < 5
    done.set()
    monkeypatch.setattr(addresses, "_resolve", lambda host, port: ["8.8.4.4"])
    assert allowed("a.example", 80, FetchRules(), soon()) == ("8.8.4.4",)


def test_a_resolver_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def resolve(host: str, port: int) -> list[str]:
        raise OSError("no such name")

    monkeypatch.setattr(addresses, "_resolve", resolve)
    with pytest.raises(ImageError, match="not allowed"):
        allowed("a.example", 80, FetchRules(), soon())


def test_numbers_are_resolved_to_what_they_stand_for() -> None:
    for host in ("2130706433", "0x7f.1", "0177.0.0.1", "127.1"):
        with pytest.raises(ImageError, match="not allowed"):
            allowed(host, 80, FetchRules(), soon())


def test_a_look_up_that_cannot_begin_holds_no_place(monkeypatch: pytest.MonkeyPatch) -> None:
    resolving(monkeypatch, ["8.8.8.8"])
    monkeypatch.setattr(addresses, "_lookups", threading.BoundedSemaphore(1))
    with monkeypatch.context() as patched, pytest.raises(RuntimeError):
        patched.setattr(
            threading.Thread, "start", lambda thread: (_ for _ in ()).throw(RuntimeError("none left"))
        )
        allowed("a.example", 80, FetchRules(), soon())
    assert allowed("a.example", 80, FetchRules(), soon()) == ("8.8.8.8",)


def test_a_look_up_that_breaks_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(addresses, "_resolve", lambda host, port: [][0])
    begin = time.monotonic()
    with pytest.raises(IndexError):
        allowed("a.example", 80, FetchRules(), soon(30))
    assert time.monotonic() - begin < 10
