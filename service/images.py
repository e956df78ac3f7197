"""From the bytes of an image file to the patches of a vision tower. Owns pillow; knows no HTTP, no model.

Of a vision model it knows sizes, mean and deviation (`Vision`), not what becomes of patches.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, UnidentifiedImageError

from service.errors import ImageError
from service.vision import Vision

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
MAX_ASPECT_RATIO = 200  # of the reference
STRIP_PIXELS = 1 << 20  # converted at once; what is larger is held in the form that its file has, no other
TOO_LARGE = "image_too_large"
TURNS = {  # from the orientation in a file to the turn that makes it upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
SIDEWAYS = (5, 6, 7, 8)  # orientations that swap the sides

Pixels = npt.NDArray[np.uint8]  # (height, width, 3)


def decode(content: bytes, max_pixels: int) -> Image.Image:
    """Read an image file; of an animation, its first frame.

    The image keeps the mode and the orientation of the file, as a copy of a large one would take 4 bytes a
    pixel; `resized` gives an upright one in RGB. A file with more than `max_pixels`, by its header, is
    refused before a pixel is decoded; where a decoder takes more memory, one with more than half of them.
    Raises ImageError.
    """
    _take_over_from_pillow(max_pixels)
    with _damage_refused():
        image = _opened(content, max_pixels)
        width, height = image.size
        is_costly = _is_costly(image)
        limit = max_pixels // 2 if is_costly else max_pixels
        if width * height > limit:
            setting = f"IMAGE_MAX_PIXELS{' / 2 for WebP and progressive JPEG' if is_costly else ''}"
            raise ImageError(f"has {width} x {height} pixels, more than {limit} ({setting})", code=TOO_LARGE)
        image.load()
        return image


def _take_over_from_pillow(max_pixels: int) -> None:
    """Make pillow's own limit this one, and silence its warnings.

    NOTE: both hold for the process, where nothing else uses pillow. Its limit stands in the way of a larger
    one and is what it asks before it allocates a WebP canvas: it warns above it and raises above its double.
    It also warns of damaged EXIF, frames and tables, which is no concern of an operator.
    """
    Image.MAX_IMAGE_PIXELS = max_pixels
    warnings.filterwarnings("ignore", module=r"PIL\.")


def _opened(content: bytes, max_pixels: int) -> Image.Image:
    """Read a header. Raises ImageError."""
    try:
        return Image.open(BytesIO(content), formats=FORMATS)
    except UnidentifiedImageError as error:
        raise ImageError("is not a JPEG, PNG, WebP, GIF or BMP image") from error
    except Image.DecompressionBombError as error:
        raise ImageError(
            f"has more than {2 * max_pixels} pixels, {max_pixels} are allowed (IMAGE_MAX_PIXELS)",
            code=TOO_LARGE,
        ) from error


def _is_costly(image: Image.Image) -> bool:
    """Tell whether a file is of a kind whose decoder holds all of it twice and more.

    Measured for 64 million pixels: WebP 980 MB, progressive JPEG up to 734 MB, all others 250 MB.
    """
    return image.format == "WEBP" or bool(image.info.get("progressive"))


@contextmanager
def _damage_refused() -> Iterator[None]:
    """Turn whatever pillow raises into ImageError, without its text."""
    try:
        yield
    except ImageError:
        raise
    except Exception as error:  # noqa: BLE001  its parsers raise what they run into: KeyError, zlib.error, ...
        raise ImageError("cannot be read: the file is damaged") from error


def smart_resize(height: int, width: int, vision: Vision) -> tuple[int, int]:
    """Return the height and width that an image is resized to, multiples of the side of a cell in pixels.

    Raises ImageError for one that is too narrow. Source: transformers, image_processing_qwen2_vl.
    """
    aspect_ratio = max(height, width) / min(height, width)
    if aspect_ratio > MAX_ASPECT_RATIO:
        raise ImageError(f"absolute aspect ratio must be smaller than {MAX_ASPECT_RATIO}, got {aspect_ratio}")
    cell = vision.patch_size * vision.merge_size
    new_height, new_width = round(height / cell) * cell, round(width / cell) * cell  # half to even; may be 0
    if new_height * new_width > vision.max_pixels:
        shrink = math.sqrt(height * width / vision.max_pixels)
        return (
            max(cell, math.floor(height / shrink / cell) * cell),
            max(cell, math.floor(width / shrink / cell) * cell),
        )
    if new_height * new_width < vision.min_pixels:
        grow = math.sqrt(vision.min_pixels / (height * width))
        return math.ceil(height * grow / cell) * cell, math.ceil(width * grow / cell) * cell
    return new_height, new_width


def resized(image: Image.Image, vision: Vision) -> Pixels:
    """Make what `decode` returned upright, RGB without alpha and of the size that the model takes.

    Bicubic on uint8, channel by channel: the same numbers as of the whole, with a quarter of the memory.
    Raises ImageError.
    """
    orientation = _orientation(image)
    width, height = image.size
    if orientation in SIDEWAYS:
        width, height = height, width
    new_height, new_width = smart_resize(height, width, vision)
    size = new_width, new_height
    with _damage_refused():
        channels = [_resized_channel(image, index, orientation, size) for index in range(3)]
    return np.stack(channels, axis=-1)


def _orientation(image: Image.Image) -> int:
    """Return the orientation that a file states, 1 (upright) where it states none or is damaged there."""
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # noqa: BLE001  as in _damage_refused; the pixels are good
        return 1


def _resized_channel(
    image: Image.Image, index: int, orientation: int, size: tuple[int, int]
) -> npt.NDArray[np.uint8]:
    """Return red, green or blue, upright: (height, width)."""
    channel = _channel(image, index)
    if orientation in TURNS:
        channel = channel.transpose(TURNS[orientation])
    return np.asarray(channel.resize(size, Image.Resampling.BICUBIC), dtype=np.uint8)


def _channel(image: Image.Image, index: int) -> Image.Image:
    """Return red, green or blue as an image of its own, converted strip by strip."""
    channel = Image.new("L", image.size)
    num_rows = max(1, STRIP_PIXELS // image.width)
    for top in range(0, image.height, num_rows):
        box = (0, top, image.width, min(top + num_rows, image.height))
        channel.paste(_rgb(image.crop(box)).getchannel(index), box)
    return channel


def _rgb(image: Image.Image) -> Image.Image:
    """Convert to RGB."""
    if image.mode == "I;16":
        # NOTE: pillow's conversion clips, so that all from 255 of 65535 on is white. The high byte is what it
        # takes of 16-bit colour and of 16-bit grey with alpha.
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    return image.convert("RGB")


def grid(pixels: Pixels, vision: Vision) -> tuple[int, int]:
    """Return how many patches an image has down and across."""
    return pixels.shape[0] // vision.patch_size, pixels.shape[1] // vision.patch_size


def patches(pixels: Pixels, vision: Vision) -> npt.NDArray[np.float32]:
    """Cut a resized image into normalised patches, (patches, 3 x times x side x side).

    The patches of a cell are neighbours, row by row, and so are the cells. Source: transformers,
    image_processing_qwen2_vl, for one frame repeated.
    """
    side, merge, times = vision.patch_size, vision.merge_size, vision.temporal_patch_size
    down, across = grid(pixels, vision)
    # (cell row, row, y, cell column, column, x, channel)
    cut = pixels.reshape(down // merge, merge, side, across // merge, merge, side, 3)
    cut = cut.transpose(0, 3, 1, 4, 6, 2, 5)  # (cell row, cell column, row, column, channel, y, x)
    values = np.empty((*cut.shape[:5], times, side, side), dtype=np.float32)
    values[:] = cut[..., None, :, :]  # the only copy
    values /= 255
    values -= np.array(vision.mean, dtype=np.float32)[:, None, None, None]
    values /= np.array(vision.std, dtype=np.float32)[:, None, None, None]
    return values.reshape(down * across, -1)
