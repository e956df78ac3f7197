"""gunicorn's own log, without what says nothing. Knows no request."""

from __future__ import annotations

import sys
from typing import Any

from gunicorn.glogging import Logger

CANNOT_LISTEN = "Can't connect to %s"  # gunicorn's words for an address that it could not take


class Log(Logger):  # type: ignore[misc]
    """A log without gunicorn's access lines, which would be put together to be thrown away: ours say more."""

    def error(self, msg: str, *args: Any, **kwargs: Any) -> None:
        """Write an error; an address that cannot be taken, with the remedy."""
        if msg == CANNOT_LISTEN:
            msg = "cannot listen on %s; another address: HOST and PORT, such as PORT=18080"
        super().error(msg, *args, **kwargs)

    def exception(self, msg: str, *args: Any, **kwargs: Any) -> None:
        """Write an unexpected error; a client that stalls in the middle of a request is none."""
        if not isinstance(sys.exc_info()[1], BlockingIOError):
            super().exception(msg, *args, **kwargs)

    def access(self, *_: object) -> None:
        """Write nothing."""
