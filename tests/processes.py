"""What tests and benches need to start a real gunicorn. Knows settings, waits for nothing."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Collection
from pathlib import Path

from service import config

PROJECT = Path(__file__).parent.parent
LOCALHOST = "127.0.0.1"
GUNICORN = (sys.executable, "-m", "gunicorn", "service.wsgi:app", "-c", "gunicorn.conf.py")


def environment(kept: Collection[str] = (), **settings: str) -> dict[str, str]:
    """Return the environment with the service's own settings replaced by the given ones and those `kept`."""
    own = {*config.VARIABLES, "GUNICORN_CMD_ARGS"} - {*kept}
    return {name: value for name, value in os.environ.items() if name not in own} | settings


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind((LOCALHOST, 0))
        port: int = probe.getsockname()[1]
        return port
