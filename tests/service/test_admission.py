"""Who is let in, what counts, and when those refused should come again."""

from __future__ import annotations

import time
from contextlib import ExitStack, suppress

import pytest

from service import estimates
from service.admission import MAX_RETRY_SECONDS, Admission, Limits
from service.errors import ClientGone, Overloaded, WaitedTooLong
from service.observing import Nobody, Unserved
from service.tickets import Ticket

MEGABYTE = 1 << 20


def admission(max_tokens: int = 100, max_requests: int = 10) -> Admission:
    return Admission(Limits(max_tokens=max_tokens, max_requests=max_requests, max_body_bytes=MEGABYTE))


def enter(door: Admission, stack: ExitStack, num_tokens: int, *, is_held: bool = False) -> Ticket:
    ticket = stack.enter_context(door.request(lambda: False, 0))
    door.admit(ticket, num_tokens, is_held=is_held)
    return ticket


def test_what_exceeds_the_tokens_is_refused_and_comes_in_once_there_is_room() -> None:
    door = admission(100)
    with ExitStack() as held:
        first = enter(door, held, 60)
        with pytest.raises(Overloaded, match="MAX_QUEUE_TOKENS"), ExitStack() as refused:
            enter(door, refused, 41)
        first.on_progress(first, 1)
        enter(door, held, 41)
        assert door.status()["tokens"] == 100
    assert door.status().items() >= {"requests": 0, "tokens": 0, "admitted": 2, "refused": 1}.items()
    with ExitStack() as later:
        enter(door, later, 41)


def test_a_full_queue_refuses_at_the_door_before_a_body_is_read() -> None:
    door = admission(100)
    with ExitStack() as held:
        enter(door, held, 100)
        with pytest.raises(Overloaded), door.request(lambda: False, 0):
            raise AssertionError("it must not come in")


def test_a_request_above_the_limit_leaves_room_for_others_but_not_for_a_second_one() -> None:
    door = admission(100_000)
    with ExitStack() as held:
        large = enter(door, held, 5_000_000)
        assert door.status()["tokens"] == 50_001
        enter(door, held, 49_999)
        with pytest.raises(Overloaded), ExitStack() as refused:
            enter(door, refused, 1)
        large.on_progress(large, 4_940_000)  # 60,000 are left: it still counts for half of the queue
        assert door.status()["tokens"] == 100_000
        large.on_progress(large, 30_000)
        assert door.status()["tokens"] == 49_999 + 30_000
    assert door.status()["tokens"] == 0
    with ExitStack() as held:
        enter(door, held, 5_000_000)
        with pytest.raises(Overloaded), ExitStack() as refused:
            enter(door, refused, 100_001)


def test_a_request_above_the_limit_waits_for_half_of_it_to_be_free() -> None:
    door = admission(100_000)
    with ExitStack() as held:
        enter(door, held, 50_000)
        with pytest.raises(Overloaded), ExitStack() as refused:
            enter(door, refused, 5_000_000)
    with ExitStack() as held:
        enter(door, held, 49_999)
        enter(door, held, 5_000_000)


def test_beside_a_request_above_a_small_limit_nobody_comes_in() -> None:
    door = admission(1000)
    with ExitStack() as held:
        enter(door, held, 1)
        with pytest.raises(Overloaded), ExitStack() as refused:
            enter(door, refused, 1001)
    with ExitStack() as held:
        large = enter(door, held, 5_000_000)
        with pytest.raises(Overloaded), ExitStack() as refused:
            enter(door, refused, 1)
        large.on_progress(large, 4_999_250)  # three quarters of the limit are left
        enter(door, held, 1)


def test_what_is_held_above_the_limit_comes_in_alone_and_keeps_all_others_out() -> None:
    door = admission(100)
    with ExitStack() as held:
        enter(door, held, 1)
        with pytest.raises(Overloaded), ExitStack() as refused:
            enter(door, refused, 101, is_held=True)
    with ExitStack() as held:
        enter(door, held, 101, is_held=True)
        with pytest.raises(Overloaded), ExitStack() as refused:
            enter(door, refused, 1)


