"""Every message that docs/operations.md quotes under Troubleshooting is said, word for word."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path

import httpx
import pytest
from falcon.testing import TestClient

from service.admission import Admission, Limits
from service.app import STATUSES, make_app
from service.config import Settings
from service.errors import Overloaded
from service.placement import Placement
from service.registry import Registry
from service.scheduler import Scheduler
from tests.conftest import MODEL, Live
from tests.processes import GUNICORN, LOCALHOST, PROJECT, environment, free_port

ROUTE, KEY, RATE = "/v1/embeddings", "the-right-key-5823", 3
PAGE = (PROJECT / "docs" / "operations.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\| (\d{3} )?`([^`]+)`", PAGE.partition("\n## Troubleshooting\n")[2], re.MULTILINE)
GIVEN = {"model": MODEL, "input": "a"}
SECONDS = 60
Serve = Callable[..., AbstractContextManager[Live]]
Said = tuple[str, str]  # a status, or none, and a message


def run_to_its_end(command: list[str], **settings: str) -> Said:
    """Run what must fail; return what it has said."""
    ended = subprocess.run(
        command, cwd=PROJECT, env=environment(**settings), capture_output=True, text=True, timeout=SECONDS
    )
    assert ended.returncode == 1, ended.stdout
    return "", ended.stdout + ended.stderr


def starts(models: Path, empty: Path) -> Iterator[Said]:
    """Start and bake what cannot be."""
    with socket.socket() as taken:
        taken.bind((LOCALHOST, 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        yield run_to_its_end([*GUNICORN], MODELS_DIR=str(models), HOST=LOCALHOST, PORT=port)
    where = {"HOST": LOCALHOST, "PORT": str(free_port())}
    yield run_to_its_end([*GUNICORN], MODELS_DIR=str(empty), **where)
    yield run_to_its_end([*GUNICORN], MODELS_DIR=str(models), MODELS_TO_LOAD="bge-m3", **where)
    bake = [sys.executable, "-m", "convert", "bge-m3", "--out", str(empty)]
    yield run_to_its_end(bake, HF_HUB_OFFLINE="1", HF_HOME=str(empty / "hub"))


def answers(url: str) -> Iterator[Said]:
    """Ask a service with a key and a limit for what it refuses; at last too often."""
    with httpx.Client(base_url=url, timeout=SECONDS) as client:
        yield said_in(client.post(ROUTE, json=GIVEN))
        yield said_in(client.post(ROUTE, json=GIVEN, headers={"Authorization": "Bearer wrong"}))
        client.headers["Authorization"] = f"Bearer {KEY}"
        yield said_in(client.post(ROUTE, json=GIVEN | {"model": "bge-m3"}))
        yield said_in(client.post(ROUTE, json=GIVEN | {"input": "word " * 1000}))
        yield said_in(client.post(ROUTE, data=GIVEN))
        yield said_in(client.post(ROUTE, json=GIVEN))


def said_in(answer: httpx.Response) -> Said:
    return str(answer.status_code), answer.json()["error"]["message"]


def unavailable(models: Path) -> Iterator[Said]:
    """Ask for a model before it is loaded, and where it has no memory."""
    settings = Settings(models_dir=models)
    for placement, is_loaded in ((Placement(), False), (Placement(memory_bytes=1_000_000), True)):
        registry = Registry(settings, Scheduler(settings.max_batch_tokens), placement)
        if is_loaded:
            registry.load()
        answer = TestClient(make_app(settings, registry)).simulate_post(ROUTE, json=GIVEN)
        yield str(answer.status_code), answer.json["error"]["message"]


def overloaded(limits: Limits) -> Said:
    """Let one request in, which takes all there is, and another."""
    door = Admission(limits)
    with ExitStack() as held:
        door.admit(held.enter_context(door.request(lambda: False, 0)), 60)
        with pytest.raises(Overloaded) as caught:
            door.admit(held.enter_context(door.request(lambda: False, 0)), 60)
    return str(STATUSES[Overloaded]), str(caught.value)


@pytest.fixture(scope="module")
def said(tiny_models: Path, serve: Serve, tmp_path_factory: pytest.TempPathFactory) -> list[Said]:
    """All that went wrong."""
    found = [*starts(tiny_models, tmp_path_factory.mktemp("empty")), *unavailable(tiny_models)]
    with serve(tiny_models, API_KEYS=KEY, RATE_LIMIT=str(RATE)) as live:
        found += answers(live.url)
    found.append(overloaded(Limits(max_tokens=100, max_requests=10, max_body_bytes=1)))
    found.append(overloaded(Limits(max_tokens=1000, max_requests=1, max_body_bytes=1)))
    return found


@pytest.mark.parametrize(("status", "message"), ROWS)
def test_what_the_page_quotes_is_said(status: str, message: str, said: list[Said]) -> None:
    pattern = ".+?".join(map(re.escape, message.split("...")))
    whole = f"{pattern}$" if status and not message.endswith("...") else pattern
    matching = [found for found in said if found[0] == status.strip() and re.search(whole, found[1])]
    assert len(matching) == 1, said


def test_the_page_has_a_row_for_all_that_was_tried(said: list[Said]) -> None:
    assert len(ROWS) == len(said)
