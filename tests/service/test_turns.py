"""Fair turns, and the promise that no request waits for more than a full queue."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from service.jobs import Job, Work
from service.tickets import Ticket
from service.turns import PROMISED_SHARE, Turns


def job(*lengths: int) -> Job:
    sequences = [np.zeros(length) for length in lengths]
    return Job(Work(None, sequences, ("out",), lambda texts: {}, lengths), Ticket())  # type: ignore[arg-type]


def take(turns: Turns, taken: Job) -> None:
    """Compute the longest text of a job."""
    length = taken.waiting.longest
    taken.waiting.take(length, length, 1)
    turns.take(taken, length, taken.waiting.longest if taken.waiting else 0)


def enter(turns: Turns, *lengths: int) -> Job:
    made = job(*lengths)
    turns.add(made, made.waiting.longest)
    return made


def served(turns: Turns) -> Iterator[Job]:
    """Compute one text after the other of whose turn it is."""
    while len(turns):
        first = turns.in_order()[0]
        take(turns, first)
        yield first


def test_the_shorter_request_has_the_first_turn() -> None:
    turns = Turns()
    bulk, short = enter(turns, *[10] * 3), enter(turns, 2)
    assert list(served(turns)) == [short, bulk, bulk, bulk]


def test_who_has_got_less_has_the_next_turn() -> None:
    turns = Turns()
    both = [enter(turns, *[10] * 10), enter(turns, *[10] * 10)]
    first_ten = [next(iter(served(turns))) for _ in range(10)]
    assert [first_ten.count(each) for each in both] == [5, 5]


def test_who_comes_later_has_no_claim_to_what_was_computed_before() -> None:
    turns = Turns()
    early = enter(turns, *[10] * 20)
    for _ in range(10):
        take(turns, turns.in_order()[0])
    late = enter(turns, *[10] * 20)
    ten = [next(iter(served(turns))) for _ in range(10)]
    assert 4 <= ten.count(late) <= 6
    assert early in ten


@pytest.mark.parametrize(("max_queue_tokens", "is_kept"), [(800, True), (float("inf"), False)])
def test_short_requests_without_end_cannot_hold_a_longer_one_off(
    max_queue_tokens: float, is_kept: bool
) -> None:
    """Each one computed is replaced by another: fair turns alone give the long one a hundredth."""
    turns = Turns(max_queue_tokens)
    long = enter(turns, *[5] * 10)
    for _ in range(100):
        enter(turns, 5)
    computed = 0
    while long.waiting:
        first = turns.in_order()[0]
        take(turns, first)
        computed += 5
        if first is not long:
            enter(turns, 5)
    assert (computed <= 800) == is_kept


def test_many_promises_that_come_due_together_are_all_kept() -> None:
    """A queue of equal requests, as full as can be promised for: the last is done when the queue is."""
    turns = Turns(200 / PROMISED_SHARE)
    waiting = [enter(turns, 5, 5) for _ in range(20)]
    computed = 0
    for _ in range(100):
        take(turns, turns.in_order()[0])
        computed += 5
        for done in [each for each in waiting if not each.waiting]:
            assert computed <= done.promise
            waiting.remove(done)
            waiting.append(enter(turns, 5, 5))


def test_a_request_of_more_than_the_queue_has_turns_but_no_promise() -> None:
    turns = Turns(50)
    enter(turns, *[10] * 100)
    for _ in range(200):
        short = enter(turns, 5)
        before_it = 0
        while (first := turns.in_order()[0]) is not short:
            take(turns, first)
            before_it += 1
        take(turns, short)
        assert before_it <= 1


@pytest.mark.parametrize("num_bulks", [1, 4])
def test_single_queries_do_not_wait_for_bulks_that_fill_the_queue(num_bulks: int) -> None:
    turns = Turns(1000)
    for _ in range(num_bulks):
        enter(turns, *[10] * (96 // num_bulks))
    for _ in range(100):
        short = enter(turns, 2)
        before_it = 0
        while (first := turns.in_order()[0]) is not short:
            take(turns, first)
            before_it += 1
        take(turns, short)
        assert before_it <= num_bulks


def test_what_does_not_wait_may_be_removed() -> None:
    turns = Turns()
    kept = enter(turns, 5)
    turns.remove(job(5))
    assert turns.in_order() == [kept]
