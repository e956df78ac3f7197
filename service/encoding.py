"""Vectors to what a response carries: numbers, base64, packed bits. Pure; knows no HTTP."""

from __future__ import annotations

import base64
from collections.abc import Callable
from enum import StrEnum

import numpy as np
import numpy.typing as npt

BYTE_OFFSET = 128  # binary is the unsigned byte minus 128, as Jina clients decode it

Floats = npt.NDArray[np.float32]
Encoded = Floats | str | list[int]


class EmbeddingType(StrEnum):
    """The forms of a vector, spelled as the API spells them."""

    FLOAT = "float"
    BASE64 = "base64"
    BINARY = "binary"


def encode(vectors: Floats, embedding_type: EmbeddingType) -> list[Encoded]:
    """Encode the rows of (n, d)."""
    encoder = ENCODERS[embedding_type]
    return [encoder(vector) for vector in vectors]


def _as_is(vector: Floats) -> Encoded:
    return vector


def _base64(vector: Floats) -> Encoded:
    return base64.b64encode(vector.astype("<f4").tobytes()).decode("ascii")


def _binary(vector: Floats) -> Encoded:
    """Pack `x > 0` most significant bit first, 8 to a byte, minus 128."""
    packed: list[int] = (np.packbits(vector > 0).astype(np.int16) - BYTE_OFFSET).tolist()
    return packed


ENCODERS: dict[EmbeddingType, Callable[[Floats], Encoded]] = {
    EmbeddingType.FLOAT: _as_is,
    EmbeddingType.BASE64: _base64,
    EmbeddingType.BINARY: _binary,
}
