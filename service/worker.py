"""How gunicorn's threaded worker is made cheaper for each request. Knows gunicorn, no HTTP and no model."""

from __future__ import annotations

import select
from typing import Any

from gunicorn.glogging import Logger
from gunicorn.workers.gthread import ThreadWorker

LINGER_MILLISECONDS = 10


class Worker(ThreadWorker):  # type: ignore[misc]  # gunicorn has no types
    """A threaded worker that answers requests which follow one another at once in one thread.

    gunicorn's own hands a connection back to its main thread after every answer: for a small request that
    costs more than all the rest.
    """

    def handle(self, conn: Any) -> Any:
        """Serve a connection until no request follows at once; return what gunicorn's returns."""
        while True:
            result = super().handle(conn)
            # Anything but True is a connection at its end or without a request.
            if result is not True or not self.alive or not self._has_thread_to_spare():
                return result
            if conn.parser.unreader.buf.getvalue() or not _is_readable(conn.sock):
                return result

    def _has_thread_to_spare(self) -> bool:
        """Tell whether no connection waits for a thread."""
        num_idle = len(self.keepalived_conns) + len(self.pending_conns)
        return bool(self.nr_conns - num_idle <= self.cfg.threads)


class Log(Logger):  # type: ignore[misc]  # gunicorn has no types
    """A log without gunicorn's access lines, which would be put together to be thrown away: ours say more."""

    def access(self, *_: object) -> None:
        """Write nothing."""


def _is_readable(connection: Any) -> bool:
    """Wait a moment for bytes, or for the end of the connection."""
    poll = select.poll()
    poll.register(connection.fileno(), select.POLLIN)
    return bool(poll.poll(LINGER_MILLISECONDS))
