"""How threads are dealt out to lanes, and which runs take all of them."""

from __future__ import annotations

import pytest

from service import lanes
from service.lanes import MAX_LANES, Lanes, Start


@pytest.mark.parametrize("num_threads", range(2, 65))
def test_lanes_leave_as_few_threads_over_as_can_be(num_threads: int) -> None:
    num_lanes = lanes.count(num_threads)
    assert 2 <= num_lanes <= MAX_LANES, "narrow runs go beside each other"
    num_left = num_threads - num_lanes * (num_threads // num_lanes)
    assert num_left == min(num_threads % other for other in range(2, min(num_threads, MAX_LANES) + 1))
    assert 0 <= num_left <= 1


@pytest.mark.parametrize(
    ("num_threads", "num_lanes"),
    [
        (1, 1),
        (2, 2),
        (3, 3),
        (4, 4),
        (5, 4),
        (6, 3),
        (7, 3),
        (8, 4),
        (9, 3),
        (10, 2),
        (11, 2),
        (12, 4),
        (16, 4),
    ],
)
def test_as_many_lanes_as_leave_no_more_threads_over(num_threads: int, num_lanes: int) -> None:
    assert lanes.count(num_threads) == num_lanes


@pytest.mark.parametrize(
    ("num_tokens", "is_last", "is_narrow"),
    [(50, False, True), (50, True, False), (51, False, False), (100, False, False), (101, False, False)],
)
def test_a_run_that_leaves_no_room_for_another_takes_all_threads(
    num_tokens: int, is_last: bool, is_narrow: bool
) -> None:
    lanes = Lanes(100, 2)
    assert lanes.begin(num_tokens, has_narrow=True, is_last=is_last).is_narrow == is_narrow


def test_a_second_run_is_narrow() -> None:
    lanes = Lanes(100, 2)
    lanes.begin(40, has_narrow=True, is_last=False)
    assert lanes.begin(60, has_narrow=True, is_last=True).is_narrow


LONG = 500  # more than a run may have


def waited_for_a_narrow_run() -> Lanes:
    """Return lanes in which a long text has waited for a narrow run that has ended now."""
    found = Lanes(100, 2)
    lane = found.begin(40, has_narrow=True, is_last=False)
    assert found.start(LONG, has_narrow=True) == Start.NOT_YET
    found.end(lane)
    assert found.start(LONG, has_narrow=True) == Start.NOW
    return found


def test_a_long_text_leaves_threads_to_those_that_run_beside_it() -> None:
    found = waited_for_a_narrow_run()
    long = found.begin(LONG, has_narrow=True, is_last=False)
    assert (long.is_long, long.is_narrow) == (True, True)
    assert found.start(60, has_narrow=True) == Start.NOW
    assert found.begin(60, has_narrow=True, is_last=True).is_narrow
    assert not found.is_open, "a long text has a lane like others"


def test_a_long_text_takes_all_threads_when_nothing_else_waits() -> None:
    assert not waited_for_a_narrow_run().begin(LONG, has_narrow=True, is_last=True).is_narrow


def test_long_texts_one_after_the_other_take_all_threads() -> None:
    found = Lanes(100, 2)
    for is_last in (False, False, True):
        assert found.start(LONG, has_narrow=True) == Start.NOW
        lane = found.begin(LONG, has_narrow=True, is_last=is_last)
        assert (lane.is_long, lane.is_narrow) == (True, False)
        assert found.start(LONG, has_narrow=True) == Start.NOT_BESIDE
        found.end(lane)


def test_that_a_long_text_waited_is_forgotten_with_the_next_run() -> None:
    found = waited_for_a_narrow_run()
    found.end(found.begin(40, has_narrow=True, is_last=False))  # the long text's client has gone
    assert not found.begin(LONG, has_narrow=True, is_last=False).is_narrow
