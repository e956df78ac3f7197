"""What is done to every answer at last: its times, its encoding. Knows headers and time, no route."""

from __future__ import annotations

import time
from dataclasses import dataclass

from falcon import Request, Response

from service import compression
from service.compression import Compression
from service.tickets import Ticket

EXPOSED = ("X-Request-ID", "Retry-After", "Server-Timing")  # that pages of other origins may read


@dataclass(frozen=True)
class Finish:
    """Makes the body, encodes it as the client asks and says where the time has gone."""

    compression: Compression
    varies_by_origin: bool

    def process_response(self, req: Request, resp: Response, resource: object, req_succeeded: bool) -> None:
        """Set body and headers."""
        if self.varies_by_origin:
            resp.append_header("Vary", "Origin")
        body = resp.render_body() if resp.stream is None else None
        if body and self.compression != Compression.NEVER and compression.is_compressible(resp.content_type):
            resp.append_header("Vary", "Accept-Encoding")
            accepted = req.get_header("Accept-Encoding") or ""
            if compression.is_worth_it(len(body), accepted, req.remote_addr, self.compression):
                resp.data, resp.text = compression.compress(body), None
                resp.set_header("Content-Encoding", "gzip")
        ticket: Ticket | None = req.context.get("ticket")
        if ticket and ticket.has_begun:
            resp.set_header("Server-Timing", _timing(ticket, time.perf_counter() - req.context.begin))


def _timing(ticket: Ticket, total: float) -> str:
    """Write the times of a request in milliseconds, in their order; what has not ended is left out."""
    stages = {"tokenize": ticket.queued_seconds, "queue": ticket.waited_seconds - ticket.queued_seconds}
    if ticket.computed_seconds:
        stages["run"] = ticket.computed_seconds - ticket.waited_seconds
        stages["encode"] = total - ticket.computed_seconds
    return ", ".join(
        f"{name};dur={seconds * 1000:.2f}" for name, seconds in (stages | {"total": total}).items()
    )
