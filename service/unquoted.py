"""Keeps what clients have sent out of the log. Knows logging and what gunicorn writes, no route.

The message of an unforeseen exception may quote its argument, and a request whose length is wrong goes on as
a request line that is none, which gunicorn would quote.
"""

from __future__ import annotations

import logging
import re
import traceback

# What gunicorn writes before it quotes a request.
QUOTING = re.compile(
    r"Invalid request from ip=\S+?(?=: )|Ignored premature client disconnection|Closing connection"
    r"|Error handling request"
)
# Exceptions whose messages are the system's: numbers and its own paths.
OWN_MESSAGES = (MemoryError, OSError)
OWN_MODULES = ("onnxruntime",)


class Unquoted(logging.Filter):
    """Cuts gunicorn's lines off where the quotation begins."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Change the record; it is always written."""
        found = QUOTING.match(str(record.msg))
        if found:
            record.msg, record.args = found[0], ()
            if record.exc_info and record.exc_info[1]:
                record.msg += "\n" + places(record.exc_info[1])
                record.exc_info = None
        return True


def places(error: BaseException) -> str:
    """Return a traceback with those messages alone that cannot quote a request."""
    parts: list[str] = []
    seen: set[int] = set()
    following: BaseException | None = error
    while following is not None and id(following) not in seen:
        seen.add(id(following))
        frames = traceback.format_tb(following.__traceback__)
        parts.insert(0, "".join(("Traceback (most recent call last):\n", *frames, _said(following))))
        following = following.__cause__ or following.__context__
    return "\n\n".join(parts)


def _said(error: BaseException) -> str:
    kind = type(error)
    name = f"{kind.__module__}.{kind.__qualname__}".removeprefix("builtins.")
    if kind in OWN_MESSAGES or issubclass(kind, OSError) or kind.__module__.startswith(OWN_MODULES):
        return f"{name}: {error}"
    return f"{name} (its message may quote the request and is left out)"
