"""Owns the tokenizers library: text to token ids. Knows no model, no task and no limit of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer as NativeTokenizer

from service.errors import BundleError

Ids = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Tokenizer:
    """A loaded tokenizer. Truncation and padding that its file may carry are off."""

    native: NativeTokenizer
    num_closing_tokens: int  # special tokens after the text, kept by truncation

    def encode(self, texts: Sequence[str]) -> list[Ids]:
        """Return each text's token ids with special tokens, however long."""
        if len(texts) == 1:  # spares the thread pool
            return [np.array(self.native.encode(texts[0]).ids, dtype=np.int64)]
        return [np.array(encoding.ids, dtype=np.int64) for encoding in self.native.encode_batch_fast(texts)]

    def truncate(self, ids: Ids, max_tokens: int) -> Ids:
        """Cut the text on the right so that `max_tokens` remain, the closing special tokens among them."""
        if len(ids) <= max_tokens:
            return ids
        closing = ids[len(ids) - self.num_closing_tokens :]
        return np.concatenate([ids[: max_tokens - len(closing)], closing])


def load(path: Path) -> Tokenizer:
    """Read a tokenizer.json. Raises BundleError when it is not one."""
    try:
        native = NativeTokenizer.from_file(str(path))
    except Exception as error:  # the library raises plain Exception
        raise BundleError(f"{path} cannot be read as a tokenizer: {error}") from error
    native.no_truncation()
    native.no_padding()
    mask = native.encode("a").special_tokens_mask
    num_closing = next((count for count, flag in enumerate(reversed(mask)) if not flag), 0)
    return Tokenizer(native, num_closing)
