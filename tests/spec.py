"""The specification's own commands and what its schema says of their answers. Knows no model.

Commands run as they are written, but for the server's address.
"""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tests import golden
from tests.conftest import Live

SPECIFICATION = golden.SHARED / "spec" / "api-reference.md"
LOCAL = "http://localhost:8080"
EXAMPLE = re.compile(
    r"^###+ (?:Example (?P<number>\d+)|(?P<name>Pattern \d+|Example)):.*?\n```bash\n(?P<command>.*?)\n```",
    re.DOTALL | re.MULTILINE,
)
NAMED = ("Pattern 1", "Pattern 2", "Pattern 3", "Example")  # the last has a title, no number
# What curl does beyond the command line: print the status behind the body, and no progress.
CURL_SETTINGS = 'silent\nshow-error\nwrite-out = "\\n%{http_code}\\n"\n'
PATH = "/usr/local/bin:/usr/bin:/bin"
SECONDS = 60
NEAR = 1e-6
Serve = Callable[..., AbstractContextManager[Live]]


@dataclass(frozen=True)
class Service:
    """A live service and the folder of curl's settings."""

    url: str
    settings: Path

    def run_all(self, command: str) -> list[tuple[int, dict[str, Any]]]:
        """Run curl commands written for the address of the specification; return statuses and bodies."""
        assert LOCAL in command
        done = subprocess.run(
            ["bash", "-c", command.replace(LOCAL, self.url)],
            env={"PATH": PATH, "CURL_HOME": str(self.settings)},
            capture_output=True,
            encoding="utf-8",
            timeout=SECONDS,
            check=True,
        )
        lines = done.stdout.split("\n")[:-1]
        return [(int(status), json.loads(body)) for body, status in zip(lines[::2], lines[1::2], strict=True)]

    def run(self, command: str) -> tuple[int, dict[str, Any]]:
        """Run a curl command; return status and body."""
        ((status, body),) = self.run_all(command)
        return status, body

    def answer(self, command: str) -> dict[str, Any]:
        """Run a curl command that must succeed."""
        status, body = self.run(command)
        assert status == 200, body
        return body


@contextmanager
def service_of(models: Path, serve: Serve, settings: Path) -> Iterator[Service]:
    """Serve models to the commands of the specification; `settings` is a folder for curl's."""
    (settings / ".curlrc").write_text(CURL_SETTINGS)
    with serve(models) as live:
        yield Service(live.url, settings)


def text() -> str:
    """Read the specification."""
    return SPECIFICATION.read_text(encoding="utf-8")


def examples() -> dict[str, str]:
    """Read the commands for a local server, by the number or name of their heading."""
    found = {match["number"] or match["name"]: match["command"] for match in EXAMPLE.finditer(text())}
    assert {*map(str, range(1, 24)), *NAMED} == {*found}
    return found


def sent(command: str) -> dict[str, Any]:
    """Read the body that a command sends."""
    words = shlex.split(command)
    body: dict[str, Any] = json.loads(words[words.index("-d") + 1])
    return body


def command(route: str, body: object) -> str:
    """Write a command as the specification does."""
    return f"curl {LOCAL}{route} -H 'Content-Type: application/json' -d {shlex.quote(json.dumps(body))}"


def items(body: dict[str, Any], model: str, count: int) -> list[Any]:
    """Check an embeddings answer against the specification's schema; return the embeddings."""
    assert set(body) == {"object", "model", "data", "usage"}
    assert (body["object"], body["model"]) == ("list", model)
    assert [item["index"] for item in body["data"]] == [*range(count)]
    assert all(item["object"] == "embedding" for item in body["data"])
    assert all(set(item) == {"object", "index", "embedding"} for item in body["data"])
    assert set(body["usage"]) == {"prompt_tokens", "total_tokens"}
    assert body["usage"]["prompt_tokens"] == body["usage"]["total_tokens"] > 0
    return [item["embedding"] for item in body["data"]]


def assert_unit(vectors: Any, size: int) -> None:
    """Check sizes and lengths of vectors (n, size)."""
    assert np.shape(vectors)[1:] == (size,)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=0, atol=NEAR)


def results(body: dict[str, Any], model: str, asked: dict[str, Any]) -> list[dict[str, Any]]:
    """Check a rerank answer against the specification's schema; return the results."""
    assert set(body) == {"model", "object", "results", "usage"}
    assert body["model"] == model and body["usage"]["total_tokens"] > 0
    documents = [d if isinstance(d, str) else d["text"] for d in asked["documents"]]
    found: list[dict[str, Any]] = body["results"]
    assert len(found) == min(asked.get("top_n", len(documents)), len(documents))
    assert len({result["index"] for result in found}) == len(found)
    for result in found:
        assert set(result) == {"index", "relevance_score", "document"}
        assert result["document"] == {"text": documents[result["index"]]}
    scores = [result["relevance_score"] for result in found]
    assert scores == sorted(scores, reverse=True)
    return found


def is_integer_or_null(value: object) -> bool:
    """Check what the specification types `integer | null`."""
    return value is None or type(value) is int


FIELDS: dict[str, Callable[[Any], bool]] = {  # of an entry of the list of models
    "id": lambda value: type(value) is str,
    "object": lambda value: value == "model",
    "created": lambda value: type(value) is int and value > 0,
    "owned_by": lambda value: type(value) is str,
    "type": lambda value: value in ("embedding", "reranker"),
    "max_tokens": is_integer_or_null,
    "dimensions": is_integer_or_null,
    "supports_multimodal": lambda value: type(value) is bool,
    "tasks": lambda value: value is None or all(type(task) is str for task in value),
}


def listed(body: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Check a list of models against the specification's schema; return the entries by id."""
    assert set(body) == {"object", "data"} and body["object"] == "list"
    table = re.findall(r"^\| `data\[\]\.(\w+)`", text(), re.MULTILINE)
    assert set(table) == set(FIELDS)
    for entry in body["data"]:
        assert [field for field, is_right in FIELDS.items() if not is_right(entry[field])] == []
    return {entry["id"]: entry for entry in body["data"]}
