"""Which runs take all threads."""

from __future__ import annotations

import pytest

from service.lanes import Lanes


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
