"""The command is gunicorn with arguments in front; what it starts is tested where wheels and images are."""

from __future__ import annotations

import re
import sys

import pytest
from gunicorn.app import wsgiapp

from service import config, serve


@pytest.mark.parametrize("given", [[], ["--log-level", "debug"]], ids=["alone", "options"])
def test_arguments_come_first_and_once(given: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []
    monkeypatch.setattr(wsgiapp, "run", lambda prog: seen.append(sys.argv[:]))
    monkeypatch.setattr(sys, "argv", ["jina-onnx-serve", *given])
    serve.main()
    serve.main()  # as gunicorn does that replaces itself, with the arguments that it has
    assert seen == [["jina-onnx-serve", *serve.ARGUMENTS, *given]] * 2
    assert serve.CONFIGURATION.is_file()


def test_help_names_settings_with_their_defaults(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(wsgiapp, "run", lambda prog: pytest.fail("started"))
    monkeypatch.setattr(sys, "argv", ["jina-onnx-serve", "--help"])
    serve.main()
    printed = capsys.readouterr().out
    told = dict(re.findall(r"(?<!\S)([A-Z_]+)=(\S*)", printed))
    assert len(told) > 5 and told.keys() <= config.VARIABLES.keys()
    assert config.from_environment(told) == config.from_environment({})
    assert max(map(len, printed.splitlines())) <= 110
