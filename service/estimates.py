"""How many tokens a text will have, said before it is tokenized. A rough count for admission; pure."""

from __future__ import annotations

BYTES_PER_TOKEN = 4  # of UTF-8: English words, and one Chinese character
SPECIAL_TOKENS = 2


def num_tokens(text: str, limit: int | None = None) -> int:
    """Estimate the tokens of a text, `limit` at most."""
    num_bytes = len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))
    found = num_bytes // BYTES_PER_TOKEN + SPECIAL_TOKENS
    return found if limit is None else min(found, limit)
