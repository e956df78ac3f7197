"""Handover on a pretended master: who is forked, who is told to end, and when."""

from __future__ import annotations

import signal
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from service.handover import Handover


@dataclass
class FakeWorker:
    age: int
    pid: int
    is_ready: bool = False
    is_told_to_end: bool = False
    holds_back: bool = False


@dataclass
class FakeServer:
    """Counts, forks and ends as gunicorn's master does."""

    num_workers: int = 2
    worker_age: int = 0
    WORKERS: dict[int, FakeWorker] = field(default_factory=dict)  # noqa: N815  gunicorn's name
    ended: list[int] = field(default_factory=list)
    on_fork: Callable[[FakeWorker], None] = lambda worker: None

    def spawn_worker(self) -> None:
        self.worker_age += 1
        worker = FakeWorker(self.worker_age, 100 + self.worker_age)
        self.on_fork(worker)
        self.WORKERS[worker.pid] = worker

    def manage_workers(self) -> None:
        while len(self.WORKERS) < self.num_workers:
            self.spawn_worker()
        for pid in sorted(self.WORKERS)[: len(self.WORKERS) - self.num_workers]:
            self.kill_worker(pid, signal.SIGTERM)

    def reload(self) -> None:
        for _ in range(self.num_workers):
            self.spawn_worker()
        self.manage_workers()

    def stop(self, graceful: bool = True) -> None:
        self.WORKERS.clear()

    def handle_term(self) -> None:
        self.stop()

    def kill_worker(self, pid: int, sig: int) -> None:
        assert sig == signal.SIGTERM
        self.ended.append(pid)

    def set_ready(self, *pids: int) -> None:
        for pid in pids:
            self.WORKERS[pid].is_ready = True

    def reap(self, *pids: int) -> None:
        for pid in pids:
            del self.WORKERS[pid]


@pytest.fixture
def server() -> FakeServer:
    """A master with workers 101 and 102 that are ready."""
    server = FakeServer()
    server.on_fork = Handover(server).prepare
    server.manage_workers()
    server.set_ready(101, 102)
    return server


def test_the_first_workers_do_not_hold_back(server: FakeServer) -> None:
    assert not any(worker.holds_back for worker in server.WORKERS.values())


def test_old_workers_end_once_when_all_new_ones_are_ready(server: FakeServer) -> None:
    server.reload()
    assert set(server.WORKERS) == {101, 102, 103, 104}
    assert server.WORKERS[103].holds_back and server.WORKERS[104].holds_back
    server.set_ready(103)
    server.manage_workers()
    assert server.ended == []
    server.set_ready(104)
    server.manage_workers()
    server.manage_workers()
    assert server.ended == [101, 102]
    server.reap(101, 102)
    server.manage_workers()
    assert (set(server.WORKERS), server.ended) == ({103, 104}, [101, 102])


def test_a_new_worker_that_dies_is_replaced_by_a_new_one(server: FakeServer) -> None:
    server.reload()
    server.set_ready(104)
    server.reap(103)
    server.manage_workers()
    assert set(server.WORKERS) == {101, 102, 104, 105}
    assert server.ended == []
    server.set_ready(105)
    server.manage_workers()
    assert server.ended == [101, 102]


def test_an_old_worker_that_dies_meanwhile_is_not_replaced(server: FakeServer) -> None:
    server.reload()
    server.reap(101)
    server.manage_workers()
    assert set(server.WORKERS) == {102, 103, 104}


def test_reloads_meanwhile_become_one_that_follows(server: FakeServer) -> None:
    server.reload()
    server.reload()
    server.reload()
    assert set(server.WORKERS) == {101, 102, 103, 104}
    server.set_ready(103, 104)
    server.manage_workers()
    server.reap(101, 102)
    server.manage_workers()
    assert set(server.WORKERS) == {103, 104, 105, 106}
    server.set_ready(105, 106)
    server.manage_workers()
    server.reap(103, 104)
    server.manage_workers()
    assert set(server.WORKERS) == {105, 106}


def test_a_worker_alone_does_not_hold_back(server: FakeServer) -> None:
    server.reap(101)
    server.manage_workers()
    assert server.WORKERS[103].holds_back  # 102 serves
    server.reap(102, 103)
    server.manage_workers()
    assert not server.WORKERS[104].holds_back
    assert not server.WORKERS[105].holds_back  # 104 has yet to load


def test_a_reload_that_fails_leaves_the_workers(server: FakeServer) -> None:
    def fail(worker: FakeWorker) -> None:
        raise OSError("no more processes")

    server.on_fork = fail
    with pytest.raises(OSError, match="no more"):
        server.reload()
    assert set(server.WORKERS) == {101, 102}
