"""Which token counts for which chunk, and the windows of a document that is longer than the model takes."""

from __future__ import annotations

import numpy as np
import pytest

from service import late_chunking
from service.errors import InvalidRequest
from service.late_chunking import NOWHERE, Document, Window
from service.pooling import SpanMeans
from service.tokenization import Located


def located(ends: list[int], num_opening: int = 1) -> Located:
    """Make tokens that end at characters, between special tokens."""
    ids = np.arange(num_opening + len(ends) + 1) + 100
    is_special = np.ones(len(ids), dtype=bool)
    is_special[num_opening:-1] = False
    return Located(ids, np.array([0] * num_opening + ends + [0]), is_special)


def document(ends: list[int], *, is_one_text: bool = False) -> Document:
    return Document("", np.array(ends), is_one_text)


def test_a_token_belongs_to_the_first_chunk_that_ends_at_or_after_it() -> None:
    (window,) = late_chunking.plan(document([5, 11, 20]), located([3, 5, 6, 11, 12, 20]), 0, 100).windows
    assert window.chunks.tolist() == [0, 0, 0, 1, 1, 2, 2, 2]  # <s> with the first, </s> with the last
    assert window.ids.tolist() == list(range(100, 108))


def test_prefix_tokens_belong_to_the_first_chunk_and_do_not_shift_the_others() -> None:
    (window,) = late_chunking.plan(document([5, 11]), located([4, 10, 15, 21]), 10, 100).windows
    assert window.chunks.tolist() == [0, 0, 0, 0, 1, 1]


def test_a_sentence_without_a_token_joins_its_neighbour() -> None:
    plan = late_chunking.plan(document([5, 6, 11], is_one_text=True), located([5, 11]), 0, 100)
    assert plan.num_chunks == 2
    assert plan.windows[0].chunks.tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize(
    ("ends", "token_ends", "index"),
    [([5, 5, 11], [5, 11], 1), ([0, 5], [3, 5], 0), ([5, 11, 11], [5, 11], 2)],
)
def test_an_item_without_a_token_is_named(ends: list[int], token_ends: list[int], index: int) -> None:
    with pytest.raises(InvalidRequest) as caught:
        late_chunking.plan(document(ends), located(token_ends), 0, 100)
    assert caught.value.param == f"input[{index}]"


def test_tokens_that_end_in_another_order_stay_with_their_chunks() -> None:
    plan = late_chunking.plan(document([2, 5, 9], is_one_text=True), located([2, 9, 5]), 0, 100)
    assert plan.num_chunks == 2
    assert plan.windows[0].chunks.tolist() == [0, 0, 1, 1, 1]


def test_a_text_without_any_token_is_refused() -> None:
    with pytest.raises(InvalidRequest, match=r"input\[0\]"):
        late_chunking.plan(document([], is_one_text=True), located([]), 0, 100)


def test_several_texts_are_joined_by_a_space() -> None:
    whole = late_chunking.document(["one", "", "three"])
    assert whole.text == "one  three"
    assert whole.chunk_ends.tolist() == [3, 4, 10]
    assert not whole.is_one_text


@pytest.mark.parametrize(("num_tokens", "capacity"), [(1, 10), (10, 10), (11, 10), (95, 10), (5000, 300)])
def test_windows_cover_every_token_once_and_overlap(num_tokens: int, capacity: int) -> None:
    cuts = late_chunking.spans(num_tokens, capacity)
    assert [token for _, fresh, end in cuts for token in range(fresh, end)] == list(range(num_tokens))
    assert all(end - begin <= capacity for begin, _, end in cuts)
    overlaps = {fresh - begin for begin, fresh, _ in cuts[1:]}
    assert overlaps <= {late_chunking.OVERLAP if capacity > late_chunking.OVERLAP else capacity // 2}


def test_states_come_from_the_first_window_that_holds_a_token() -> None:
    plan = late_chunking.plan(document([4, 9, 13]), located(list(range(1, 14)), num_opening=2), 0, 9)
    assert [len(window.ids) for window in plan.windows] == [9, 9, 9, 7]  # 6 text tokens each, 3 of them again
    for window in plan.windows:
        assert window.ids[:2].tolist() == [100, 101]
        assert window.ids[-1] == 115
    first, *_, last = plan.windows
    assert first.chunks[:2].tolist() == [0, 0]
    assert last.chunks[:2].tolist() == [NOWHERE, NOWHERE]
    assert [window.chunks[-1] for window in plan.windows] == [NOWHERE, NOWHERE, NOWHERE, 2]
    assert all((window.chunks[2:5] == NOWHERE).all() for window in plan.windows[1:])


def test_means_over_windows_are_means_over_all_their_fresh_states() -> None:
    plan = late_chunking.plan(document([4, 9, 13]), located(list(range(1, 14)), num_opening=2), 0, 9)
    means, rows = SpanMeans(3, 2), []
    draw = np.random.default_rng(1)
    for window in plan.windows:
        states = draw.normal(size=(len(window.ids), 2)).astype(np.float32)
        means.add(states, window.chunks)
        rows += list(zip(window.chunks.tolist(), states, strict=True))
    expected = [np.mean([state for own, state in rows if own == chunk], axis=0) for chunk in range(3)]
    assert np.allclose(means.means(), expected, atol=1e-6)
    assert sum(1 for own, _ in rows if own != NOWHERE) == 16


def test_a_window_keeps_its_tokens_and_chunks_together() -> None:
    for window in late_chunking.plan(document([50]), located(list(range(1, 51))), 0, 12).windows:
        assert isinstance(window, Window)
        assert len(window.ids) == len(window.chunks)


def test_a_prefix_that_fills_the_limit_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="no room"):
        late_chunking.plan(document([9]), located([9], num_opening=5), 0, 6)
