"""Remedies that can be pasted."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from service import commands, config


def test_the_converter_is_named_as_it_is_called_from_here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    python = tmp_path / "a venv" / "bin" / "python"
    monkeypatch.setattr(sys, "executable", str(python))
    monkeypatch.chdir(tmp_path)
    assert commands.convert("m", "--out", Path("a b")) == "'a venv/bin/python' -m convert m --out 'a b'"
    monkeypatch.chdir("/")
    assert shlex.split(commands.convert("m"))[0] == str(tmp_path / "a venv/bin/python").removeprefix("/")


def test_what_is_named_runs() -> None:
    command = [*shlex.split(commands.convert("--list")), "--out", "/nonexistent"]
    assert "all-minilm-l6-v2" in subprocess.run(command, check=True, capture_output=True, text=True).stdout


@pytest.mark.parametrize(
    ("word", "near"), [("bge-m4", " Did you mean bge-m3?"), ("BGE-M3x", " Did you mean bge-m3?"), ("gpt", "")]
)
def test_a_near_word_is_offered(word: str, near: str) -> None:
    assert commands.did_you_mean(word, ["bge-m3", "all-minilm-l6-v2"]) == near


@pytest.mark.parametrize(
    ("given", "meant"),
    [("API_KEY", "API_KEYS"), ("LOGLEVEL", "LOG_LEVEL"), ("WORKER", "WORKERS"), ("MODEL_DIR", "MODELS_DIR")],
)
def test_a_slip_is_told_of_with_the_setting(given: str, meant: str) -> None:
    assert commands.misspelt({given: "x", "PORT": "1"}, config.VARIABLES) == {given: meant}
    assert commands.misspelt({given: "x", meant: "y"}, config.VARIABLES) == {}, "it is another program's"


def test_what_environments_usually_have_is_no_slip() -> None:
    usual = ["PATH", "HOME", "HOSTNAME", "PWD", "USER", "SHELL", "TERM", "LANG", "SHLVL", "LOGNAME", "OLDPWD",
             "OMP_NUM_THREADS", "XDG_CACHE_HOME", "CUDA_VISIBLE_DEVICES", "HF_HOME", "GUNICORN_CMD_ARGS",
             "KUBERNETES_SERVICE_HOST", "KUBERNETES_SERVICE_PORT", "RAYON_NUM_THREADS"]  # fmt: skip
    assert commands.misspelt(usual, config.VARIABLES) == {}
