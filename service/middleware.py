"""What happens around every request: an id, one log line, its figures. Knows headers and time, no route."""

from __future__ import annotations

import logging
import random
import re
import time

from falcon import Request, Response

from service import bodies, logs
from service.observing import NOBODY, Answer, Observer

REQUEST_ID = "X-Request-ID"
SANE_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
SERVER_ERROR = 500
EXPECTED = (503, 504)  # errors of the server that its load explains


class RequestLog:
    """Gives every request an id, the caller's if it is sane, and writes one line when it is answered."""

    def __init__(self, observer: Observer = NOBODY) -> None:
        """Tell who observes of every answer."""
        self._observer = observer

    def process_request(self, req: Request, resp: Response) -> None:
        """Note the start and the id."""
        req.context.begin = time.perf_counter()
        given = req.get_header(REQUEST_ID) or ""
        # Made ids find lines and are no secret: no system call for them.
        made = f"{random.getrandbits(128):032x}"
        req.context.request_id = given if SANE_REQUEST_ID.fullmatch(given) else made
        req.context.fields = {}
        resp.set_header(REQUEST_ID, req.context.request_id)

    def process_response(self, req: Request, resp: Response, resource: object, req_succeeded: bool) -> None:
        """Write the line: never the texts, only what they were."""
        bodies.discard(req)
        status = int(resp.status_code)
        seconds = time.perf_counter() - req.context.begin
        fields = req.context.fields
        # The template, not the path: callers may make up as many paths as they like.
        self._observer.answered(
            Answer(req.uri_template or "", status, seconds, fields.get("model", ""), fields.get("tokens", 0))
        )
        logs.write(
            logging.ERROR if status >= SERVER_ERROR and status not in EXPECTED else logging.INFO,
            "request",
            request_id=req.context.request_id,
            method=req.method,
            path=req.path,
            status=status,
            milliseconds=round(seconds * 1000, 2),
            client=req.remote_addr,
            **fields,
        )
