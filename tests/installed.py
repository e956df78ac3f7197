"""The service as an environment of its own has it, started where nothing leads to this project."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.conftest import START_SECONDS, Live, wait_until_ready
from tests.processes import LOCALHOST, environment, free_port


def plain(**settings: str) -> dict[str, str]:
    """Return the environment without what could lead to this project."""
    return {name: value for name, value in environment(**settings).items() if name != "PYTHONPATH"}


@contextmanager
def started(command: Sequence[str | Path], folder: Path, log: Path, **settings: str) -> Iterator[Live]:
    """Run a command that serves, in a folder, and wait until it does; stop it at the end."""
    port = free_port()
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=plain(HOST=LOCALHOST, PORT=str(port), **settings),
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    live = Live(f"http://{LOCALHOST}:{port}", process, log)
    try:
        wait_until_ready(live)
        yield live
    finally:
        if process.poll() is None:
            process.terminate()
        process.wait(START_SECONDS)


def stopped(live: Live) -> int:
    """Stop the service; return its status."""
    live.process.terminate()
    return live.process.wait(START_SECONDS)
