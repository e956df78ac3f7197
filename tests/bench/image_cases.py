"""Requests of images: files made on the spot and the tokens they are billed for. Sends nothing."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
import orjson
from PIL import Image

from service import images, multimodal, tokenization
from service import manifest as contract
from service.manifest import TOKENIZER_FILE
from tests.bench.client import Request
from tests.bench.errors import BenchError
from tests.bench.load import ROUTE

QUALITY, NOISE = 90, 60  # of the JPEG files; grey levels
FORMAT = "JPEG"
SMALL_SIDES = (56, 84, 112)  # those of the many
Side = tuple[int, int]  # height and width


@dataclass(frozen=True)
class ImageCase:
    """A request of images, its name in the table, and what the graphs compute for it."""

    label: str
    request: Request
    files: tuple[bytes, ...]
    patches: tuple[int, ...]  # of each image, after its resize
    resized: str
    is_compared: bool  # with torch, and part by part

    @property
    def num_images(self) -> int:
        """Return the number of images."""
        return len(self.files)


def compared_and_largest(bundle: Path, task: str) -> list[ImageCase]:
    """Make the requests that are compared, and those that take most memory."""
    small = [(height, width) for height in SMALL_SIDES for width in SMALL_SIDES]
    sizes: list[tuple[list[Side], bool]] = [
        ([(224, 224)] * 8, True),
        ([(768, 784)], True),
        ([(672, 896)], False),  # 602,112 pixels, the limit
        ([small[index % len(small)] for index in range(64)], False),
    ]
    return [of_sides(sides, bundle, task, is_compared=is_compared) for sides, is_compared in sizes]


def of_sides(sides: Sequence[Side], bundle: Path, task: str, *, is_compared: bool) -> ImageCase:
    """Make a request of images of these heights and widths."""
    manifest = contract.load(bundle)
    if manifest.vision is None:
        raise BenchError(f"{bundle} takes no images")
    vision = manifest.vision
    resized = [images.smart_resize(height, width, vision) for height, width in sides]
    patches = tuple(height * width // vision.patch_size**2 for height, width in resized)
    template = multimodal.template(tokenization.load(bundle / TOKENIZER_FILE), vision)
    num_billed = sum(patches) // vision.merge_size**2 + len(sides) * template.num_tokens
    files = tuple(_file(side, seed) for seed, side in enumerate(sides))
    inputs = [{"image": base64.b64encode(file).decode()} for file in files]
    body = orjson.dumps({"model": manifest.name, "input": inputs, "task": task})
    request = Request(ROUTE, body, num_billed)
    label = f"{len(sides)} of {_spelled(sides)}"
    return ImageCase(label, request, files, patches, _spelled(resized), is_compared)


def _file(side: Side, seed: int) -> bytes:
    """Make a picture of a gradient and noise: no two are equal."""
    rows, columns = np.indices(side)
    gradient = 255 * np.stack([rows / side[0], columns / side[1], 1 - rows / side[0]], axis=-1)
    noise = np.random.default_rng(seed).normal(scale=NOISE, size=gradient.shape)
    file = BytesIO()
    pixels = np.clip(gradient + noise, 0, 255).astype(np.uint8)
    Image.fromarray(pixels).save(file, FORMAT, quality=QUALITY)
    return file.getvalue()


def _spelled(sides: Sequence[Side]) -> str:
    """Spell height x width, of several the smallest and the largest."""
    least, most = (f"{height}x{width}" for height, width in (min(sides), max(sides)))
    return least if least == most else f"{least} to {most}"
