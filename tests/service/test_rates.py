"""Buckets of clients, in a table that does not grow."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pytest

from service import rates
from service.rates import PERIOD_SECONDS, Rates


@dataclass
class Clock:
    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


def num_taken(table: Rates, client: bytes, attempts: int) -> int:
    return sum(not table.take(client) for _ in range(attempts))


@pytest.mark.parametrize("per_minute", [1, 7, 60, 1000])
def test_a_minute_has_its_requests(per_minute: int) -> None:
    clock = Clock()
    table = Rates(per_minute, clock=clock)
    assert num_taken(table, b"a", per_minute + 5) == per_minute
    clock.now += PERIOD_SECONDS
    assert num_taken(table, b"a", per_minute + 5) == per_minute


@pytest.mark.parametrize("per_minute", [1, 7, 60, 1000])
def test_who_waits_as_long_as_told_gets_in(per_minute: int) -> None:
    clock = Clock(1e6 / 3)
    table = Rates(per_minute, clock=clock)
    num_taken(table, b"a", per_minute)
    for _ in range(50):
        wait = table.take(b"a")
        assert 0 < wait <= PERIOD_SECONDS / per_minute + 1e-3
        clock.now += wait * 0.9
        assert table.take(b"a")
        clock.now += wait * 0.1
        assert table.take(b"a") == 0


def test_waiting_whole_seconds_is_enough() -> None:
    clock = Clock()
    table = Rates(7, clock=clock)
    num_taken(table, b"a", 7)
    for _ in range(50):
        clock.now += math.ceil(table.take(b"a"))
        assert table.take(b"a") == 0


def test_a_refusal_takes_nothing() -> None:
    clock = Clock()
    table = Rates(2, clock=clock)
    num_taken(table, b"a", 2)
    first = table.take(b"a")
    num_taken(table, b"a", 100)
    assert table.take(b"a") == first


def test_clients_do_not_disturb_each_other() -> None:
    table = Rates(2, clock=Clock())
    clients = [str(number).encode() for number in range(2000)]
    assert [num_taken(table, client, 3) for client in clients] == [2] * len(clients)


def test_more_clients_than_places_are_served_and_the_table_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rates, "NUM_SETS", 2)
    clock = Clock()
    table = Rates(10, clock=clock)
    num_taken(table, b"often", 10)
    for number in range(10_000):
        assert table.take(str(number).encode()) == 0
        clock.now += 1e-5
    assert table.take(b"often"), "one that has had much keeps its place"
    assert len(table._memory) == 2 * rates.SET.size + rates.SEED_BYTES


def test_threads_take_no_request_twice() -> None:
    table = Rates(500, clock=Clock())
    with ThreadPoolExecutor(8) as pool:
        taken = pool.map(lambda _: num_taken(table, b"a", 100), range(8))
    assert sum(taken) == 500


def test_processes_share_a_table() -> None:
    """Children that fork as gunicorn's workers do."""
    code = """
import os, sys
from service import rates
table = rates.make_table()
os.environ[rates.VARIABLE] = str(table.fileno())
for _ in range(4):
    if not os.fork():
        shared = rates.Rates(500, rates.table_from_environment(os.environ))
        taken = sum(not shared.take(b"a") for _ in range(1000))
        os.write(1, f"{taken}\\n".encode())
        os._exit(0)
for _ in range(4):
    os.wait()
"""
    printed = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    counts = [int(line) for line in printed.split()]
    assert len(counts) == 4 and 500 <= sum(counts) <= 510, counts  # it fills up by 8 a second meanwhile


def test_without_a_master_there_is_no_table() -> None:
    assert rates.table_from_environment({}) is None


def test_who_shares_a_set_is_not_known_beforehand() -> None:
    seeds = set()
    for _ in range(2):
        with rates.make_table() as table:
            seeds.add(os.pread(table.fileno(), rates.SEED_BYTES, rates.NUM_SETS * rates.SET.size))
    assert len(seeds) == 2


SAME = [("192.0.2.1", "::ffff:192.0.2.1"), ("2001:db8::1", "2001:db8::ffff:2"), ("fe80::1%eth0", "fe80::2")]
OTHER = [
    ("192.0.2.1", "192.0.2.2"),
    ("2001:db8::1", "2001:db8:0:1::1"),
    ("::ffff:192.0.2.1", "::ffff:192.0.2.2"),
]


@pytest.mark.parametrize(("one", "other"), SAME)
def test_addresses_of_one_client(one: str, other: str) -> None:
    assert rates.client_of(one) == rates.client_of(other)


@pytest.mark.parametrize(("one", "other"), OTHER)
def test_addresses_of_two_clients(one: str, other: str) -> None:
    assert Counter(map(rates.client_of, (one, other))).most_common(1)[0][1] == 1


def test_a_client_without_an_address_is_one() -> None:
    assert rates.client_of("") == rates.client_of("")
