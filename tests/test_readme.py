"""The README's curl example and its lists of settings, run and compared."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from service import config
from tests.conftest import MODEL, Live
from tests.processes import PROJECT

README = (PROJECT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```sh\n(.*?)```", README, re.DOTALL)


def test_the_curl_example_answers(
    real_models: Path, serve: Callable[..., AbstractContextManager[Live]]
) -> None:
    (command,) = [block for block in BLOCKS if "/v1/embeddings" in block]
    with serve(real_models) as live:
        words = shlex.split(command.replace("http://localhost:8080", live.url).replace("\\\n", " "))
        answer = json.loads(subprocess.run([*words, "--silent"], check=True, capture_output=True).stdout)
    assert answer["model"] == MODEL
    assert [len(item["embedding"]) for item in answer["data"]] == [384, 384]


def test_every_setting_is_in_the_table() -> None:
    rows = re.findall(r"^\| (`[^|]+) \|", README, re.MULTILINE)
    named = {name for row in rows for name in re.findall(r"`([A-Z_]+)`", row)}
    assert named == set(config.VARIABLES)


def test_every_unsupported_setting_is_named() -> None:
    (sentence,) = re.findall(r"^(`API_KEYS`.*?)not supported", README, re.MULTILINE | re.DOTALL)
    assert set(re.findall(r"`([A-Z_]+)`", sentence)) == set(config.UNSUPPORTED)
