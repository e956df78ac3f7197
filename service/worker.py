"""A worker process of gunicorn that loses no request when it ends, and begins when it should.

Knows connections and whether models are loading, nothing of what requests say. Unlike gunicorn's own it
waits for no client in a thread or in its only loop, and takes what has connected when it ends.
"""

from __future__ import annotations

import errno
import mmap
import queue
import selectors
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from functools import cache, partial
from typing import Any

from gunicorn.workers import gthread

from service import connections, lingering
from service.broken import BrokenHttpSocket
from service.joining import JoinedSocket
from service.receiving import Arrivals, left

STALL_SECONDS = 30.0  # in which a client must send or take a byte, in the middle of a request or an answer
SILENT_SECONDS = 10.0  # in which a new one must send its first
MOST_LOOKED_AT = 16  # idle connections, for one that can be closed
LOADING_POLL_SECONDS = 0.1
NO_DESCRIPTOR_SECONDS = 0.05
FOLLOW_MILLISECONDS = 10  # in which a next request is answered by the same thread


class Worker(gthread.ThreadWorker):  # type: ignore[misc]
    """A threaded worker with a lossless end. Made in the master, used after the fork."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.is_told_to_end = False  # the master's note
        self.holds_back = False  # others serve: accept nothing until the models are loaded
        self.serving = mmap.mmap(-1, 1)  # whether any worker does; the master's own is in its place
        self.sockets: list[Any]
        self.early_signals: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._ready = mmap.mmap(-1, 1)  # shared with the master
        self._loading: threading.Thread | None = None
        self._lingering, self._arrivals = lingering.Lingering(self._drop), Arrivals()

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
        signal.signal(signal.SIGINT, self.handle_interrupt)

    def handle_interrupt(self, sig: int, frame: Any) -> None:
        """End as at a TERM; a second Ctrl-C, which every process of a terminal gets, ends at once."""
        (self.handle_exit if self.alive else self.handle_quit)(sig, frame)

    def wait_for_models(self, loading: threading.Thread) -> None:
        """Wait for the models if others serve meanwhile; without others, requests are told to come again."""
        self._loading = loading
        while self.holds_back and self.serving[0] and self.alive and loading.is_alive():
            self.notify()
            loading.join(LOADING_POLL_SECONDS)
        if self.holds_back and not self.alive:
            self._close_listeners()
        threading.Thread(target=self._tell_loaded, args=[loading], daemon=True).start()

    def _tell_loaded(self, loading: threading.Thread) -> None:
        loading.join()
        for step in (partial(self.set_accept_enabled, True), self.notify):  # at once: the loop takes a second
            self.method_queue.defer(lambda step=step: self.alive and step())

    def notify(self) -> None:
        """Tell the master that the worker lives, and whether it is ready."""
        super().notify()
        if self._accepting and self._loading and not self._loading.is_alive():
            self._ready[0] = self.serving[0] = 1
        elif self._accepting and self._is_not_needed_yet():
            self.set_accept_enabled(False)

    def _is_not_needed_yet(self) -> bool:
        """Tell whether the models load while another worker has its own."""
        return bool(self.alive and self._loading and self._loading.is_alive() and self.serving[0])

    # --- between -----------------------------------------------------------------------------------------

    def handle(self, conn: gthread.TConn) -> Any:
        """Serve a connection until no request follows at once; return what gunicorn's own returns."""
        if not conn.initialized:
            connections.limit_stalls(conn.sock, STALL_SECONDS)
        if not conn.initialized and not conn.data_ready and self.alive:
            if not self._comes_now(conn.sock):
                return gthread._DEFER  # noqa: SLF001  without a byte it holds no thread
            conn.data_ready = True
        while True:
            self._arrivals.begin(conn)
            try:
                result = super().handle(conn)
            finally:
                self._arrivals.end(conn)
            # Anything but True is a connection at its end or without a request.
            if result is not True or not self.alive or self._num_busy() > self.cfg.threads:
                return result
            if conn.parser.unreader.buf.getvalue() or not self._comes_now(conn.sock):
                return result

    def _comes_now(self, sock: Any) -> bool:
        return connections.is_readable(sock, FOLLOW_MILLISECONDS) and not self._is_half(sock)

    def _num_busy(self) -> int:
        return int(self.nr_conns - len(self.keepalived_conns) - len(self.pending_conns))

    def _is_half(self, sock: Any) -> bool:
        """Tell whether a head must come before it gets a thread: where half are taken, as a look costs."""
        return self._num_busy() > self.cfg.threads // 2 and not connections.has_head(sock)

    def on_pending_socket_readable(self, conn: gthread.TConn, client: Any) -> None:
        """Hand a new connection to a thread, or wait on for its head."""
        if self._may_begin(client):
            super().on_pending_socket_readable(conn, client)

    def on_client_socket_readable(self, conn: gthread.TConn, client: Any) -> None:
        """Hand a kept connection to a thread, or wait on for its next head."""
        if self._may_begin(client):
            super().on_client_socket_readable(conn, client)

    def _may_begin(self, client: Any) -> bool:
        if is_whole := not self._is_half(client):
            connections.wake_by(client, 1)  # where it had to wait; to remember who had would cost no less
        return is_whole

    def _keepalive_after(self, conn: gthread.TConn, keepalive: Any) -> bool:
        """Tell whether the connection is kept: not over what is left of a body."""
        return bool(keepalive) and left(conn.parser.mesg.body.reader) == 0

    # --- the end -----------------------------------------------------------------------------------------

    def run(self) -> None:
        """Serve until told to end; requests that outlast the grace may finish, unless the master kills."""
        super().run()
        self.method_queue.defer = lambda *_: None  # its pipe is closed, and another may have got the number
        self.tpool.shutdown(wait=True)

    def set_accept_enabled(self, enabled: bool) -> None:
        """Listen or not; when the worker ends, take the connections that wait and listen no more."""
        super().set_accept_enabled(enabled and not self._is_not_needed_yet())
        if not self.alive and not enabled:
            self._accept_waiting()
            self._close_listeners()

    def _accept_waiting(self) -> None:
        with selectors.DefaultSelector() as waiting:
            for listener in self.sockets:
                listener.setblocking(False)
                waiting.register(listener, selectors.EVENT_READ)
            for _ in range(self.cfg.backlog):
                if not (ready := waiting.select(0)):
                    break
                for key, _ in ready:
                    self.accept(key.fileobj)

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
        req.should_close = cache(lambda: not self.alive or wants_close() or left(req.body.reader) != 0)
        req._expected_100_continue = False  # noqa: SLF001  the application invites a body when it wants it
        client = conn.sock
        conn.sock = joined = JoinedSocket(client)
        self._arrivals.take(conn, req)
        try:
            return super().handle_request(req, conn)
        finally:
            joined.flush()
            conn.sock = client

    def accept(self, listener: Any) -> None:
        """Take a new connection, in the place of the one that has been idle longest if there are too many.

        Without a file descriptor for it, let it wait until one is closed.
        """
        if self.nr_conns + 1 >= self.worker_connections:
            self._close_longest_idle()
        try:
            super().accept(listener)
        except OSError as error:
            if error.errno not in (errno.EMFILE, errno.ENFILE):
                raise
            self.log.warning("no file descriptor for a new connection: raise the limit (ulimit -n)")
            time.sleep(NO_DESCRIPTOR_SECONDS)

    def _close_longest_idle(self) -> None:
        for idle in (self.pending_conns, self.keepalived_conns):  # first those that never sent a byte
            for conn in [*idle][:MOST_LOOKED_AT]:
                if not connections.is_readable(conn.sock, 0):  # else the loop is about to take it
                    idle.remove(conn)
                    self.poller.unregister(conn.sock)
                    self._drop(conn)
                    return

    def handle_error(self, req: Any, client: Any, addr: Any, exc: Exception) -> None:
        """Answer broken HTTP."""
        super().handle_error(req, BrokenHttpSocket(client), addr, exc)

    def finish_request(self, conn: gthread.TConn, fs: Future[Any]) -> None:
        """Keep a connection, or close it once its client has; the loop serves others meanwhile."""
        has_failed = fs.cancelled() or fs.exception()
        if not has_failed and fs.result() is gthread._DEFER:
            self._wait_for_first_byte(conn)
        elif has_failed or fs.result():
            super().finish_request(conn, fs)
        else:
            self._lingering.begin(self.poller, conn)

    def _wait_for_first_byte(self, conn: gthread.TConn) -> None:
        """Let a new connection wait without a thread, also while the worker ends."""
        conn.sock.setblocking(False)
        conn.timeout = time.monotonic() + (SILENT_SECONDS if self.alive else lingering.SILENT_SECONDS)
        self.pending_conns.append(conn)
        self.poller.register(conn.sock, selectors.EVENT_READ, partial(self.on_pending_socket_readable, conn))

    def murder_pending(self) -> None:
        """Close connections whose clients took too long."""
        super().murder_pending()
        self._lingering.end_overdue(self.poller, is_ending=not self.alive)
        self._arrivals.cut_off_late()

    def _drop(self, conn: gthread.TConn) -> None:
        self.nr_conns -= 1
        conn.close()
