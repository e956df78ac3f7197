"""The images that the quality of a model of images is measured on, and their vectors. Knows no figures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from service import images
from service.embedding import EmbeddingModel
from service.options import EmbedOptions
from service.vision import Vision

FOLDER = Path(__file__).parent / "data" / "images"
MAX_PIXELS = 1 << 17  # of one: none is larger than 280 x 224

Floats = npt.NDArray[np.float32]
Pixels = npt.NDArray[np.uint8]  # (height, width, 3)


def pictures(vision: Vision) -> list[Pixels]:
    """Read the built-in images, by their names, in the sizes that a model takes."""
    return [
        images.resized(images.decode(path.read_bytes(), MAX_PIXELS), vision)
        for path in sorted(FOLDER.iterdir())
    ]


def image_vectors(
    model: EmbeddingModel,
    options: EmbedOptions,
    given: Sequence[Pixels],
    on_image: Callable[[int], object] = lambda count: None,
) -> Floats:
    """Compute a unit vector for each image, one at a time. Raises as `EmbeddingModel.embed`."""
    rows = []
    for pixels in given:
        rows.append(model.embed([pixels], options).vectors[0])
        on_image(1)
    return np.stack(rows)
