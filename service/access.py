"""Who may ask, and how often: both are said before the body is read. Knows headers, no route but health."""

from __future__ import annotations

import math
from dataclasses import dataclass

from falcon import Request, Response

from service import rates
from service.errors import RateLimited, Unauthorized
from service.keys import BASIC_CHALLENGE, BEARER_CHALLENGE, Keys
from service.rates import Rates

OPEN_PATHS = ("/healthz", "/readyz", "/livez")
READING = ("GET", "HEAD")


@dataclass(frozen=True)
class CallerCheck:
    """Wants an API key for everything but health, also for what does not exist.

    Who reads may show it by HTTP Basic too, so that a browser can open pages: it asks for a password where
    a page is refused. Not who computes: a browser adds a password that it knows to whatever any other site
    makes it send.
    """

    keys: Keys

    def process_request(self, req: Request, resp: Response) -> None:
        """Note the caller. Raises Unauthorized."""
        if req.path in OPEN_PATHS or _is_preflight(req):
            return
        try:
            req.context.caller = self.keys.check(req.auth, takes_basic=req.method in READING)
        except Unauthorized:
            resp.set_header("WWW-Authenticate", BASIC_CHALLENGE if _is_page(req) else BEARER_CHALLENGE)
            raise


@dataclass(frozen=True)
class RateCheck:
    """Limits what a caller may have computed: by its key, or by its address where there are no keys."""

    rates: Rates
    per_minute: int

    def process_resource(self, req: Request, resp: Response, resource: object, params: object) -> None:
        """Count a request to a route that computes. Raises RateLimited."""
        if req.method != "POST" or req.path in OPEN_PATHS:
            return
        caller: bytes = req.context.get("caller") or rates.client_of(req.remote_addr)
        wait_seconds = self.rates.take(caller)
        if wait_seconds:
            raise RateLimited(self.per_minute, math.ceil(wait_seconds))


def _is_preflight(req: Request) -> bool:
    """Tell whether a browser asks what a page may send; it does so without a key."""
    return req.method == "OPTIONS" and bool(req.get_header("Access-Control-Request-Method"))


def _is_page(req: Request) -> bool:
    """Tell whether a browser opens a page: what its scripts fetch must not make it ask for a password."""
    return req.method in READING and "text/html" in (req.get_header("Accept") or "")
