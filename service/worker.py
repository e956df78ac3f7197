"""A worker process of gunicorn that loses no request when it ends, and begins when it should.

Knows connections and whether models are loading, nothing of what requests say. gunicorn's own threaded worker

- keeps the socket open that it listened on until it is gone, so that clients connect to nobody; here what
  waits there is taken and the socket closed at once: later clients are refused and may go elsewhere;
- promises to keep the connection of a request that was in work when the end came; here every answer from then
  on says `Connection: close`;
- waits, in its only loop, 2 s for each client to close its side of a connection that is over, while nobody
  else is served; here the loop goes on meanwhile;
- waits for connections that never sent a byte as long as for answers; here as for other idle ones;
- hands a connection back to its main thread after every answer, which for a small request costs more than all
  the rest; here the thread that has answered waits a moment for the next request;
- sends head and body of an answer apart; here together;
- lets a new connection hold a thread for 5 s before it has sent a byte; here for a moment.
"""

from __future__ import annotations

import errno
import mmap
import queue
import selectors
import signal
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from functools import cache, partial
from typing import Any

from gunicorn.glogging import Logger
from gunicorn.workers import gthread

from service import connections
from service.joining import JoinedSocket

STALL_SECONDS = 30.0  # in which a client must send or take a byte, in the middle of a request or an answer
SILENT_SECONDS = 10.0  # in which a new one must send its first
LINGER_SECONDS = 2.0  # that a client has to close its side once the service has closed its own
LINGER_BYTES = 65536  # that are read away meanwhile
LOADING_POLL_SECONDS = 0.1
NO_DESCRIPTOR_SECONDS = 0.05
FOLLOW_MILLISECONDS = 10  # in which a next request is answered by the same thread


