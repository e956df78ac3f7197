"""The cache of prepacked graphs under a real gunicorn: several at once, no room, broken bundles, a stop."""

from __future__ import annotations

import fcntl
import json
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from service import cache_lock, prepacking
from tests.conftest import MODEL, START_SECONDS, Live
from tests.processes import PROJECT
from tests.test_gunicorn import embed, health, statistics, wait_until

Serve = Callable[..., AbstractContextManager[Live]]
TEXTS = ["Hello, world!", "How are you?"]


def logged(live: Live, message: str) -> list[dict[str, Any]]:
    """Return the lines of a log that have a message."""
    lines = (line for line in live.log.read_text().splitlines() if line.startswith("{"))
    return [found for line in lines if (found := json.loads(line))["message"] == message]


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mount a small file system with options; skip where that is not allowed."""
    folder = tmp_path / "mounted"
    folder.mkdir()

    def mount(options: str) -> Path:
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
        if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
            pytest.skip("file systems cannot be mounted here")
        return folder

    yield mount
    subprocess.run(["umount", str(folder)], capture_output=True, check=False)


@pytest.fixture
def bundles(real_models: Path, tmp_path: Path) -> Path:
    """A models folder to be changed."""
    return Path(shutil.copytree(real_models, tmp_path / "models"))


def test_services_that_start_at_once_make_one_copy(real_models: Path, tmp_path: Path, serve: Serve) -> None:
    settings = {"CACHE_DIR": str(tmp_path / "cache"), "WORKERS": "2"}
    with serve(real_models, wait=False, **settings) as one, serve(real_models, **settings) as other:
        wait_until(lambda: health(one) == (200, {"status": "ok"}))
        wait_until(lambda: len(logged(one, "model ready") + logged(other, "model ready")) == 4)
        assert len(logged(one, "graph copied") + logged(other, "graph copied")) == 1
        np.testing.assert_array_equal(embed(one, TEXTS), embed(other, TEXTS))
    assert not list((tmp_path / "cache").rglob(prepacking.STAGING))


def test_copies_answer_as_the_bundle_and_are_kept_beside_it(
    bundles: Path, tmp_path: Path, serve: Serve
) -> None:
    with serve(bundles) as live:
        found = embed(live, TEXTS)
        mapped = Path(f"/proc/{live.process.pid}/task/{live.process.pid}/children").read_text().split()
        assert any(str(bundles / ".cache") in Path(f"/proc/{pid}/maps").read_text() for pid in mapped)
    blocked = tmp_path / "blocked"
    blocked.write_text("")
    with serve(bundles, CACHE_DIR=str(blocked)) as live:
        assert len(logged(live, "no copy is made, the weights are not shared")) == 1
        np.testing.assert_array_equal(embed(live, TEXTS), found)
        assert [model["id"] for model in httpx.get(f"{live.url}/v1/models").json()["data"]] == [MODEL]


@pytest.mark.parametrize(
    ("options", "reason"), [("size=1m", "are free"), ("size=1m,ro", "Read-only")], ids=["full", "read-only"]
)
def test_a_cache_without_room_is_a_warning(
    real_models: Path, mounted: Callable[[str], Path], serve: Serve, options: str, reason: str
) -> None:
    cache = mounted(options)
    with serve(real_models, CACHE_DIR=str(cache)) as live:
        (line,) = logged(live, "no copy is made, the weights are not shared")
        assert (line["level"], line["model"], line["cache_dir"]) == ("warning", MODEL, str(cache))
        assert reason in line["reason"]
        assert len(embed(live, TEXTS)) == 2
    assert not list(cache.rglob("*.onnx"))


def test_a_flipped_byte_fails_the_model_and_nothing_of_it_is_served(
    bundles: Path, tmp_path: Path, serve: Serve
) -> None:
    for weights in bundles.glob(f"{MODEL}/*/weights.data"):
        content = bytearray(weights.read_bytes())
        content[len(content) // 2] ^= 1
        weights.write_bytes(content)
    with serve(bundles, wait=False, CACHE_DIR=str(tmp_path / "cache")) as live:
        wait_until(lambda: (health(live) or (0, {}))[1].get("status") == "error")
        found = health(live)
        answer = httpx.post(f"{live.url}/v1/embeddings", json={"model": MODEL, "input": TEXTS})
    assert found is not None
    assert "does not have its recorded sha256; bake it again" in found[1]["failed"][MODEL]
    assert answer.status_code == 503
    assert not list((tmp_path / "cache").rglob("*.onnx"))


def test_a_bundle_removed_while_running_serves_on(bundles: Path, tmp_path: Path, serve: Serve) -> None:
    with serve(bundles, CACHE_DIR=str(tmp_path / "cache")) as live:
        before = embed(live, TEXTS)
        shutil.rmtree(bundles / MODEL)
        np.testing.assert_array_equal(embed(live, TEXTS), before)


def test_a_reload_without_bundles_is_refused_and_the_workers_serve_on(
    bundles: Path, tmp_path: Path, serve: Serve
) -> None:
    with serve(bundles, CACHE_DIR=str(tmp_path / "cache")) as live:
        before = embed(live, TEXTS)
        (bundles / MODEL).rename(tmp_path / "away")
        live.process.send_signal(signal.SIGHUP)
        wait_until(lambda: "reload refused" in live.log.read_text())
        assert f"no bundle in {bundles}" in live.log.read_text()
        np.testing.assert_array_equal(embed(live, TEXTS), before)
        (tmp_path / "away").rename(bundles / MODEL)
        live.process.send_signal(signal.SIGHUP)
        wait_until(lambda: len(logged(live, "model ready")) == 2)
        wait_until(lambda: health(live) == (200, {"status": "ok"}))
        np.testing.assert_array_equal(embed(live, TEXTS), before)


# gunicorn's own configuration, whose workers have a maker that does not come to an end.
SLOW_MAKER = f"""
import sys
from pathlib import Path
exec(compile(Path({str(PROJECT / "gunicorn.conf.py")!r}).read_text(), "gunicorn.conf.py", "exec"))
give_place = post_fork

