"""Settings from the environment."""

from __future__ import annotations

from pathlib import Path

import pytest

from service.config import LogFormat, Settings, from_environment
from service.devices import Kind, Wish
from service.errors import ConfigError
from service.manifest import Precision


def test_defaults_are_those_of_the_contract() -> None:
    settings = from_environment({})
    assert (settings.host, settings.port, settings.models_dir) == ("0.0.0.0", 8080, Path("onnx_models"))
    assert (settings.max_body_bytes, settings.max_inputs) == (32 * 2**20, 2048)
    assert (settings.device, settings.precision, settings.models_to_load) == (Wish(), None, ())
    assert settings.intra_op_threads >= 1


def test_values_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.host.num_usable_cores", lambda: 8)
    settings = from_environment(
        {
            "PORT": "9000",
            "PRECISION": "INT8-Block",
            "MODELS_TO_LOAD": "A, b,a",
            "LOG_FORMAT": "text",
            "VERIFY_HASHES": "1",
            "INTRA_OP_THREADS": "3",
            "DEVICE": "CUDA:1",
            "REQUEST_TIMEOUT": "0.5",
            "MAX_QUEUE_TOKENS": "1000",
        }
    )
    assert settings.port == 9000
    assert settings.precision == Precision.INT8_BLOCK
    assert settings.models_to_load == ("a", "b", "a")
    assert settings.log_format == LogFormat.TEXT
    assert settings.verify_hashes
    assert settings.device == Wish(Kind.CUDA, 1)
    assert settings.intra_op_threads == 3
    assert (settings.request_timeout, settings.max_queue_tokens) == (0.5, 1000)


@pytest.mark.parametrize("name", ["WORKERS", "THREADS", "INTRA_OP_THREADS", "PRECISION", "DEVICE"])
def test_auto_is_the_default(name: str) -> None:
    assert from_environment({name: "auto"}) == from_environment({})


@pytest.mark.parametrize("name", ["API_KEYS", "PORT", "MODELS_TO_LOAD"])
def test_empty_is_unset(name: str) -> None:
    assert from_environment({name: " "}) == from_environment({})


def test_workers_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.host.num_usable_cores", lambda: 8)
    assert from_environment({"WORKERS": "3"}).intra_op_threads == 2
    assert from_environment({"WORKERS": "16"}).intra_op_threads == 1


@pytest.mark.parametrize(("asked", "threads"), [("1", 1), ("4", 4), ("5", 4), ("64", 4)])
def test_workers_never_have_more_threads_than_cores(
    monkeypatch: pytest.MonkeyPatch, asked: str, threads: int
) -> None:
    monkeypatch.setattr("service.host.num_usable_cores", lambda: 8)
    assert from_environment({"WORKERS": "2", "INTRA_OP_THREADS": asked}).intra_op_threads == threads


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PORT", "abc"),
        ("PORT", "0"),
        ("PORT", "70000"),
        ("PRECISION", "int5"),
        ("DEVICE", "tpu"),
        ("DEVICE", "cpu:1"),
        ("DEVICE", "cuda:"),
        ("MODELS_TO_LOAD", ","),
        ("MODELS_TO_LOAD", "jina-embeddings-v3:"),
        ("VERIFY_HASHES", "yes"),
        ("LOG_LEVEL", "loud"),
        ("WORKERS", "0"),
        ("MAX_INPUTS", "-1"),
        ("API_KEYS", ","),
        ("RATE_LIMIT", "0"),
        ("RATE_LIMIT", "1.5"),
        ("CORS_ORIGINS", "example.com"),
        ("CORS_ORIGINS", "https://example.com/"),
        ("CORS_ORIGINS", "https://Example.com"),
        ("CORS_ORIGINS", "*,https://example.com"),
        ("CORS_ORIGINS", "null"),
        ("COMPRESSION", "gzip"),
    ],
)
def test_a_wrong_value_is_refused_by_name(name: str, value: str) -> None:
    with pytest.raises(ConfigError, match=name):
        from_environment({name: value})


def test_keys_and_origins_are_lists() -> None:
    settings = from_environment(
        {"API_KEYS": "one, two+/=", "CORS_ORIGINS": "https://a.example, http://localhost:3000,http://[::1]:8"}
    )
    assert settings.api_keys == ("one", "two+/=")
    assert settings.cors_origins == ("https://a.example", "http://localhost:3000", "http://[::1]:8")
    assert "two" not in repr(settings)


@pytest.mark.parametrize("value", ["secret,", "secret, ,b", "sec ret", "secreté"])
def test_a_wrong_key_is_not_quoted(value: str) -> None:
    with pytest.raises(ConfigError, match=r"API_KEYS: key \d of \d is empty or has") as caught:
        from_environment({"API_KEYS": value})
    assert "secret" not in str(caught.value) and "sec ret" not in str(caught.value)


def test_every_variable_sets_a_field() -> None:
    from service.config import VARIABLES

    assert {field for field, _ in VARIABLES.values()} == set(Settings.__dataclass_fields__)