class Worker(gthread.ThreadWorker):  # type: ignore[misc]
    """A threaded worker with a lossless end. Made in the master, used after the fork."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.is_told_to_end = False  # the master's note
        self.holds_back = False  # others serve: accept nothing until the models are loaded
        self.sockets: list[Any]
        self.early_signals: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._ready = mmap.mmap(-1, 1)  # shared with the master
        self._loading: threading.Thread | None = None
        self._lingering: deque[gthread.TConn] = deque()

    # --- the begin ---------------------------------------------------------------------------------------

    @property
    def is_ready(self) -> bool:
        """Return whether the worker accepts requests and has loaded its models, or failed to."""
        return self._ready[0] == 1

    def init_signals(self) -> None:
        """Take signals; one to end that came right after the fork went to the master's handler."""
        super().init_signals()
        while not self.early_signals.empty():
            if self.early_signals.get() == signal.SIGTERM:
                self.handle_exit(signal.SIGTERM, None)

    def wait_for_models(self, loading: threading.Thread) -> None:
        """Wait for the models if others serve meanwhile; without others, requests are told to come again."""
        self._loading = loading
        while self.holds_back and self.alive and loading.is_alive():
            self.notify()
            loading.join(LOADING_POLL_SECONDS)
        if self.holds_back and not self.alive:
            self._close_listeners()

    def notify(self) -> None:
        """Tell the master that the worker lives, and whether it is ready."""
        super().notify()
        if self._accepting and self._loading and not self._loading.is_alive():
            self._ready[0] = 1

    # --- between -----------------------------------------------------------------------------------------

    def handle(self, conn: gthread.TConn) -> Any:
        """Serve a connection until no request follows at once; return what gunicorn's own returns."""
        if not conn.initialized:
            connections.limit_stalls(conn.sock, STALL_SECONDS)
        if not conn.initialized and not conn.data_ready and self.alive:
            if not connections.is_readable(conn.sock, FOLLOW_MILLISECONDS):
                return gthread._DEFER  # noqa: SLF001  without a byte it holds no thread
            conn.data_ready = True
        while True:
            result = super().handle(conn)
            # Anything but True is a connection at its end or without a request.
            if result is not True or not self.alive or not self._has_thread_to_spare():
                return result
            if conn.parser.unreader.buf.getvalue() or not connections.is_readable(
                conn.sock, FOLLOW_MILLISECONDS
            ):
                return result

    def _has_thread_to_spare(self) -> bool:
        """Tell whether no connection waits for a thread."""
        num_idle = len(self.keepalived_conns) + len(self.pending_conns)
        return bool(self.nr_conns - num_idle <= self.cfg.threads)

    def _keepalive_after(self, conn: gthread.TConn, keepalive: Any) -> bool:
        """Tell whether the connection is kept; read away what is left of the body, if anything may be."""
        if keepalive and _num_unread(conn.parser.mesg) == 0:
            return True
        return bool(super()._keepalive_after(conn, keepalive))

    # --- the end -----------------------------------------------------------------------------------------

    def run(self) -> None:
        """Serve until told to end; requests that outlast the grace may finish, unless the master kills."""
        super().run()
        self.method_queue.defer = lambda *_: None  # its pipe is closed, and another may have got the number
        self.tpool.shutdown(wait=True)

    def set_accept_enabled(self, enabled: bool) -> None:
        """Listen or not; when the worker ends, take the connections that wait and listen no more."""
        super().set_accept_enabled(enabled)
        if not self.alive and not enabled:
            self._accept_waiting()
            self._close_listeners()

    def _accept_waiting(self) -> None:
        with selectors.DefaultSelector() as waiting:
            for listener in self.sockets:
                listener.setblocking(False)
                waiting.register(listener, selectors.EVENT_READ)
            for _ in range(self.cfg.backlog):
                ready = waiting.select(0)
                for key, _ in ready:
                    self.accept(key.fileobj)
                if not ready:
                    break

    def _close_listeners(self) -> None:
        for listener in self.sockets:
            listener.close()
        self.sockets = []

    def _cap_keepalive(self, deadline: float) -> None:
        super()._cap_keepalive(deadline)
        for conn in self.pending_conns:
            conn.timeout = min(conn.timeout, deadline)

    def handle_request(self, req: Any, conn: gthread.TConn) -> Any:
        """Answer a request; whether its connection is kept is decided when the answer begins."""
        wants_close: Callable[[], bool] = req.should_close
        req.should_close = cache(lambda: not self.alive or wants_close() or bool(_num_unread(req)))
        client = conn.sock
        conn.sock = joined = JoinedSocket(client)
        try:
            return super().handle_request(req, conn)
        finally:
            joined.flush()
            conn.sock = client

    def accept(self, listener: Any) -> None:
        """Take a new connection; without a file descriptor for it, let it wait until one is closed."""
        try:
            super().accept(listener)
        except OSError as error:
            if error.errno not in (errno.EMFILE, errno.ENFILE):
                raise
            self.log.warning("no file descriptor for a new connection: raise the limit (ulimit -n)")
            time.sleep(NO_DESCRIPTOR_SECONDS)

    def finish_request(self, conn: gthread.TConn, fs: Future[Any]) -> None:
        """Keep a connection, or close it once its client has; the loop serves others meanwhile."""
        if not fs.cancelled() and not fs.exception() and fs.result() is gthread._DEFER:
            self._wait_for_first_byte(conn)
            return
        if fs.cancelled() or fs.exception() or fs.result():
            super().finish_request(conn, fs)
            return
        try:
            conn.sock.setblocking(False)
            conn.sock.shutdown(socket.SHUT_WR)
            self.poller.register(conn.sock, selectors.EVENT_READ, partial(self._drain, conn))
        except (OSError, ValueError):  # the client has gone
            self._drop(conn)
            return
        conn.timeout = time.monotonic() + LINGER_SECONDS
        self._lingering.append(conn)

    def _wait_for_first_byte(self, conn: gthread.TConn) -> None:
        """Let a new connection wait without a thread, also while the worker ends."""
        conn.sock.setblocking(False)
        conn.timeout = time.monotonic() + (SILENT_SECONDS if self.alive else LINGER_SECONDS)
        self.pending_conns.append(conn)
        readable = partial(self.on_pending_socket_readable, conn)
        self.poller.register(conn.sock, selectors.EVENT_READ, readable)

    def _drain(self, conn: gthread.TConn, client: Any) -> None:
        """Read away what nobody wants: closing over unread bytes would take the answer from the client."""
        try:
            received = client.recv(LINGER_BYTES)
        except OSError:
            received = b""
        if not received:
            self._end_lingering(conn)

    def murder_pending(self) -> None:
        """Close connections whose clients took too long."""
        super().murder_pending()
        while self._lingering and self._lingering[0].timeout <= time.monotonic():
            self._end_lingering(self._lingering[0])

    def _end_lingering(self, conn: gthread.TConn) -> None:
        self.poller.unregister(conn.sock)
        self._lingering.remove(conn)
        self._drop(conn)

    def _drop(self, conn: gthread.TConn) -> None:
        self.nr_conns -= 1
        conn.close()


class Log(Logger):  # type: ignore[misc]
    """A log without gunicorn's access lines, which would be put together to be thrown away: ours say more."""

    def exception(self, msg: str, *args: Any, **kwargs: Any) -> None:
        """Write an unexpected error; a client that stalls in the middle of a request is none."""
        if not isinstance(sys.exc_info()[1], BlockingIOError):
            super().exception(msg, *args, **kwargs)

    def access(self, *_: object) -> None:
        """Write nothing."""


def _num_unread(req: Any) -> int | None:
    """Return the bytes of a request's body that nobody has read; None: it says no length."""
    number: int | None = getattr(getattr(req.body, "reader", None), "length", None)
    return number
