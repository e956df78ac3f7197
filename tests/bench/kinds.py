"""The kinds of load: which texts go into a request and how many clients send them. Knows no server."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from tests.bench import client, load, wire
from tests.bench.server import MODEL
from tests.bench.texts import Texts
from tests.bench.wire import Request

SEED = 0
NUM_MIXED, NUM_BULK = 512, 60  # different requests, repeated
MAX_MIXED_TEXTS, BULK_TEXTS = 8, 64


class Kind(StrEnum):
    """What the clients send."""

    SINGLE = "single"
    MIXED = "mixed"
    BULK = "bulk"


@dataclass(frozen=True)
class Load:
    """The clients of a kind and the texts of their requests."""

    num_clients: int
    inputs: Callable[[Texts], list[list[str]]]
    described: str


def inputs(kind: Kind, found: Texts) -> list[list[str]]:
    """Return the texts of every request."""
    return LOADS[kind].inputs(found)


def requests(kind: Kind, found: Texts, model: str = MODEL) -> list[Request]:
    """Return every request of a kind."""
    return [
        Request(wire.message(load.ROUTE, load.encode(texts, model)), len(texts))
        for texts in inputs(kind, found)
    ]


def billed(port: int, kind: Kind, found: Texts) -> list[Request]:
    """Return every request of a kind with the tokens that the service bills it for."""
    made = []
    for texts in inputs(kind, found):
        body = load.encode(texts)
        num_tokens = client.post(port, load.ROUTE, body)["usage"]["total_tokens"]
        made.append(Request(wire.message(load.ROUTE, body), len(texts), num_tokens))
    return made


def dealt(requests: Sequence[Request], num_clients: int) -> list[Iterator[Request]]:
    """Deal requests to clients that each repeat their own."""
    return [itertools.cycle(requests[client::num_clients]) for client in range(num_clients)]


def _single(found: Texts) -> list[list[str]]:
    return [[question] for question in found.questions]


def _mixed(found: Texts) -> list[list[str]]:
    """Deal 1 to 8 texts to a request, a question as likely as a passage."""
    chance = random.Random(SEED)
    return [
        [
            chance.choice(chance.choice((found.questions, found.passages)))
            for _ in range(chance.randint(1, MAX_MIXED_TEXTS))
        ]
        for _ in range(NUM_MIXED)
    ]


def _bulk(found: Texts) -> list[list[str]]:
    endless = itertools.cycle(found.passages)
    return [list(itertools.islice(endless, BULK_TEXTS)) for _ in range(NUM_BULK)]


LOADS: Mapping[Kind, Load] = {
    Kind.SINGLE: Load(16, _single, "a question a request, 16 clients"),
    Kind.MIXED: Load(16, _mixed, "1 to 8 questions and passages a request, 16 clients"),
    Kind.BULK: Load(2, _bulk, "64 passages a request, 2 clients"),
}
