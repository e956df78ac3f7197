"""The queue across requests: order, fairness, sharing of runs, failures, time-outs, clients that go."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

from service.errors import ClientGone, WaitedTooLong
from service.observing import Nobody
from service.scheduler import Scheduler
from service.session import Array, Floats, pad
from service.tickets import LOOK_SECONDS, Ticket

SECONDS = 20.0  # for what must happen


class Gate:
    """A session whose runs wait until the test lets them go; a token id of 13 makes a run fail."""

    may_pad = True

    def __init__(self, *, has_narrow: bool = False) -> None:
        self.has_narrow = has_narrow
        self.runs: list[list[int]] = []  # the first token id of every row
        self.kinds: list[str] = []
        self.num_running = self.most_running = 0
        self._may_go = threading.Semaphore(0)
        self._guard = threading.Lock()

    def run(self, inputs: Mapping[str, Array], outputs: Sequence[str]) -> list[Floats]:
        return self._compute(inputs, "wide")

    def run_narrow(self, inputs: Mapping[str, Array], outputs: Sequence[str]) -> list[Floats]:
        return self._compute(inputs, "narrow")

    def _compute(self, inputs: Mapping[str, Array], kind: str) -> list[Floats]:
        ids = np.asarray(inputs["input_ids"])
        with self._guard:
            self.runs.append(ids[:, 0].tolist())
            self.kinds.append(kind)
            self.num_running += 1
            self.most_running = max(self.most_running, self.num_running)
        assert self._may_go.acquire(timeout=SECONDS)
        with self._guard:
            self.num_running -= 1
        if (ids == 13).any():
            raise RuntimeError("thirteen")
        return [ids[:, :1].astype(np.float32)]

    def open(self, num_runs: int = 10_000) -> None:
        self._may_go.release(num_runs)


def texts(name: int, *lengths: int) -> list[np.ndarray]:
    return [np.full(length, name) for length in lengths]


def wait_until(is_true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SECONDS
    while not is_true():
        assert time.monotonic() < deadline
        time.sleep(0.001)


class Callers:
    """Requests, each in a thread of its own."""

    def __init__(self, scheduler: Scheduler, session: Gate) -> None:
        self.scheduler, self.session, self.pool = scheduler, session, ThreadPoolExecutor(32)

    def ask(self, sequences: Sequence[np.ndarray], ticket: Ticket | None = None) -> Future[Any]:
        """Send a request and return once it is in the queue, or has been answered."""
        share, before = self.scheduler.share(ticket or Ticket()), len(self.scheduler._turns)
        num_runs = len(self.session.runs)
        future = self.pool.submit(share.submit, self.session, sequences, ["out"], pad)  # type: ignore[arg-type]
        wait_until(
            lambda: len(self.scheduler._turns) > before or len(self.session.runs) > num_runs or future.done()
        )
        return future

    def start(self, sequences: Sequence[np.ndarray], ticket: Ticket | None = None) -> Future[Any]:
        """Send a request and return once a run of it goes on."""
        num_runs = len(self.session.runs)
        future = self.ask(sequences, ticket)
        wait_until(lambda: len(self.session.runs) > num_runs)
        return future


@contextmanager
def callers(max_tokens: int, num_lanes: int = 1, *, has_narrow: bool = False) -> Iterator[Callers]:
    made = Callers(Scheduler(max_tokens, num_lanes), Gate(has_narrow=has_narrow))
    with made.pool:
        try:
            yield made
        finally:
            made.session.open()


def values(future: Future[Any]) -> list[int]:
    return [int(value[0]) for (value,) in future.result(SECONDS)]


def test_requests_that_wait_share_a_run_and_each_gets_its_own_rows() -> None:
    with callers(100) as found:
        first = found.start(texts(1, 5))
        others = [found.ask(texts(name, 5, 5)) for name in (2, 3, 4)]
        found.session.open()
        assert values(first) == [1]
        assert [values(other) for other in others] == [[2, 2], [3, 3], [4, 4]]
    assert found.session.runs == [[1], [2, 2, 3, 3, 4, 4]]


def test_a_run_has_no_more_than_its_tokens_and_no_padding_to_speak_of() -> None:
    with callers(40) as found:
        first = found.start(texts(1, 5))
        others = [found.ask(texts(2, 10, 10, 10)), found.ask(texts(3, 10, 10)), found.ask(texts(4, 30))]
        found.session.open()
        assert [len(values(future)) for future in (first, *others)] == [1, 3, 2, 1]
    assert sorted(map(len, found.session.runs[1:])) == [1, 1, 4]


def test_a_short_request_is_not_stuck_behind_a_bulk_one() -> None:
    with callers(10) as found:
        bulk = found.start(texts(1, *[10] * 50))
        short = found.ask(texts(2, 3))
        found.session.open(3)
        assert values(short) == [2]
        assert not bulk.done()
        found.session.open()
        assert len(values(bulk)) == 50


def test_two_bulk_requests_take_turns_though_one_came_first() -> None:
    with callers(10) as found:
        both = [found.ask(texts(1, *[10] * 20)), found.ask(texts(2, *[10] * 20))]
        found.session.open()
        assert [len(values(future)) for future in both] == [20, 20]
    order = [run[0] for run in found.session.runs][:20]
    assert 8 <= order.count(2) <= 12


def test_a_bulk_request_goes_on_beside_short_ones_without_end() -> None:
    with callers(10) as found:
        bulk = found.start(texts(1, *[10] * 5))
        shorts: list[Future[Any]] = []
        while not bulk.done() and len(shorts) < 200:
            num_runs = len(found.session.runs)
            shorts.append(found.ask(texts(2, 9)))  # one more always waits
            found.session.open(1)
            wait_until(lambda before=num_runs: len(found.session.runs) > before)  # type: ignore[misc]
        assert bulk.done()
        assert len(shorts) > 5, "the short ones had their turns too"


def test_one_request_that_fails_leaves_the_others_of_its_run_alone() -> None:
    with callers(1000) as found:
        first = found.start(texts(1, 5))
        good, bad, other = (found.ask(texts(name, 5)) for name in (2, 13, 4))
        found.session.open()
        assert (values(first), values(good), values(other)) == ([1], [2], [4])
        with pytest.raises(RuntimeError, match="thirteen"):
            bad.result(SECONDS)
        assert values(found.ask(texts(7, 5))) == [7]
    assert [2, 13, 4] in found.session.runs


def test_who_waits_too_long_is_told_at_once_and_not_computed() -> None:
    with callers(10) as found:
        first = found.start(texts(1, 5))
        late = found.ask(texts(2, 5), Ticket(deadline=time.monotonic() + 0.05))
        with pytest.raises(WaitedTooLong):
            late.result(SECONDS)
        assert not first.done(), "nothing had to end for it"
        found.session.open()
        assert values(first) == [1]
    assert found.session.runs == [[1]]


def test_a_request_that_has_begun_is_computed_to_its_end() -> None:
    with callers(10) as found:
        slow = found.start(texts(1, 10, 10, 10), Ticket(deadline=time.monotonic() + 0.05))
        time.sleep(0.1)
        found.session.open()
        assert values(slow) == [1, 1, 1]


def test_a_client_that_has_gone_is_dropped_before_its_run_and_in_the_middle_of_its_work() -> None:
    gone = threading.Event()
    with callers(10) as found:
        first = found.start(texts(1, 10, 10, 10), Ticket(is_gone=gone.is_set))
        second = found.ask(texts(2, 10), Ticket(is_gone=gone.is_set))
        third = found.ask(texts(3, 10))
        gone.set()
        time.sleep(LOOK_SECONDS)
        found.session.open()
        for future in (first, second):
            with pytest.raises(ClientGone):
                future.result(SECONDS)
        assert values(third) == [3]
    assert found.session.runs == [[1], [3]]


def test_progress_is_told_for_every_token() -> None:
    told: list[int] = []
    with callers(10) as found:
        found.session.open()
        values(found.ask(texts(1, 10, 4, 3), Ticket(on_progress=lambda ticket, count: told.append(count))))
    assert sum(told) == 17


def test_narrow_runs_go_side_by_side_and_a_lone_one_is_wide() -> None:
    with callers(100, 2, has_narrow=True) as found:
        lone = found.start(texts(1, 5))
        others = [found.ask(texts(name, 50)) for name in (2, 3, 4)]
        found.session.open(1)
        assert values(lone) == [1]
        wait_until(lambda: found.session.num_running == 2)
        found.session.open()
        assert [values(other) for other in others] == [[2], [3], [4]]
    assert found.session.kinds[0] == "wide"
    assert found.session.kinds[1:3] == ["narrow", "narrow"]
    assert found.session.most_running == 2


def test_runs_together_have_no_more_than_the_tokens_of_one() -> None:
    with callers(100, 2, has_narrow=True) as found:
        first = found.start(texts(1, 60))
        others = [found.ask(texts(name, 60)) for name in (2, 3)]
        found.session.open()
        assert [values(future) for future in (first, *others)] == [[1], [2], [3]]
    assert found.session.most_running == 1


def test_others_run_beside_a_text_longer_than_a_run() -> None:
    with callers(100, 2, has_narrow=True) as found:
        long, another = found.start(texts(1, 500)), found.ask(texts(2, 400))
        short = found.ask(texts(3, 10))
        wait_until(lambda: found.session.num_running == 2)
        assert found.session.runs == [[1], [3]]
        assert found.session.kinds == ["wide", "narrow"]
        found.session.open()
        assert [values(future) for future in (long, another, short)] == [[1], [2], [3]]
    assert found.session.most_running == 2


def test_a_long_text_among_others_runs_on_a_lane_as_they_do() -> None:
    with callers(100, 2, has_narrow=True) as found:
        bulk = found.start(texts(1, *[50] * 40))
        long = found.ask(texts(2, 500))
        found.session.open()
        assert values(long) == [2]
        assert values(bulk) == [1] * 40
    kinds = {run[0]: kind for run, kind in zip(found.session.runs, found.session.kinds, strict=True)}
    assert kinds[2] == "narrow"


def test_a_session_without_narrow_runs_has_the_device_to_itself() -> None:
    with callers(100, 2) as found:
        asked = [found.ask(texts(name, 60)) for name in (1, 2, 3)]
        found.session.open()
        assert [values(future) for future in asked] == [[1], [2], [3]]
    assert found.session.most_running == 1
    assert set(found.session.kinds) == {"wide"}


def test_sessions_never_share_a_run() -> None:
    with callers(100) as found:
        other = Gate()
        first = found.start(texts(1, 5))
        mine = found.ask(texts(2, 5))
        theirs = found.pool.submit(found.scheduler.submit, other, texts(3, 5), ["out"], pad)  # type: ignore[arg-type]
        wait_until(lambda: len(found.scheduler._turns) == 2)
        found.session.open()
        other.open()
        assert (values(first), values(mine), values(theirs)) == ([1], [2], [3])
    assert (found.session.runs, other.runs) == ([[1], [2]], [[3]])


class Faulty(Gate):
    """A session that cannot say any more whether its texts may be padded."""

    @property
    def may_pad(self) -> bool:  # type: ignore[override]
        raise RuntimeError("faulty")


def test_a_fault_in_the_queue_is_told_to_those_whose_turn_it_was_and_to_nobody_else() -> None:
    with callers(100) as found:
        first = found.start(texts(1, 5))
        faulty = Callers(found.scheduler, Faulty())
        others = [faulty.ask(texts(2, 5)), faulty.ask(texts(3, 5)), found.ask(texts(4, 5))]
        found.session.open()
        with faulty.pool:
            for other in others[:2]:
                with pytest.raises(RuntimeError, match="faulty"):
                    values(other)
        assert (values(first), values(others[2])) == ([1], [4])
        assert values(found.ask(texts(5, 5))) == [5]


def test_a_sequence_without_a_token_is_an_error_of_its_own_request() -> None:
    with callers(100) as found:
        first, other = found.start(texts(1, 5)), found.ask(texts(2, 5))
        with pytest.raises(ValueError, match="without a token"):
            found.scheduler.submit(found.session, texts(3, 5, 0), ["out"], pad)  # type: ignore[arg-type]
        found.session.open()
        assert (values(first), values(other)) == ([1], [2])


@pytest.mark.parametrize("spoil", [lambda rows: rows[1:], lambda rows: np.concatenate([rows, rows])])
def test_a_run_with_rows_missing_is_an_error_and_the_next_request_is_served(
    spoil: Callable[[Floats], Floats],
) -> None:
    class Spoiled(Gate):
        def _compute(self, inputs: Mapping[str, Array], kind: str) -> list[Floats]:
            (rows,) = super()._compute(inputs, kind)
            return [spoil(rows)] if len(rows) > 1 else [rows]

    found = Callers(Scheduler(100), Spoiled())
    with found.pool:
        found.session.open()
        with pytest.raises(ValueError, match="one row"):
            found.ask(texts(1, 5, 5)).result(SECONDS)
        assert values(found.ask(texts(2, 5))) == [2]


class Counts(Nobody):
    def __init__(self) -> None:
        self.runs: list[tuple[object, int, int, int]] = []
        self.seconds: list[float] = []

    def ran(self, graph: object, num_rows: int, num_tokens: int, num_padding: int, seconds: float) -> None:
        self.runs.append((graph, num_rows, num_tokens, num_padding))
        self.seconds.append(seconds)
        if num_tokens == 7:
            raise OSError("the disk is full")


def no_progress(ticket: Ticket, num_tokens: int) -> None:
    raise OSError("the disk is full")


def test_runs_are_told_of_with_their_padding_failed_ones_not_at_all() -> None:
    counts, session = Counts(), Gate()
    found = Callers(Scheduler(100, observer=counts), session)
    with found.pool:
        first = found.start(texts(1, 5))
        others = [found.ask(texts(2, 10, 10)), found.ask(texts(3, 9)), found.ask(texts(13, 10))]
        session.open()
        assert values(first) == [1]
        assert [values(other) for other in others[:2]] == [[2, 2], [3]]
        with pytest.raises(RuntimeError, match="thirteen"):
            values(others[2])
        wait_until(lambda: len(counts.runs) == 3)
    # The run that failed was repeated with each request alone.
    assert counts.runs[0] == (session, 1, 5, 0)
    assert sorted(run[1:] for run in counts.runs[1:]) == [(1, 9, 0), (2, 20, 0)]
    assert min(counts.seconds) > 0


def test_a_shared_run_of_unequal_texts_has_padding() -> None:
    counts, session = Counts(), Gate()
    found = Callers(Scheduler(100, observer=counts), session)
    with found.pool:
        first = found.start(texts(1, 5))
        others = [found.ask(texts(2, 10, 10)), found.ask(texts(3, 9))]
        session.open()
        assert [len(values(future)) for future in (first, *others)] == [1, 2, 1]
        wait_until(lambda: len(counts.runs) == 2)
    assert counts.runs[1] == (session, 3, 29, 1)


def test_a_figure_that_is_lost_stops_no_lane() -> None:
    found = Callers(Scheduler(100, observer=Counts()), Gate())
    with found.pool:
        found.session.open()
        assert [values(found.ask(texts(1, 7))) for _ in range(3)] == [[1]] * 3
        assert [values(found.ask(texts(1, 8), Ticket(on_progress=no_progress))) for _ in range(3)] == [
            [1]
        ] * 3