def test_what_was_computed_counts_no_longer_unless_it_is_held() -> None:
    door = admission(100)
    with ExitStack() as held:
        ticket, keeper = enter(door, held, 60), enter(door, held, 40, is_held=True)
        ticket.on_progress(ticket, 50)
        keeper.on_progress(keeper, 40)
        assert door.status()["tokens"] == 50
        ticket.on_progress(ticket, 1000)  # the estimate was too low
        assert door.status()["tokens"] == 40
    assert door.status()["tokens"] == 0


@pytest.mark.parametrize("size", [1, 40], ids=["small", "a batch"])
def test_above_three_quarters_nobody_comes_in_below_them_all_do(size: int) -> None:
    """Else small requests would fill every gap, and a batch would never find room beside them."""
    door = admission(160)
    with ExitStack() as held:
        first = enter(door, held, 121)
        with pytest.raises(Overloaded), ExitStack() as refused:
            enter(door, refused, size)
        first.on_progress(first, 1)
        enter(door, held, size)


def test_batches_find_room_beside_small_requests_that_are_too_many() -> None:
    """Per computed batch of 1,000 tokens 4,000 come in small requests, and one batch asks each time."""
    door = admission(256_000, max_requests=1000)
    num_batches = 0
    with ExitStack() as held:
        waiting: list[Ticket] = []
        for turn in range(600):
            for size in (*[500] * (turn % 8), 40_000, *[500] * (8 - turn % 8)):
                with suppress(Overloaded):
                    waiting.append(enter(door, held, size))
                    num_batches += size == 40_000
            waiting[0].on_progress(waiting[0], 1000)
            if waiting[0].num_tokens <= 0:
                del waiting[0]
    assert num_batches > 10


def test_one_that_does_not_fit_closes_the_queue_until_it_would() -> None:
    door = admission(160)
    with ExitStack() as held:
        first = enter(door, held, 110)
        for num_tokens in (60, 1):  # there is room for the second, but the first has come before it
            with pytest.raises(Overloaded), ExitStack() as refused:
                enter(door, refused, num_tokens)
        first.on_progress(first, 9)
        with pytest.raises(Overloaded), ExitStack() as refused:
            enter(door, refused, 1)
        first.on_progress(first, 1)  # room for 60
        enter(door, held, 1)
        enter(door, held, 59)


def test_one_that_does_not_fit_closes_the_queue_down_to_its_half_at_most() -> None:
    door = admission(160)
    with ExitStack() as held:
        first = enter(door, held, 110)
        for num_tokens in (150, 1):
            with pytest.raises(Overloaded), ExitStack() as refused:
                enter(door, refused, num_tokens)
        first.on_progress(first, 30)
        enter(door, held, 1)


