"""Token ids, looked up in a checkpoint's own tokenizer. Knows no model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer

from service.errors import BakeError


def ids_of(path: Path, tokens: Sequence[str]) -> tuple[int, ...]:
    """Return the ids of tokens. Raises BakeError for a token that the tokenizer.json at `path` lacks."""
    if not tokens:
        return ()
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises plain Exception
        raise BakeError(f"{path} cannot be read as a tokenizer: {error}") from error
    found = {token: tokenizer.token_to_id(token) for token in tokens}
    missing = [token for token, token_id in found.items() if token_id is None]
    if missing:
        raise BakeError(f"{path} has no token {', '.join(missing)}, which this model needs")
    return tuple(token_id for token_id in found.values() if token_id is not None)
