"""API keys and the header that carries one."""

from __future__ import annotations

import base64

import pytest

from service.errors import Unauthorized
from service.keys import Keys

KEYS = Keys(["first-key", "second=key:"])


def basic(name: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{name}:{password}".encode()).decode()


@pytest.mark.parametrize(
    "header",
    ["Bearer first-key", "bearer first-key", "BEARER   first-key  ", "Bearer second=key:"],
)
def test_every_key_is_taken(header: str) -> None:
    assert KEYS.check(header, takes_basic=False)


def test_a_key_stands_for_one_caller() -> None:
    first, second = (KEYS.check(f"Bearer {key}", takes_basic=False) for key in ("first-key", "second=key:"))
    assert first != second
    assert first == KEYS.check(basic("anyone", "first-key"), takes_basic=True)


@pytest.mark.parametrize(
    ("header", "code"),
    [
        (None, "missing_api_key"),
        ("", "missing_api_key"),
        ("Bearer", "missing_api_key"),
        ("Bearer  ", "missing_api_key"),
        ("first-key", "missing_api_key"),
        ("Token first-key", "missing_api_key"),
        (basic("", "first-key"), "missing_api_key"),
        ("Bearer first-ke", "invalid_api_key"),
        ("Bearer first-key1", "invalid_api_key"),
        ("Bearer FIRST-KEY", "invalid_api_key"),
        ("Bearer first-key,second=key:", "invalid_api_key"),
        ("Bearer first-key,Bearer first-key", "invalid_api_key"),
        ("Bearer \udcff\u00e9", "invalid_api_key"),
    ],
)
def test_anything_else_is_refused(header: str | None, code: str) -> None:
    with pytest.raises(Unauthorized, match="Authorization: Bearer KEY.*API_KEYS") as caught:
        KEYS.check(header, takes_basic=False)
    assert caught.value.code == code


@pytest.mark.parametrize(
    "header", [basic("me", "first-key"), basic("first-key", ""), basic("", "second=key:")]
)
def test_basic_carries_a_key(header: str) -> None:
    assert KEYS.check(header, takes_basic=True)


@pytest.mark.parametrize(
    ("header", "code"),
    [
        (basic("first-key", "other"), "invalid_api_key"),
        (basic("me", "FIRST-KEY"), "invalid_api_key"),
        (basic("", ""), "missing_api_key"),
        ("Basic first-key", "missing_api_key"),
        ("Basic " + base64.b64encode(b"\xff\xfe").decode(), "missing_api_key"),
    ],
)
def test_a_wrong_password_is_refused(header: str, code: str) -> None:
    with pytest.raises(Unauthorized) as caught:
        KEYS.check(header, takes_basic=True)
    assert caught.value.code == code


def test_each_key_is_compared_whichever_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    compared = []

    def compare(one: bytes, other: bytes) -> bool:
        compared.append((len(one), len(other)))
        return one == other

    monkeypatch.setattr("hmac.compare_digest", compare)
    KEYS.check("Bearer first-key", takes_basic=False)
    assert compared == [(32, 32)] * 2
