"""Owns the tokenizers library: text to token ids. Knows no model, no task and no limit of its own."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tokenizers import Encoding
from tokenizers import Tokenizer as NativeTokenizer

from service.errors import BundleError

PREFIX_CHARACTERS = 32  # characters per allowed token that are read at first: far more than texts need
PREFIX_GROWTH = 8
# Texts and their characters that one call takes: a token takes some hundred bytes while it is made.
TEXTS_AT_ONCE, CHARACTERS_AT_ONCE = 64, 2_000_000
SHORT_CHARACTERS = 400  # of a call that keeps its thread: some 0.1 ms
WORD_END_WITHIN = 200  # characters before the end of a prefix in which a space is looked for

Ids = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Tokens:
    """A text's token ids with special tokens, cut to the limit, and how many there were before.

    `num_tokens` is what was counted until the text was left off where not `is_whole`.
    """

    ids: Ids
    num_tokens: int
    is_whole: bool = True


@dataclass(frozen=True)
class Located:
    """The token ids of a whole text with special tokens, and where each token ends in it, in characters."""

    ids: Ids
    ends: Ids
    is_special: npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Template:
    """The special tokens before, between and after two texts, or around one (`between` is empty)."""

    opening: Ids
    between: Ids
    closing: Ids


@dataclass(frozen=True)
class Tokenizer:
    """A loaded tokenizer. Truncation and padding that its file may carry are off."""

    native: NativeTokenizer
    single: Template
    pair: Template

    def encode(self, texts: Sequence[str], max_tokens: int) -> list[Tokens]:
        """Return each text's first tokens, `max_tokens` at most, the closing special tokens among them.

        A text of megabytes takes seconds and a gigabyte: it is read from its beginning only until it has more
        than twice `max_tokens` tokens, so that the first `max_tokens` are those of the whole text.
        """
        num_characters = max_tokens * PREFIX_CHARACTERS
        tokens: list[Tokens] = []
        for part in _parts(texts, num_characters):
            prefixes = [_prefix(text, num_characters) for text in part]
            tokens += [
                self._cut(ids, max_tokens, is_whole=True)
                if len(prefix) == len(text)
                else self._encode_long(text, ids, max_tokens)
                for text, prefix, ids in zip(part, prefixes, self._encode(prefixes), strict=True)
            ]
        return tokens

    def encode_bare(self, texts: Sequence[str], max_tokens: int) -> list[Ids]:
        """Return the first `max_tokens` of each text's own tokens, without special tokens around them."""
        num_special = len(self.single.opening) + len(self.single.closing)
        return [self.bare(tokens.ids) for tokens in self.encode(texts, max_tokens + num_special)]

    def locate(self, text: str) -> Located:
        """Tokenize a whole text, however long, and say where its tokens are."""
        # NOTE: the fast call leaves offsets out, the call for one text does not let other threads run.
        (encoding,) = self.native.encode_batch([text])
        ends = np.array([end for _, end in encoding.offsets], dtype=np.int64)
        return Located(
            np.array(encoding.ids, dtype=np.int64), ends, np.array(encoding.special_tokens_mask, dtype=bool)
        )

    def bare(self, ids: Ids) -> Ids:
        """Take the special tokens off that `encode` has put around a text."""
        return ids[len(self.single.opening) : len(ids) - len(self.single.closing)]

    def decode(self, ids: Ids) -> str:
        """Turn token ids back into the text they stand for, special tokens included."""
        return str(self.native.decode(ids.tolist(), skip_special_tokens=False))

    def ids_of(self, tokens: Sequence[str]) -> frozenset[int]:
        """Return the ids of those tokens that the vocabulary has."""
        found = (self.native.token_to_id(token) for token in tokens)
        return frozenset(token_id for token_id in found if token_id is not None)

    def _encode(self, texts: Sequence[str]) -> list[Ids]:
        # NOTE: the batch call lets other threads run and has a pool of its own, the call for a single text
        # does not (tokenizers 0.23). Waking a thread takes longer than tokenizing a short text.
        if sum(map(len, texts)) <= SHORT_CHARACTERS:
            return [np.array(self.native.encode(text).ids, dtype=np.int64) for text in texts]
        return [np.array(encoding.ids, dtype=np.int64) for encoding in self.native.encode_batch_fast(texts)]

    def _encode_long(self, text: str, ids: Ids, max_tokens: int) -> Tokens:
        """Lengthen the prefix until it has tokens enough or is the text."""
        num_characters = max_tokens * PREFIX_CHARACTERS
        while len(ids) <= 2 * max_tokens:
            num_characters *= PREFIX_GROWTH
            prefix = _prefix(text, num_characters)
            (ids,) = self._encode([prefix])
            if len(prefix) == len(text):
                return self._cut(ids, max_tokens, is_whole=True)
        return self._cut(ids, max_tokens, is_whole=False)

    def _cut(self, ids: Ids, max_tokens: int, *, is_whole: bool) -> Tokens:
        """Cut the text on the right, before its closing special tokens."""
        if len(ids) <= max_tokens:
            return Tokens(ids, len(ids), is_whole)
        closing = self.single.closing
        kept = np.concatenate([ids[: max_tokens - len(closing)], closing])
        return Tokens(kept, len(ids), is_whole)


def load(path: Path) -> Tokenizer:
    """Read a tokenizer.json. Raises BundleError when it is not one."""
    try:
        native = NativeTokenizer.from_file(str(path))
    except Exception as error:  # the library raises plain Exception
        raise BundleError(f"{path} cannot be read as a tokenizer: {error}") from error
    native.no_truncation()
    native.no_padding()
    return Tokenizer(native, _template(native.encode("a")), _template(native.encode("a", "a")))


def _template(encoding: Encoding) -> Template:
    """Read the special tokens off an encoding of one or two texts."""
    ids = np.array(encoding.ids, dtype=np.int64)
    is_text = ~np.array(encoding.special_tokens_mask, dtype=bool)
    first, last = (np.flatnonzero(is_text)[[0, -1]]) if is_text.any() else (len(ids), len(ids))
    between = ids[first : last + 1][~is_text[first : last + 1]]
    return Template(ids[:first], between, ids[last + 1 :])


def _parts(texts: Sequence[str], num_characters: int) -> Iterator[list[str]]:
    """Divide texts into calls, by their number and by what is read of them at first, once normalized."""
    part: list[str] = []
    size = 0
    for text in texts:
        length = min(grown_length(text[:num_characters]), num_characters)
        if part and (len(part) == TEXTS_AT_ONCE or size + length > CHARACTERS_AT_ONCE):
            yield part
            part, size = [], 0
        part.append(text)
        size += length
    if part:
        yield part


def grown_length(text: str) -> int:
    """Return the characters of a text once normalized: some become 18, and are tokens only then."""
    return len(text) if text.isascii() else len(unicodedata.normalize("NFKC", text))


def _prefix(text: str, num_characters: int) -> str:
    """Cut a text of more than `num_characters` once normalized, before a space where one is near."""
    grown = grown_length(text[:num_characters])
    if grown > num_characters:
        num_characters = max(1, num_characters**2 // grown)
    if len(text) <= num_characters:
        return text
    end = text.rfind(" ", num_characters - WORD_END_WITHIN, num_characters)
    return text[: end if end > 0 else num_characters]
