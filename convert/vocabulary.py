"""Token ids and special tokens, looked up in a checkpoint's own tokenizer. Knows no model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from service.errors import BakeError

TWO_TEXTS = ("a", "b")


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


def separator_id(tokenizer: bytes) -> int | None:
    """Return the id of the token before the second of two texts; None where their tokens are of one type.

    Raises BakeError for a tokenizer that is broken.
    """
    found = opened(tokenizer).encode(*TWO_TEXTS)
    if 1 not in found.type_ids:
        return None
    return int(found.ids[found.type_ids.index(1) - 1])


def lowercased(tokenizer: bytes) -> bytes:
    """Return the tokenizer with texts made lower-case before all else. Raises BakeError."""
    found = opened(tokenizer)
    steps = [normalizers.Lowercase(), *([found.normalizer] if found.normalizer else [])]
    found.normalizer = normalizers.Sequence(steps)
    return str(found.to_str()).encode()


def of_word_pieces(path: Path) -> bytes:
    """Make BERT's tokenizer of its list of word pieces. Raises BakeError where a special token is missing."""
    try:
        pieces = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise BakeError(f"{path} cannot be read: {error}") from error
    ids = {piece: number for number, piece in enumerate(pieces) if piece or number + 1 < len(pieces)}
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    if missing := [token for token in special if token not in ids]:
        raise BakeError(f"{path} has no token {', '.join(missing)}, which BERT's tokenizer needs")
    tokenizer = Tokenizer(models.WordPiece(ids, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", ids["[SEP]"]), ("[CLS]", ids["[CLS]"]))
    tokenizer.add_special_tokens(special)
    return str(tokenizer.to_str()).encode()


def opened(tokenizer: bytes) -> Tokenizer:
    """Open a tokenizer. Raises BakeError for one that is broken."""
    try:
        return Tokenizer.from_str(tokenizer.decode())
    except Exception as error:  # the library raises plain Exception
        raise BakeError(f"the tokenizer cannot be read: {error}") from error
