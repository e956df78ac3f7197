"""Settings: the environment read once into typed fields. Knows names and limits, not what they do."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, TypeVar

from service import addresses, devices, host
from service.compression import Compression
from service.devices import Wish
from service.errors import ConfigError
from service.manifest import Precision

AUTO = "auto"
MEBIBYTE = 1 << 20
Choice = TypeVar("Choice", bound=StrEnum)
KEY = re.compile(r"[!-~]+")  # what a header can carry, no blank in it
ORIGIN = re.compile(r"https?://(?:[a-z0-9._-]+|\[[0-9a-f:.]+\])(?::\d{1,5})?")  # as a browser writes it
EVERY_ORIGIN = "*"


class LogLevel(StrEnum):
    """The least severe line that is written."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class LogFormat(StrEnum):
    """How a line is written."""

    JSON = "json"
    TEXT = "text"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Every setting of the service, checked."""

    host: str = "0.0.0.0"  # bind address
    port: int = 8080
    models_dir: Path = Path("onnx_models")  # where bundles are
    models_to_load: tuple[str, ...] = ()  # model ids, tasks after `model:`; empty: all bundles found
    device: Wish = Wish()  # CUDA where it works, else the CPU
    precision: Precision | None = None  # None: chosen per model
    intra_op_threads: int = 1  # threads of one session
    workers: int | None = None  # gunicorn processes; None: one for each GPU, else one
    threads: int = 256  # requests a worker holds at once
    max_body_bytes: int = 32 * MEBIBYTE
    max_inputs: int = 2048  # inputs of one request
    max_batch_tokens: int = 1024  # rows x tokens at once, padding included; measured: more is not faster
    max_queue_tokens: int = 262_144  # of requests that wait, by estimate: 2,048 chunks of 128 tokens
    request_timeout: float = 120.0  # seconds that a request may wait for its first run
    image_allow_hosts: tuple[str, ...] = ()  # names, addresses and networks that image URLs may lead into
    image_max_bytes: int = 8 * MEBIBYTE  # of one file
    image_max_pixels: int = 64_000_000  # of one image before its resize
    api_keys: tuple[str, ...] = field(default=(), repr=False)  # of which a request must show one; empty: none
    rate_limit: int | None = None  # requests a minute of a key, or of an address; None: no limit
    cors_origins: tuple[str, ...] = ()  # whose pages may call the service from a browser; `*`: all
    compression: Compression = Compression.AUTO  # who gets gzip that asks for it
    cache_dir: Path | None = None  # where prepacked copies of graphs go; None: .cache in models_dir
    verify_hashes: bool = False  # check sha256 of every bundle file at start
    log_level: LogLevel = LogLevel.INFO
    log_format: LogFormat = LogFormat.JSON


def from_environment(environ: Mapping[str, str]) -> Settings:
    """Read the settings; an empty variable counts as unset. Raises ConfigError naming the variable."""
    present = {name: value.strip() for name, value in environ.items() if value.strip()}
    values: dict[str, Any] = {
        field: parse(name, present[name]) for name, (field, parse) in VARIABLES.items() if name in present
    }
    values = {field: value for field, value in values.items() if value is not None}
    workers = values.get("workers", 1)
    most = max(1, host.num_usable_cores() // workers)  # more threads than cores would only take turns
    values["intra_op_threads"] = min(most, values.get("intra_op_threads", most))
    return Settings(**values)


def _text(name: str, value: str) -> str:
    return value


def _path(name: str, value: str) -> Path:
    return Path(value)


def _integer(lowest: int, highest: int) -> Callable[[str, str], int]:
    def parse(name: str, value: str) -> int:
        try:
            number = int(value)
        except ValueError:
            raise ConfigError(
                f"{name} is {value!r}, must be a whole number from {lowest} to {highest}"
            ) from None
        if not lowest <= number <= highest:
            raise ConfigError(f"{name} is {number}, must be from {lowest} to {highest}")
        return number

    return parse


def _seconds(highest: int) -> Callable[[str, str], float]:
    def parse(name: str, value: str) -> float:
        try:
            seconds = float(value)
        except ValueError:
            raise ConfigError(f"{name} is {value!r}, must be a number of seconds") from None
        if not 0 < seconds <= highest:
            raise ConfigError(f"{name} is {value}, must be above 0 and at most {highest} seconds")
        return seconds

    return parse


def _integer_or_auto(highest: int) -> Callable[[str, str], int | None]:
    parse = _integer(1, highest)

    def parse_or_auto(name: str, value: str) -> int | None:
        try:
            return None if value.lower() == AUTO else parse(name, value)
        except ConfigError as error:
            raise ConfigError(f"{error}, or {AUTO}") from None

    return parse_or_auto


def _one_of(choices: type[Choice]) -> Callable[[str, str], Choice]:
    def parse(name: str, value: str) -> Choice:
        try:
            return choices(value.lower())
        except ValueError:
            raise ConfigError(f"{name} is {value!r}, must be one of {', '.join(choices)}") from None

    return parse


def _device(name: str, value: str) -> Wish:
    try:
        return devices.parse(value)
    except ValueError:
        raise ConfigError(f"{name} is {value!r}, must be auto, cpu, cuda or cuda:N") from None


def _precision(name: str, value: str) -> Precision | None:
    if value.lower() == AUTO:
        return None
    try:
        return Precision(value.lower())
    except ValueError:
        choices = ", ".join((AUTO, *Precision))
        raise ConfigError(f"{name} is {value!r}, must be one of {choices}") from None


def _flag(name: str, value: str) -> bool:
    if value not in ("0", "1"):
        raise ConfigError(f"{name} is {value!r}, must be 0 or 1")
    return value == "1"


def _hosts(name: str, value: str) -> tuple[str, ...]:
    """Split a list of hosts; whether each is a name, an address or a network is said by those who fetch."""
    words = tuple(part.strip() for part in value.split(",") if part.strip())
    try:
        addresses.parse_allowed(words)
    except ValueError as error:
        raise ConfigError(f"{name} is {value!r}: {error}") from error
    return words


def _keys(name: str, value: str) -> tuple[str, ...]:
    """Split a list of keys; an error says which one is wrong, never what it is."""
    words = tuple(part.strip() for part in value.split(","))
    for number, word in enumerate(words, start=1):
        if not KEY.fullmatch(word):
            raise ConfigError(
                f"{name}: key {number} of {len(words)} is empty or has a blank or another "
                "character than ASCII; separate keys by one comma"
            )
    return words


def _origins(name: str, value: str) -> tuple[str, ...]:
    words = tuple(part.strip() for part in value.split(","))
    if words != (EVERY_ORIGIN,) and not all(map(ORIGIN.fullmatch, words)):
        raise ConfigError(
            f"{name} is {value!r}, must be '*' or comma-separated origins as browsers write them, in small "
            "letters and without a path: https://app.example.com,http://localhost:3000"
        )
    return words


def _models(name: str, value: str) -> tuple[str, ...] | None:
    """Split `model`, `model:task,task`: which words are tasks is for those to say who know the bundles."""
    if value.lower() == "all":
        return None
    words = tuple(part.strip().lower() for part in value.split(",") if part.strip())
    if not words or any(not part for word in words for part in word.split(":")):
        raise ConfigError(
            f"{name} is {value!r}, must be 'all' or a comma-separated list of model ids, with tasks after "
            "a colon where not all of them are wanted: model:task,task"
        )
    return words


VARIABLES: dict[str, tuple[str, Callable[[str, str], Any]]] = {
    "HOST": ("host", _text),
    "PORT": ("port", _integer(1, 65535)),
    "MODELS_DIR": ("models_dir", _path),
    "MODELS_TO_LOAD": ("models_to_load", _models),
    "DEVICE": ("device", _device),
    "PRECISION": ("precision", _precision),
    "INTRA_OP_THREADS": ("intra_op_threads", _integer_or_auto(1024)),
    "WORKERS": ("workers", _integer_or_auto(1024)),
    "THREADS": ("threads", _integer_or_auto(1024)),
    "MAX_BODY_BYTES": ("max_body_bytes", _integer(1, 1 << 40)),
    "MAX_INPUTS": ("max_inputs", _integer(1, 1 << 20)),
    "MAX_BATCH_TOKENS": ("max_batch_tokens", _integer(1, 1 << 24)),
    "MAX_QUEUE_TOKENS": ("max_queue_tokens", _integer(1, 1 << 40)),
    "REQUEST_TIMEOUT": ("request_timeout", _seconds(86_400)),
    "IMAGE_ALLOW_HOSTS": ("image_allow_hosts", _hosts),
    "IMAGE_MAX_BYTES": ("image_max_bytes", _integer(1, 1 << 30)),
    "IMAGE_MAX_PIXELS": ("image_max_pixels", _integer(1, 1 << 30)),
    "API_KEYS": ("api_keys", _keys),
    "RATE_LIMIT": ("rate_limit", _integer(1, 1_000_000)),
    "CORS_ORIGINS": ("cors_origins", _origins),
    "COMPRESSION": ("compression", _one_of(Compression)),
    "CACHE_DIR": ("cache_dir", _path),
    "VERIFY_HASHES": ("verify_hashes", _flag),
    "LOG_LEVEL": ("log_level", _one_of(LogLevel)),
    "LOG_FORMAT": ("log_format", _one_of(LogFormat)),
}
