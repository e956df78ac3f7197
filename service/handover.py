"""Lets the workers of before a reload serve until those after it can, and ends all without losing a client.

Knows gunicorn's master, no request. gunicorn itself ends the old workers as soon as the new ones are forked,
long before their models are loaded; and at a stop it closes the port over clients that have just connected.
"""

from __future__ import annotations

import mmap
import signal
import sys
import time
from typing import Any

from service import listening

LAST_ACCEPT_SECONDS = 0.1  # that the workers have to take what has connected before the port closes


class Handover:
    """From the old workers to the new ones; one reload at a time."""

    def __init__(self, server: Any) -> None:
        """Take the place of the master's own way to reload and to count its workers."""
        self._server = server
        self._plain_reload, self._plain_manage = server.reload, server.manage_workers
        self._plain_stop = server.stop
        self._last_age = 0  # of the workers before the last reload
        self._is_asked_again = False
        self._hidden: list[Any] = []
        self._serving = mmap.mmap(-1, 1)  # shared with the workers: whether any of them serves
        server.reload, server.manage_workers, server.stop = self.reload, self.manage_workers, self.stop
        server.handle_int = server.handle_term  # Ctrl-C loses no request either; a second one does not wait

    def reload(self) -> None:
        """Read the configuration again and start new workers; while another reload is under way, after it."""
        if self._outdated():
            self._is_asked_again = True
            return
        server, serving = self._server, self._server.WORKERS
        self._last_age, self._hidden = server.worker_age, list(serving.values())
        server.WORKERS = {}  # gunicorn's reload ends the old workers that it sees, and waits for them
        try:
            self._plain_reload()
        finally:
            server.WORKERS, self._hidden = serving | server.WORKERS, []

    def manage_workers(self) -> None:
        """Start missing workers; end those of before the reload once all after it are ready."""
        server, outdated = self._server, self._outdated()
        self._serving[0] = self._is_any_serving()
        if not outdated:
            self._plain_manage()
            if self._is_asked_again:
                self._is_asked_again = False
                server.reload()
            return
        current = [worker for worker in server.WORKERS.values() if worker.age > self._last_age]
        if len(current) < server.num_workers:
            server.spawn_worker()  # the next round starts the next
        elif all(worker.is_ready for worker in current):
            for worker in outdated:
                self._end(worker)

    def prepare(self, worker: Any) -> None:
        """Let a worker that is about to be forked hold back where others serve, now or before it does."""
        worker.serving = self._serving
        self._serving[0] = worker.holds_back = self._is_any_serving()

    def stop(self, graceful: bool = True) -> None:
        """End all workers; first, if gracefully, turn new clients away and take those that have connected."""
        server = self._server
        is_shared = server.reexec_pid or server.master_pid or server.systemd  # others go on listening
        if graceful and not is_shared and sys.platform == "linux" and listening.turn_away(server.LISTENERS):
            time.sleep(LAST_ACCEPT_SECONDS)
        self._plain_stop(graceful)

    def _is_any_serving(self) -> bool:
        return any(map(_serves, (*self._server.WORKERS.values(), *self._hidden)))

    def _outdated(self) -> list[Any]:
        return [worker for worker in self._server.WORKERS.values() if worker.age <= self._last_age]

    def _end(self, worker: Any) -> None:
        if not worker.is_told_to_end:
            worker.is_told_to_end = True
            self._server.kill_worker(worker.pid, signal.SIGTERM)


def _serves(worker: Any) -> bool:
    return bool(worker.is_ready and not worker.is_told_to_end)
