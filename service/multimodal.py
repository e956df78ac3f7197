"""Prompts of text and of images, and their stacking into inputs of a graph that takes both. Pure.

Source: transformers, Qwen2_5_VLModel.get_rope_index (positions), jinaai/jina-embeddings-v4 (what is pooled).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from service.errors import BundleError
from service.session import Array, pad
from service.tokenization import Tokenizer
from service.vision import IMAGE_PLACES, IMAGE_VECTORS, POOLING_MASK, POSITION_IDS, Vision

NUM_STREAMS = 3  # of positions: time, row, column

Ids = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class ImagePrompt:
    """Token ids with one for every vector of an image, and which of their states are pooled (half-open)."""

    ids: Ids
    vectors: Floats  # (cells, hidden)
    cells: tuple[int, int]  # down and across
    begin: int  # of the image's tokens
    pooled: tuple[int, int]

    def __len__(self) -> int:
        """Return the number of tokens."""
        return len(self.ids)


@dataclass(frozen=True)
class ImageTemplate:
    """The token ids around an image and where pooling begins and ends: at the first id, behind the second."""

    head: Ids
    tail: Ids
    image_id: int
    pooled_from: int  # index in the head
    pooled_to: int  # index in the tail

    @property
    def num_tokens(self) -> int:
        """Return the number of tokens around an image."""
        return len(self.head) + len(self.tail)

    def prompt(self, vectors: Floats, cells: tuple[int, int]) -> ImagePrompt:
        """Set the vectors of an image (cells, hidden) between head and tail."""
        begin, end = len(self.head), len(self.head) + len(vectors)
        ids = np.concatenate([self.head, np.full(len(vectors), self.image_id, dtype=np.int64), self.tail])
        return ImagePrompt(ids, vectors, cells, begin, (self.pooled_from, end + self.pooled_to + 1))


TextOrImage = Ids | ImagePrompt


def template(tokenizer: Tokenizer, vision: Vision) -> ImageTemplate:
    """Find the tokens of the prompt that images stand in. Raises BundleError where one is not found once."""
    (encoded,) = tokenizer.encode([vision.prompt], len(vision.prompt))
    ids = encoded.ids
    places = []
    for token in (vision.image_token, vision.pooled_from, vision.pooled_to):
        found = np.flatnonzero(np.isin(ids, list(tokenizer.ids_of([token]))))
        if len(found) != 1:
            raise BundleError(f"the prompt of images has {len(found)} tokens {token}, must have one")
        places.append(int(found[0]))
    image, first, last = places
    if not first < image < last:
        raise BundleError(f"the prompt of images has its tokens in the wrong order: {vision.prompt!r}")
    return ImageTemplate(ids[:image], ids[image + 1 :], int(ids[image]), first, last - image - 1)


def stack(sequences: Sequence[TextOrImage], hidden_size: int) -> dict[str, Array]:
    """Stack token ids and prompts on the right-padded inputs of a graph, named in `service.vision`."""
    inputs = pad([_ids(sequence) for sequence in sequences])
    rows, longest = inputs["input_ids"].shape
    positions = np.zeros((rows, longest, NUM_STREAMS), dtype=np.int64)
    pooled = inputs["attention_mask"].copy()
    vectors, places = [], []
    for row, sequence in enumerate(sequences):
        positions[row, : len(sequence)] = _positions(sequence)
        if isinstance(sequence, ImagePrompt):
            pooled[row] = 0
            pooled[row, slice(*sequence.pooled)] = 1
            vectors.append(sequence.vectors)
            places.append(row * longest + sequence.begin + np.arange(len(sequence.vectors)))
    return inputs | {
        POSITION_IDS: positions,
        POOLING_MASK: pooled,
        IMAGE_VECTORS: np.concatenate(vectors) if vectors else np.zeros((0, hidden_size), dtype=np.float32),
        IMAGE_PLACES: np.concatenate(places) if places else np.zeros(0, dtype=np.int64),
    }


def _ids(sequence: TextOrImage) -> Ids:
    return sequence.ids if isinstance(sequence, ImagePrompt) else sequence


def _positions(sequence: TextOrImage) -> Ids:
    """Return the position of every token in every stream: (tokens, NUM_STREAMS).

    Text counts on in all streams; an image stands still in time, its rows and columns count from there, and
    the text behind it goes on after the largest of them.
    """
    positions = np.repeat(np.arange(len(sequence), dtype=np.int64)[:, None], NUM_STREAMS, axis=1)
    if not isinstance(sequence, ImagePrompt):
        return positions
    begin, end = sequence.begin, sequence.begin + len(sequence.vectors)
    rows, columns = np.indices(sequence.cells).reshape(2, -1)
    positions[begin:end] = begin
    positions[begin:end, 1] += rows
    positions[begin:end, 2] += columns
    positions[end:] -= end - begin - max(sequence.cells)
    return positions
