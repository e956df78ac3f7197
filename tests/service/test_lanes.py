"""How threads are dealt out to lanes, and which runs take all of them."""

from __future__ import annotations

import pytest

from service import lanes
from service.lanes import MAX_LANES, Lanes


@pytest.mark.parametrize("num_threads", range(2, 65))
def test_lanes_leave_as_few_threads_over_as_can_be(num_threads: int) -> None:
    num_lanes = lanes.count(num_threads)
    assert 2 <= num_lanes <= MAX_LANES, "narrow runs go beside each other"
    num_left = num_threads - num_lanes * (num_threads // num_lanes)
    assert num_left == min(num_threads % other for other in range(2, min(num_threads, MAX_LANES) + 1))
    assert 0 <= num_left <= 1


@pytest.mark.parametrize(
    ("num_threads", "num_lanes"),
    [(1, 1), (2, 2), (3, 3), (4, 4), (5, 4), (6, 3), (7, 3), (8, 4), (9, 3), (10, 2), (11, 2), (12, 4), (16, 4)],
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
