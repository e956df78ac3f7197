"""gunicorn's own log, without what says nothing. Knows no request."""

from __future__ import annotations

import sys
from typing import Any

from gunicorn.glogging import Logger


class Log(Logger):  # type: ignore[misc]
    """A log without gunicorn's access lines, which would be put together to be thrown away: ours say more."""

    def exception(self, msg: str, *args: Any, **kwargs: Any) -> None:
        """Write an unexpected error; a client that stalls in the middle of a request is none."""
        if not isinstance(sys.exc_info()[1], BlockingIOError):
            super().exception(msg, *args, **kwargs)

    def access(self, *_: object) -> None:
        """Write nothing."""
