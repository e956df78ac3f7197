"""When an answer is sent as gzip."""

from __future__ import annotations

import gzip

import pytest

from service import compression
from service.compression import MIN_BYTES, Compression

OUTSIDE, INSIDE = "192.0.2.1", "127.0.0.1"


@pytest.mark.parametrize(
    ("accepted", "is_wanted"),
    [
        ("gzip", True),
        ("gzip, deflate", True),
        ("GZIP", True),
        ("x-gzip", True),
        ("br, zstd, *;q=0.1", True),
        ("gzip;q=0.001", True),
        ("deflate, gzip;q=1.0, *;q=0.5", True),
        ("gzip;q=0.5, identity;q=0.4", True),
        ("", False),
        ("identity", False),
        ("br, zstd, deflate", False),
        ("gzip;q=0", False),
        ("gzip;q=0.0, *", False),
        ("*;q=0", False),
        ("gzip;q=0.4, identity;q=0.5", False),
        ("gzip;q=much", False),
        (",;,", False),
    ],
)
def test_the_client_says(accepted: str, is_wanted: bool) -> None:
    assert compression.is_worth_it(MIN_BYTES, accepted, OUTSIDE, Compression.AUTO) == is_wanted


@pytest.mark.parametrize(
    ("accepted", "is_gzip"), [("gzip, identity;q=0", True), ("gzip, *;q=0", True), ("identity;q=0", False)]
)
def test_where_plain_is_refused_small_answers_are_compressed(accepted: str, is_gzip: bool) -> None:
    assert compression.is_worth_it(10, accepted, INSIDE, Compression.AUTO) == is_gzip


@pytest.mark.parametrize(
    ("num_bytes", "address", "mode", "is_gzip"),
    [
        (MIN_BYTES - 1, OUTSIDE, Compression.ALWAYS, False),
        (MIN_BYTES, OUTSIDE, Compression.NEVER, False),
        (MIN_BYTES, INSIDE, Compression.AUTO, False),
        (MIN_BYTES, "::1", Compression.AUTO, False),
        (MIN_BYTES, "::ffff:127.0.0.1", Compression.AUTO, False),
        (MIN_BYTES, "", Compression.AUTO, False),
        (MIN_BYTES, INSIDE, Compression.ALWAYS, True),
        (MIN_BYTES, "2001:db8::1", Compression.AUTO, True),
    ],
)
def test_it_must_be_worth_it(num_bytes: int, address: str, mode: Compression, is_gzip: bool) -> None:
    assert compression.is_worth_it(num_bytes, "gzip", address, mode) == is_gzip


@pytest.mark.parametrize(
    ("content_type", "is_text"),
    [
        ("application/json", True),
        ("text/html; charset=utf-8", True),
        ("image/png", False),
        ("application/octet-stream", False),
        (None, False),
    ],
)
def test_text_is_compressible(content_type: str | None, is_text: bool) -> None:
    assert compression.is_compressible(content_type) == is_text


def test_it_is_gzip() -> None:
    body = b"0.12345," * 10_000
    assert gzip.decompress(compression.compress(body)) == body
