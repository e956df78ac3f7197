"""How a request comes in: admitted, its body read, its client watched. Knows HTTP, no route and no JSON."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

from falcon import Request

from service import bodies, connections
from service.admission import Admission
from service.tickets import Ticket


@dataclass(frozen=True)
class Door:
    """The way in of every request that computes."""

    admission: Admission
    max_body_bytes: int

    @contextmanager
    def enter(self, req: Request) -> Iterator[tuple[Ticket, bytes]]:
        """Hold a request until the block ends and read its body. Raises Overloaded, and as `bodies.read`."""
        num_bytes = min(req.content_length or 0, self.max_body_bytes)
        with self.admission.request(connections.watch(req.env), num_bytes) as ticket:
            req.context.ticket = ticket
            yield ticket, bodies.read(req, self.max_body_bytes, partial(self.admission.hold, ticket))

    def admit(self, ticket: Ticket, num_tokens: int, is_held: bool = False) -> None:
        """Let a request wait for its tokens; see `Admission.admit`. Raises Overloaded."""
        self.admission.admit(ticket, num_tokens, is_held=is_held)
