"""What is left out of the log."""

from __future__ import annotations

import logging
import sys

import pytest

from service.unquoted import Unquoted, places

MARK = "a text that is nobody's business"


def raised(error: BaseException) -> BaseException:
    try:
        raise error
    except BaseException as caught:  # noqa: BLE001  the traceback is wanted
        return caught


@pytest.mark.parametrize("kind", [ValueError, KeyError, RuntimeError, Exception])
def test_a_message_that_may_quote_is_left_out(kind: type[Exception]) -> None:
    written = places(raised(kind(MARK)))
    assert MARK not in written
    assert written.startswith("Traceback") and kind.__name__ in written and "in raised" in written


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), MemoryError("4 GB")])
def test_what_the_system_says_stays(error: Exception) -> None:
    assert str(error) in places(raised(error))


def test_a_unicode_error_quotes_too() -> None:
    try:
        (MARK + "\ud800").encode()
    except UnicodeEncodeError as error:
        assert MARK not in places(error)


def test_what_led_to_it_is_there_in_order() -> None:
    try:
        try:
            raise KeyError(MARK)
        except KeyError:
            int(MARK)  # which quotes, too
    except ValueError as error:
        written = places(error)
    assert MARK not in written
    assert written.index("KeyError") < written.index("ValueError")


def test_a_cause_is_there() -> None:
    try:
        raise TypeError(MARK) from KeyError(MARK)
    except TypeError as error:
        written = places(error)
    assert MARK not in written
    assert written.index("KeyError") < written.index("TypeError")


@pytest.mark.parametrize(
    ("message", "arguments", "kept"),
    [
        (
            f"Invalid request from ip=10.0.0.1: Invalid HTTP request line: {MARK}",
            (),
            "Invalid request from ip=10.0.0.1",
        ),
        (f"Invalid request from ip=::1: {MARK}", (), "Invalid request from ip=::1"),
        ("Ignored premature client disconnection. %s", (MARK,), "Ignored premature client disconnection"),
        ("Closing connection. %s", (MARK,), "Closing connection"),
        ("Error handling request %s %s", ("POST", MARK), "Error handling request"),
        ("Booting worker with pid: %s", (5,), "Booting worker with pid: 5"),
    ],
)
def test_lines_of_gunicorn_end_before_the_quotation(
    message: str, arguments: tuple[object, ...], kept: str
) -> None:
    record = logging.LogRecord("gunicorn.error", logging.WARNING, "", 0, message, arguments, None)
    assert Unquoted().filter(record)
    assert record.getMessage() == kept


def test_a_failed_request_says_where() -> None:
    try:
        raise ValueError(MARK)
    except ValueError:
        record = logging.LogRecord(
            "gunicorn.error", logging.ERROR, "", 0, "Error handling request %s", (MARK,), sys.exc_info()
        )
    Unquoted().filter(record)
    written = logging.Formatter().format(record)
    assert MARK not in written and "test_a_failed_request_says_where" in written