def test_a_body_of_unknown_length_counts_as_it_grows() -> None:
    door = admission()
    with ExitStack() as held:
        growing = held.enter_context(door.request(lambda: False, 0))
        door.hold(growing, MEGABYTE + 1)  # alone it may have more: its own limit is another
        with pytest.raises(Overloaded, match="bodies"), door.request(lambda: False, 1):
            raise AssertionError("it must not come in")
    with ExitStack() as held:
        held.enter_context(door.request(lambda: False, MEGABYTE // 2))
        growing = held.enter_context(door.request(lambda: False, 0))
        door.hold(growing, MEGABYTE // 2)
        with pytest.raises(Overloaded, match="bodies"):
            door.hold(growing, 1)
    with ExitStack() as held:  # all has been given back
        held.enter_context(door.request(lambda: False, MEGABYTE))


def test_requests_and_bodies_have_limits_of_their_own() -> None:
    door = admission(max_requests=2)
    with door.request(lambda: False, MEGABYTE):
        with pytest.raises(Overloaded, match="bodies"), door.request(lambda: False, 1):
            raise AssertionError("it must not come in")
        with (
            door.request(lambda: False, 0),
            pytest.raises(Overloaded, match="THREADS"),
            door.request(lambda: False, 0),
        ):
            raise AssertionError("it must not come in")
    assert door.status()["requests"] == 0


@pytest.mark.parametrize(("error", "name"), [(ClientGone(), "disconnected"), (WaitedTooLong(), "timed_out")])
def test_ends_are_counted(error: Exception, name: str) -> None:
    door = admission()
    with pytest.raises(type(error)), door.request(lambda: False, 0):
        raise error
    assert door.status()[name] == 1
    assert door.status()["requests"] == 0


def test_retry_after_follows_the_speed_of_the_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    door = admission(10_000)

    def retry_seconds() -> int:
        with pytest.raises(Overloaded) as caught, door.request(lambda: False, 0) as other:
            door.admit(other, 1000)
        return caught.value.retry_seconds

    with ExitStack() as held:
        ticket = enter(door, held, 10_000)
        assert retry_seconds() == 1, "nothing is known yet"
        now += 10
        ticket.on_progress(ticket, 500)  # 50 tokens/s
        assert door.status()["tokens_per_second"] == 50
        assert retry_seconds() == 40  # 9,500 wait, 2,000 more than where the queue opens
        now += 10_000
        assert retry_seconds() == MAX_RETRY_SECONDS, "it has come to a standstill"


def test_idle_time_does_not_count_against_the_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    door = admission()
    with ExitStack() as held:
        ticket = enter(door, held, 100)
        now += 2
        ticket.on_progress(ticket, 100)
    now += 5000
    assert door.status()["tokens_per_second"] == 50


@pytest.mark.parametrize(
    ("text", "limit", "expected"),
    [("", None, 2), ("a" * 400, None, 102), ("a" * 400, 50, 50), ("日本語" * 4, None, 11)],
)
def test_tokens_are_a_quarter_of_the_bytes(text: str, limit: int | None, expected: int) -> None:
    assert estimates.num_tokens(text, limit) == expected


class Counts(Nobody):
    def __init__(self) -> None:
        self.requests = self.tokens = 0
        self.reasons: list[Unserved] = []
        self.waits: list[float] = []

    def queue_changed(self, num_requests: int, num_tokens: int) -> None:
        self.requests += num_requests
        self.tokens += num_tokens

    def unserved(self, reason: Unserved) -> None:
        self.reasons.append(reason)

    def waited(self, seconds: float) -> None:
        self.waits.append(seconds)


def observed(counts: Counts) -> Admission:
    return Admission(Limits(max_tokens=100, max_requests=10, max_body_bytes=MEGABYTE), counts)


def test_what_is_told_of_the_queue_is_what_it_holds() -> None:
    counts = Counts()
    door = observed(counts)
    with ExitStack() as held:
        ticket = enter(door, held, 60)
        assert (counts.requests, counts.tokens) == (1, 60)
        ticket.start()
        ticket.on_progress(ticket, 25)
        assert (counts.requests, counts.tokens) == (1, 35)
        with pytest.raises(Overloaded), ExitStack() as refused:
            enter(door, refused, 66)
        assert (counts.requests, counts.tokens, counts.reasons) == (1, 35, [Unserved.REFUSED])
        assert door.status()["tokens"] == 35
    assert (counts.requests, counts.tokens, counts.waits) == (0, 0, [ticket.waited_seconds])


def test_a_run_that_is_told_of_after_its_request_has_left_takes_nothing_off() -> None:
    counts = Counts()
    door = observed(counts)
    with ExitStack() as held:
        ticket = enter(door, held, 60)
    ticket.on_progress(ticket, 60)
    assert (counts.tokens, door.status()["tokens"]) == (0, 0)


@pytest.mark.parametrize(
    ("error", "reason"),
    [(WaitedTooLong(), Unserved.TIMED_OUT), (ClientGone(), Unserved.DISCONNECTED)],
    ids=["late", "gone"],
)
def test_who_is_not_served_is_told_of_and_has_not_waited(error: Exception, reason: Unserved) -> None:
    counts = Counts()
    with pytest.raises(type(error)), ExitStack() as held:
        enter(observed(counts), held, 60)
        raise error
    assert (counts.reasons, counts.waits, counts.requests, counts.tokens) == ([reason], [], 0, 0)
