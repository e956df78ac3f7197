"""Late chunking: which token of a document belongs to which chunk, and in which window it is run. Pure.

A chunk is a sentence of one text, or one of several texts that together are a document. A token belongs to
the first chunk that ends at or after the token's own end. Source: jina-ai/late-chunking.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from service.chunking import sentences
from service.errors import InvalidRequest
from service.tokenization import Located

JOIN = " "  # between texts that are chunks of one document
OVERLAP = 256  # text tokens that a window repeats of the one before it
NOWHERE = -1  # the chunk of a token whose state comes from an earlier window

Ids = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Document:
    """A text and the characters at which its chunks end."""

    text: str
    chunk_ends: Ids
    is_one_text: bool


@dataclass(frozen=True)
class Window:
    """Token ids that are run together, and the chunk that each one's state counts for."""

    ids: Ids
    chunks: Ids


@dataclass(frozen=True)
class Plan:
    """The windows of a document."""

    windows: list[Window]
    num_chunks: int


def document(texts: Sequence[str], join: str = JOIN) -> Document:
    """Take one text as sentences, several as the chunks of one document."""
    if len(texts) == 1:
        ends = [end for _, end in sentences(texts[0])]
        return Document(texts[0], np.array(ends, dtype=np.int64), is_one_text=True)
    lengths = np.array([len(text) for text in texts], dtype=np.int64)
    ends_with_joins = np.cumsum(lengths + len(join)) - len(join)
    return Document(join.join(texts), ends_with_joins, is_one_text=False)


def plan(whole: Document, located: Located, prefix_length: int, max_tokens: int) -> Plan:
    """Assign tokens to chunks and cut the document into windows of `max_tokens`.

    `located` are the tokens of the prefix (`prefix_length` characters) and the text as one string. Every
    window carries the special tokens and the prefix. Raises InvalidRequest for a chunk without a token,
    unless it is a sentence: that joins its neighbour.
    """
    is_text = ~located.is_special & (located.ends > prefix_length)
    if not is_text.any():
        raise InvalidRequest(
            "input[0] has no token, so there is no chunk; send a text.", param="input[0]", code="empty_input"
        )
    begin = int(np.argmax(is_text))
    end = len(is_text) - int(np.argmax(is_text[::-1]))
    opening, text, closing = np.split(located.ids, [begin, end])
    ends = np.maximum.accumulate(located.ends[begin:end])  # tokens that share characters end in any order
    chunks = np.searchsorted(whole.chunk_ends, ends - prefix_length)
    present = np.unique(chunks)
    if whole.is_one_text:
        chunks = np.searchsorted(present, chunks)
    elif len(present) < len(whole.chunk_ends):
        raise _without_token(int(np.setdiff1d(np.arange(len(whole.chunk_ends)), present)[0]))
    capacity = max_tokens - len(opening) - len(closing)
    if capacity < 1:
        raise InvalidRequest(
            f"the prefix of the task leaves no room within {max_tokens} tokens", param="task"
        )
    cuts = spans(len(text), capacity)
    return Plan([_window((opening, text, closing), chunks, cut) for cut in cuts], len(present))


def spans(num_tokens: int, capacity: int) -> list[tuple[int, int, int]]:
    """Cut text tokens into windows that overlap: (begin, first token that no earlier window has, end)."""
    overlap = OVERLAP if capacity > OVERLAP else capacity // 2
    found = [(0, 0, min(capacity, num_tokens))]
    while found[-1][2] < num_tokens:
        done = found[-1][2]
        begin = done - overlap
        found.append((begin, done, min(begin + capacity, num_tokens)))
    return found


def _window(parts: tuple[Ids, Ids, Ids], chunks: Ids, span: tuple[int, int, int]) -> Window:
    opening, text, closing = parts
    begin, fresh, end = span
    is_first, is_last = begin == 0, end == len(text)
    own = np.full(end - begin, NOWHERE, dtype=np.int64)
    own[fresh - begin :] = chunks[fresh:end]
    before = np.full(len(opening), chunks[0] if is_first else NOWHERE, dtype=np.int64)
    after = np.full(len(closing), chunks[-1] if is_last else NOWHERE, dtype=np.int64)
    return Window(np.concatenate([opening, text[begin:end], closing]), np.concatenate([before, own, after]))


def _without_token(index: int) -> InvalidRequest:
    return InvalidRequest(
        f"input[{index}] has no token of its own, so it cannot be a chunk; leave it out.",
        param=f"input[{index}]",
        code="empty_input",
    )
