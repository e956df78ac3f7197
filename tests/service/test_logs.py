"""The form of log lines."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path

import pytest

from service import logs
from service.config import LogFormat


def record(**fields: object) -> logging.LogRecord:
    made = logging.LogRecord("name", logging.WARNING, "", 0, "what happened: %s", ("é",), None)
    setattr(made, logs.FIELDS, fields)
    return made


def test_json_is_one_line_with_the_fields() -> None:
    line = logs.JsonFormatter().format(record(model="m", tokens=3))
    content = json.loads(line)
    assert "\n" not in line
    assert content.pop("time").endswith("Z")
    assert content == {"level": "warning", "message": "what happened: é", "model": "m", "tokens": 3}


def test_json_holds_what_its_encoder_does_not_take() -> None:
    fields = {"path": "/\ud800", "count": 1 << 70, "folder": Path("/models")}
    content = json.loads(logs.JsonFormatter().format(record(**fields)))
    assert content.items() >= {**fields, "folder": "/models"}.items()


def test_time_is_utc_to_the_millisecond() -> None:
    made = record()
    made.created = 1_700_000_000.25
    assert json.loads(logs.JsonFormatter().format(made))["time"] == "2023-11-14T22:13:20.250Z"


def test_a_line_below_the_level_is_not_written(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger=logs.LOGGER_NAME):
        logs.write(logging.INFO, "small", status=200)
        logs.write(logging.ERROR, "large", status=500)
    (written,) = [made for made in caplog.records if made.name == logs.LOGGER_NAME]
    assert (written.getMessage(), written.__dict__[logs.FIELDS]) == ("large", {"status": 500})


def test_json_carries_a_traceback_as_a_string() -> None:
    made = record()
    try:
        raise ValueError("why")
    except ValueError:
        made.exc_info = sys.exc_info()
    assert "ValueError: why" in json.loads(logs.JsonFormatter().format(made))["error"]


def test_text_appends_the_fields() -> None:
    assert (
        logs.FORMATTERS[LogFormat.TEXT]()
        .format(record(status=422))
        .endswith("WARNING what happened: é status=422")
    )


def test_text_keeps_a_forged_line_on_its_own() -> None:
    assert "\n" not in logs.FORMATTERS[LogFormat.TEXT]().format(record(path="/a\n2026 INFO forged"))
