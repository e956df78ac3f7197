"""Grouping by length."""

from __future__ import annotations

import random

import pytest

from service.batching import MAX_PADDING, RUN_COST, UNPADDED_FROM_TOKENS, Waiting, group, plan


@pytest.mark.parametrize("seed", range(20))
def test_every_text_runs_once_within_the_limits(seed: int) -> None:
    draw = random.Random(seed)
    lengths = [draw.choice((draw.randint(1, 40), draw.randint(1, 2000))) for _ in range(draw.randint(1, 300))]
    groups = plan(lengths, 2048)
    assert sorted(index for part in groups for index in part) == list(range(len(lengths)))
    for part in groups:
        longest = max(lengths[index] for index in part)
        assert len(part) == 1 or longest * len(part) <= 2048
        own = [lengths[index] for index in part]
        assert sum(longest - length for length in own) <= max(RUN_COST, MAX_PADDING * sum(own))
        assert longest < UNPADDED_FROM_TOKENS or min(own) == longest


def test_short_texts_are_padded_for_less_than_a_run_costs() -> None:
    assert plan([20, 11, 20, 9], 1000) == [[0, 2, 1], [3]]


def test_many_texts_may_have_padding_in_proportion() -> None:
    lengths = [100] * 30 + [97] * 30  # 90 tokens of padding, 1.5 % of 5,910
    assert [sorted(group) for group in plan(lengths, 10_000)] == [list(range(60))]
    assert max(map(len, plan([100] * 30 + [80] * 30, 10_000))) == 35  # 5 x 20 <= 3 % of 3,400


def test_a_turn_takes_a_longer_text_along_only_where_it_pads_the_first_little() -> None:
    taken = group([Waiting([10]), Waiting([14]), Waiting([18])], 1000, may_pad=True)
    assert taken == [(0, [0]), (1, [0])]


def test_a_longer_text_of_another_request_does_not_keep_a_turn_from_its_own() -> None:
    bulk, other = Waiting([10] * 51), Waiting([15])
    assert group([bulk, other], 1000, may_pad=True) == [(0, list(range(51)))]
    assert group([other, bulk], 1000, may_pad=True)[0] == (0, [0])


def test_equal_lengths_share_a_run_up_to_the_budget() -> None:
    assert plan([10] * 5, 30) == [[0, 1, 2], [3, 4]]


def test_a_text_over_the_budget_runs_alone() -> None:
    assert plan([5, 100, 5], 20) == [[1], [0, 2]]


def test_nothing_makes_no_group() -> None:
    assert plan([], 10) == []


@pytest.mark.parametrize("seed", range(5))
def test_without_padding_only_equal_lengths_share_a_run(seed: int) -> None:
    lengths = [random.Random(seed * 1000 + number).randint(1, 30) for number in range(100)]
    groups = plan(lengths, 100, may_pad=False)
    assert sorted(index for part in groups for index in part) == list(range(100))
    assert all(len({lengths[index] for index in group}) == 1 for group in groups)
    assert any(len(group) > 1 for group in groups)
