"""The form of log lines."""

from __future__ import annotations

import json
import logging
import sys

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