def post_fork(server, worker):
    give_place(server, worker)
    from service import copies
    said = "import os, sys, time; open(sys.argv[1], 'w').write(str(os.getpid())); time.sleep(600)"
    copies.MAKER = (sys.executable, "-c", said, __file__ + ".pid")
"""


def test_a_stop_ends_a_maker_and_opens_nothing(real_models: Path, tmp_path: Path, serve: Serve) -> None:
    config, cache = tmp_path / "slow_maker.py", tmp_path / "cache"
    config.write_text(f"__file__ = {str(config)!r}\n{SLOW_MAKER}")
    pid = Path(f"{config}.pid")
    with serve(real_models, wait=False, configuration=str(config), CACHE_DIR=str(cache)) as live:
        wait_until(lambda: pid.exists() and pid.read_text())
        assert cache_lock_is_held(cache)
        live.process.send_signal(signal.SIGTERM)
        assert live.process.wait(START_SECONDS / 2) == 0
        assert statistics(int(pid.read_text()))[0] in ("gone", "Z")
        assert not cache_lock_is_held(cache)
        assert not logged(live, "graph opened")
        assert not logged(live, "no copy is made, the weights are not shared")


def cache_lock_is_held(cache: Path) -> bool:
    with (cache / cache_lock.LOCK_FILE).open() as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def test_a_stop_does_not_wait_for_the_maker_of_another(
    real_models: Path, tmp_path: Path, serve: Serve
) -> None:
    """The lock is held by another here: whoever waits for it must end with the service."""
    cache = tmp_path / "cache"
    cache.mkdir()
    with (cache / cache_lock.LOCK_FILE).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with serve(real_models, wait=False, CACHE_DIR=str(cache)) as live:
            wait_until(lambda: health(live) == (503, {"status": "loading"}))
            live.process.send_signal(signal.SIGTERM)
            assert live.process.wait(START_SECONDS / 2) == 0
