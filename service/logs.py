"""How log lines look: one JSON object or one plain line each. Knows logging, nothing of requests."""

from __future__ import annotations

import json
import logging
import logging.config
from datetime import UTC, datetime
from typing import Any

import orjson

from service.config import LogFormat, Settings
from service.unquoted import Unquoted

LOGGER_NAME = "jina_onnx_server"
FIELDS = "fields"  # the attribute of a record that holds its structured part


class JsonFormatter(logging.Formatter):
    """Write a record as one JSON object: time, level, message, fields, error."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        moment = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line: dict[str, Any] = {
            "time": moment.replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "message": record.getMessage(),
            **getattr(record, FIELDS, {}),
        }
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        try:
            return orjson.dumps(line, default=str).decode()
        except (
            TypeError
        ):  # lone surrogates and integers of more than 64 bits, which are no text and number to it
            return json.dumps(line, default=str)


class TextFormatter(logging.Formatter):
    """Write a record as time, level, message and its fields as key=value."""

    def __init__(self) -> None:
        """Fix the layout of the first three."""
        super().__init__("%(asctime)s %(levelname)s %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  the name is logging's
        """Return the line without a traceback."""
        fields = (f"{name}={_on_one_line(value)}" for name, value in getattr(record, FIELDS, {}).items())
        return " ".join((super().formatMessage(record), *fields))


def _on_one_line(value: object) -> str:
    """Write control characters as escapes: a caller's path must not begin a line of its own."""
    text = str(value)
    return text if text.isprintable() else json.dumps(text)


FORMATTERS: dict[LogFormat, type[logging.Formatter]] = {
    LogFormat.JSON: JsonFormatter,
    LogFormat.TEXT: TextFormatter,
}


def dict_config(settings: Settings) -> dict[str, Any]:
    """Describe the logging of service and gunicorn for logging.config: everything to standard error."""
    level = settings.log_level.upper()
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"line": {"()": FORMATTERS[settings.log_format]}},
        "filters": {"unquoted": {"()": Unquoted}},
        "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "line"}},
        "root": {"level": "WARNING", "handlers": ["stderr"]},
        "loggers": {
            LOGGER_NAME: {"level": level, "handlers": ["stderr"], "propagate": False},
            "gunicorn.error": {
                "level": level,
                "handlers": ["stderr"],
                "filters": ["unquoted"],
                "propagate": False,
            },
            "gunicorn.access": {
                "level": "CRITICAL",
                "handlers": [],
                "propagate": False,
            },  # ours has more in it
        },
    }


def write(level: int, message: str, **fields: object) -> None:
    """Write one line with structured fields."""
    logger = logging.getLogger(LOGGER_NAME)
    if logger.isEnabledFor(level):  # not logger.log, which first looks for the file and line of the caller
        logger.handle(logger.makeRecord(LOGGER_NAME, level, "", 0, message, (), None, extra={FIELDS: fields}))
