"""How a request comes in: admitted, its body read, its client watched. Knows HTTP, no route and no JSON."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from falcon import Request

from service import bodies, connections
from service.admission import Admission
from service.tickets import Ticket

CHUNKED_BYTES = 1 << 22  # that a body of unknown size counts for


@dataclass(frozen=True)
class Door:
    """The way in of every request that computes."""

    admission: Admission
    max_body_bytes: int

    @contextmanager
    def enter(self, req: Request) -> Iterator[tuple[Ticket, bytes]]:
        """Hold a request until the block ends and read its body. Raises Overloaded, and as `bodies.read`."""
        num_bytes = CHUNKED_BYTES if req.content_length is None else req.content_length
        with self.admission.request(
            connections.watch(req.env), min(num_bytes, self.max_body_bytes)
        ) as ticket:
            req.context.ticket = ticket
            yield ticket, bodies.read(req, self.max_body_bytes)

    def admit(self, ticket: Ticket, num_tokens: int, is_held: bool = False) -> None:
        """Let a request wait for its tokens; see `Admission.admit`. Raises Overloaded."""
        self.admission.admit(ticket, num_tokens, is_held=is_held)
