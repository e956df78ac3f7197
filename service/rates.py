"""How often a client may ask: one table in memory that all workers of a server share. Knows no HTTP.

A client has a bucket of as many requests as its limit for a minute, which fills evenly. Of a bucket only the
moment is kept at which it will be full again; one that is full needs no place. The table never grows: where
more clients are active than it has places, one whose bucket is nearly full loses its place to a new one.
"""

from __future__ import annotations

import fcntl
import hashlib
import ipaddress
import mmap
import os
import struct
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import IO

VARIABLE = "JINA_ONNX_SERVER_RATES"  # the descriptor of the table, from gunicorn's master to its workers
PERIOD_SECONDS = 60.0
NUM_SETS, NUM_WAYS = 8192, 8  # a client has one set, and any of its places
SET = struct.Struct(f"={NUM_WAYS}Q{NUM_WAYS}d")  # marks of clients, moments at which their buckets are full
SEED_BYTES = 16  # at the end of the table: which clients share a set is nobody's to choose
ROUNDING_SECONDS = 1e-6
IPV6_NETWORK = 64  # bits of an address that are a customer's; the others it chooses itself


def make_table(folder: str | None = None) -> IO[bytes]:
    """Make an empty table of 1 MiB in a folder, which goes with the last process that has it open."""
    table = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115  it stays open
    # Written, not left as a hole: where there is no room for it, the start fails and no worker later.
    table.write(bytes(NUM_SETS * SET.size) + os.urandom(SEED_BYTES))
    table.flush()
    return table


def table_from_environment(environ: Mapping[str, str]) -> IO[bytes] | None:
    """Return the table that the master has made; None under another server, where this process is alone."""
    return open(int(environ[VARIABLE]), "r+b", buffering=0) if environ.get(VARIABLE) else None


class Rates:
    """The buckets of all clients."""

    def __init__(
        self, per_minute: int, table: IO[bytes] | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Let each client make so many requests a minute; without a table, count in this process alone."""
        self._interval = PERIOD_SECONDS / per_minute
        self._table = table or make_table()
        weakref.finalize(self, self._table.close)
        self._memory = mmap.mmap(self._table.fileno(), 0)
        self._seed = self._memory[-SEED_BYTES:]
        self._clock = clock  # the same in all processes of a host
        self._guard = threading.Lock()

    def take(self, client: bytes) -> float:
        """Take a request out of a client's bucket; return 0, or the seconds after which there is one."""
        digest = hashlib.blake2b(client, digest_size=16, key=self._seed).digest()
        offset = int.from_bytes(digest[:8]) % NUM_SETS * SET.size
        mark = int.from_bytes(digest[8:]) or 1
        with self._locked(offset):
            now = self._clock()
            values = list(SET.unpack_from(self._memory, offset))
            marks, moments = values[:NUM_WAYS], values[NUM_WAYS:]
            way = marks.index(mark) if mark in marks else moments.index(min(moments))
            full_at = max(now, moments[way]) if marks[way] == mark else now
            wait = full_at - now + self._interval - PERIOD_SECONDS
            if wait > ROUNDING_SECONDS:
                return float(wait)
            values[way], values[NUM_WAYS + way] = mark, full_at + self._interval
            SET.pack_into(self._memory, offset, *values)
        return 0.0

    @contextmanager
    def _locked(self, offset: int) -> Iterator[None]:
        """Keep a set from the other threads and processes; the system frees what a dead process holds."""
        with self._guard:
            fcntl.lockf(self._table, fcntl.LOCK_EX, SET.size, offset)
            try:
                yield
            finally:
                fcntl.lockf(self._table, fcntl.LOCK_UN, SET.size, offset)


def client_of(address: str) -> bytes:
    """Return what stands for an address: itself, of IPv6 its network."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:  # a Unix socket has none
        return address.encode(errors="backslashreplace")
    if isinstance(found, ipaddress.IPv6Address):
        if found.ipv4_mapped is None:
            return found.packed[: IPV6_NETWORK // 8]
        found = found.ipv4_mapped
    return found.packed
