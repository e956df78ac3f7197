"""Images: what is refused, what becomes of modes and orientations, sizes, and patches."""

from __future__ import annotations

import hashlib
import random
import subprocess
import sys
import warnings
from dataclasses import replace
from fractions import Fraction
from io import BytesIO
from math import isqrt
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from service import images
from service.errors import ImageError
from service.vision import Vision
from tests import golden, pictures
from tests.pictures import noise, saved
from tests.processes import PROJECT

VISION = Vision(
    prompt="",
    image_token="",
    pooled_from="",
    pooled_to="",
    min_pixels=3136,
    max_pixels=602112,
    mean=(0.48145466, 0.4578275, 0.40821073),
    std=(0.26862954, 0.26130258, 0.27577711),
    patch_size=14,
    temporal_patch_size=2,
    merge_size=2,
)
MAX_PIXELS = 2_000_000
BICUBIC = Image.Resampling.BICUBIC
DAMAGED = "cannot be read: the file is damaged"
UNKNOWN = "is not a JPEG, PNG, WebP, GIF or BMP image"
PICTURES = golden.SHARED / "data" / "images"
MEMORY = 400  # MB over the bare interpreter, for 64,000,000 pixels

needs_golden = pytest.mark.skipif(not golden.is_there(), reason=golden.MISSING)


@pytest.fixture(autouse=True)
def limit_of_pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put pillow's own limit, which `decode` sets, back after a test."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)


def pixels_of(content: bytes) -> np.ndarray:
    return images.resized(images.decode(content, MAX_PIXELS), VISION)


def refused(content: bytes, max_pixels: int = MAX_PIXELS) -> ImageError:
    with pytest.raises(ImageError) as caught:
        images.decode(content, max_pixels)
    return caught.value


def by_reference(content: bytes) -> np.ndarray:
    """Load as the reference does: upright, RGB, then resized whole."""
    with warnings.catch_warnings(), Image.open(BytesIO(content)) as image:
        warnings.simplefilter("ignore")  # pillow warns of palettes with alpha
        whole = ImageOps.exif_transpose(image).convert("RGB")
    height, width = images.smart_resize(whole.height, whole.width, VISION)
    return np.asarray(whole.resize((width, height), BICUBIC))


# What is refused.


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0",
        b"hello",
        b"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/>",
        b"<!doctype html><html></html>",
        b"%PDF-1.7\n",
        b"%!PS-Adobe-3.0 EPSF-3.0\n",
        b"RIFF\x24\0\0\0WAVEfmt ",
        saved(Image.new("RGB", (16, 16)), "TIFF"),
        saved(Image.new("RGB", (16, 16)), "ICO"),
        saved(Image.new("RGB", (16, 16)), "PPM"),
        saved(Image.new("RGB", (16, 16)), "TGA"),
    ],
    ids=["empty", "nul", "text", "svg", "html", "pdf", "eps", "wav", "tiff", "ico", "ppm", "tga"],
)
def test_other_files_are_refused(content: bytes) -> None:
    error = refused(content)
    assert (error.message, error.code) == (UNKNOWN, "invalid_image")


@pytest.mark.parametrize(
    "content",
    [
        pictures.png_claiming(50_000, 50_000),
        pictures.gif_claiming((50_000, 50_000), (1, 1)),
        pictures.gif_claiming((10, 10), (50_000, 50_000)),
        pictures.webp_claiming(16_384, 16_384),
        pictures.bmp_claiming(50_000, 50_000),
        pictures.jpeg_claiming(50_000, 50_000),
        pictures.png_claiming(2**31 - 1, 2**31 - 1),
    ],
    ids=["png", "gif-screen", "gif-frame", "webp", "bmp", "jpeg", "png-largest"],
)
@pytest.mark.parametrize("max_pixels", [1, 64_000_000, 100_000_000])
def test_too_many_pixels_are_refused_by_the_header(content: bytes, max_pixels: int) -> None:
    error = refused(content, max_pixels)
    assert error.code == "image_too_large"
    assert error.message.endswith("(IMAGE_MAX_PIXELS)")
    assert str(max_pixels) in error.message


def test_the_limit_of_pixels_is_the_last_that_is_allowed() -> None:
    content = saved(Image.new("L", (20, 30)))
    assert images.decode(content, 600).size == (20, 30)
    error = refused(content, 599)
    assert (error.message, error.code) == (
        "has 20 x 30 pixels, more than 599 (IMAGE_MAX_PIXELS)",
        "image_too_large",
    )
    assert refused(content, 299).message == "has more than 598 pixels, 299 are allowed (IMAGE_MAX_PIXELS)"


def test_a_limit_above_that_of_pillow_holds() -> None:
    content = pictures.png_claiming(14_000, 14_000)  # pillow itself refuses 178,956,971
    assert refused(content, 195_999_999).code == "image_too_large"
    assert refused(content, 196_000_000).message == DAMAGED  # is opened, has no pixels


def test_no_pixel_is_decoded_before_the_limit_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(image: Image.Image) -> None:
        raise AssertionError("loaded")

    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", load)
    assert refused(pictures.png_bomb(60, 60), 3599).code == "image_too_large"


@pytest.mark.parametrize("name", ["JPEG", "PNG", "WEBP", "GIF", "BMP"])
def test_truncated_files_are_refused(name: str) -> None:
    content = saved(Image.fromarray(noise(64, 64)), name)
    for kept in range(0, len(content) - 20, max(1, len(content) // 60)):
        error = refused(content[:kept])
        assert error.code == "invalid_image"
        assert error.message in (DAMAGED, UNKNOWN)
    assert refused(content[: len(content) // 2]).message == DAMAGED


@pytest.mark.parametrize("name", ["JPEG", "PNG", "WEBP", "GIF", "BMP"])
def test_corrupt_files_are_refused_or_read(name: str) -> None:
    """Bytes are changed at random: nothing but ImageError may come of it, no warning either."""
    content = saved(
        Image.fromarray(noise(12, 12)), name, **({"exif": pictures.exif(6)} if name != "GIF" else {})
    )
    choose = random.Random(name)
    for _ in range(400):
        damaged = bytearray(content)
        for _ in range(choose.choice((1, 1, 4, 30))):
            damaged[choose.randrange(min(len(damaged), choose.choice((60, 10_000))))] = choose.randrange(256)
        try:
            pixels = pixels_of(bytes(damaged))
        except ImageError as error:
            assert error.code in ("invalid_image", "image_too_large")
        else:
            assert pixels.shape[2] == 3


@pytest.mark.parametrize(
    "content",
    [
        pictures.png_text_bomb(20_000_000),
        pictures.png_profile_bomb(20_000_000),
        pictures.png(8, 8)[:-20] + b"\xff" * 20,
        pictures.jpeg_claiming(900, 900)[:-40],
        pictures.webp_claiming(900, 900)[:-8],
        pictures.gif_claiming((10, 10), (10, 10))[:-4],
        pictures.bmp_claiming(10, 10),
    ],
    ids=["text-bomb", "profile-bomb", "bad-sum", "jpeg", "webp", "gif", "bmp"],
)
def test_damage_is_refused_without_the_words_of_pillow(content: bytes) -> None:
    error = refused(content)
    assert (error.message, error.code) == (DAMAGED, "invalid_image")


@pytest.mark.parametrize(
    "error", [KeyError("x"), MemoryError(), AttributeError("x"), EOFError(), OverflowError()]
)
def test_whatever_pillow_raises_is_damage(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fails(*_: object) -> None:
        raise error

    content = saved(Image.new("RGB", (8, 8)))
    image = images.decode(content, MAX_PIXELS)
    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", fails)
    assert refused(content).message == DAMAGED
    monkeypatch.setattr("PIL.Image.Image.resize", fails)
    with pytest.raises(ImageError, match=DAMAGED):
        images.resized(image, VISION)


@pytest.mark.parametrize(("height", "width"), [(0, 0), (0, 5), (5, 0)])
def test_pictures_of_no_size_are_refused(height: int, width: int) -> None:
    assert refused(pictures.png_claiming(height, width)).code == "invalid_image"
    assert refused(pictures.gif_claiming((height, width), (height, width))).code == "invalid_image"
    assert refused(pictures.bmp_claiming(height, width)).code == "invalid_image"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"II*\0",
        b"not exif at all",
        b"MM\0*\0\0\0\x08\xff\xff" + b"\x01\x12" * 40,
        b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\xff\xff\xff\x7f\x06\0\0\0\0\0\0\0",
        b"II*\0\x08\0\0\0\x01\0\x12\x01\x02\0\x04\0\0\0abc\0\0\0\0\0",
    ],
    ids=["empty", "short", "text", "many-tags", "count", "letters"],
)
def test_damaged_exif_is_passed_over(content: bytes) -> None:
    assert pixels_of(pictures.png_with_exif(content)).shape == (56, 56, 3)


def test_nothing_is_warned_of() -> None:
    assert pixels_of(pictures.png_with_bad_animation()).shape == (56, 56, 3)


# Modes, frames, orientations: equal to the loader of the reference, bit by bit.


def palette(mode: str = "RGB") -> Image.Image:
    image = Image.fromarray(noise(40, 90, 1)[..., 0]).convert("P")
    image.putpalette(noise(1, 256, len(mode)).tobytes(), mode)
    return image


RGB, RGBA = Image.fromarray(noise(40, 90)), Image.fromarray(noise(40, 90, 4), "RGBA")
GREY, GREY_ALPHA = Image.fromarray(noise(40, 90, 1)[..., 0]), Image.fromarray(noise(40, 90, 2), "LA")
CMYK = Image.fromarray(noise(40, 90, 4), "CMYK")
FRAMES: dict[str, Any] = {"save_all": True, "append_images": [Image.new("RGB", (90, 40), (9, 9, 200))]}
STRIPES = (b"\0" + bytes(range(0, 200, 25))) * 8
FILES = {
    "png-rgb": saved(RGB),
    "png-rgb-key": saved(RGB, transparency=tuple(int(value) for value in noise(40, 90)[3, 3])),
    "png-rgba": saved(RGBA),
    "png-grey": saved(GREY),
    "png-grey-key": saved(GREY, transparency=7),
    "png-grey-alpha": saved(GREY_ALPHA),
    "png-1": saved(GREY.convert("1")),
    "png-palette": saved(palette()),
    "png-palette-key": saved(palette(), transparency=3),
    "png-palette-alphas": saved(palette(), transparency=bytes(range(256))),
    "png-palette-2": saved(GREY.quantize(2)),
    "png-palette-absent": pictures.png(8, 8, rows=STRIPES, colour=pictures.PALETTE),
    "png-few-rows": pictures.png(8, 8, rows=STRIPES[:18]),
    "png-animated": saved(RGB, **FRAMES),
    "jpeg-rgb": saved(RGB, "JPEG"),
    "jpeg-progressive": saved(RGB, "JPEG", progressive=True, subsampling=0),
    "jpeg-grey": saved(GREY, "JPEG"),
    "jpeg-cmyk": saved(CMYK, "JPEG"),
    "jpeg-mpo": saved(RGB, "MPO", **FRAMES),
    "webp-lossy": saved(RGB, "WEBP"),
    "webp-alpha": saved(RGBA, "WEBP", lossless=True),
    "webp-animated": saved(RGB, "WEBP", lossless=True, **FRAMES),
    "gif": saved(RGB.quantize(64), "GIF"),
    "gif-grey": saved(GREY, "GIF"),
    "gif-key": saved(RGB.quantize(64), "GIF", transparency=5),
    "gif-animated": saved(RGB, "GIF", **FRAMES),
    "bmp-rgb": saved(RGB, "BMP"),
    "bmp-1": saved(GREY.convert("1"), "BMP"),
    "bmp-palette": saved(palette(), "BMP"),
    "bmp-rgba": saved(RGBA, "BMP"),
}


@pytest.fixture(params=[1 << 20, 100], ids=["one-strip", "strips"])
def strip_pixels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "STRIP_PIXELS", request.param)


@pytest.mark.usefixtures("strip_pixels")
@pytest.mark.parametrize("name", FILES)
def test_every_mode_becomes_rgb_as_in_the_reference(name: str) -> None:
    np.testing.assert_array_equal(pixels_of(FILES[name]), by_reference(FILES[name]))


def adobe_ycck() -> bytes:
    """Return the CMYK file with the mark that says its colours are YCCK."""
    content = bytearray(FILES["jpeg-cmyk"])
    content[content.index(b"Adobe") + 11] = 2
    return bytes(content)


def test_ycck() -> None:
    np.testing.assert_array_equal(pixels_of(adobe_ycck()), by_reference(adobe_ycck()))
    assert not np.array_equal(pixels_of(adobe_ycck()), pixels_of(FILES["jpeg-cmyk"]))


def test_alpha_is_dropped_not_composed() -> None:
    clear = Image.new("RGBA", (56, 56), (10, 200, 30, 0))
    assert (pixels_of(saved(clear)) == [10, 200, 30]).all()


def test_the_first_frame_is_taken() -> None:
    first = Image.new("RGB", (56, 56), (200, 10, 10))
    for name in ("GIF", "WEBP", "PNG"):
        content = saved(first, name, save_all=True, append_images=[Image.new("RGB", (56, 56), (9, 9, 200))])
        assert (np.abs(pixels_of(content).astype(int) - [200, 10, 10]) < 4).all()


def test_sixteen_bits_of_grey_are_scaled_not_clipped() -> None:
    grey = np.linspace(0, 65535, 56 * 56).astype(np.uint16).reshape(56, 56)
    pixels = pixels_of(saved(Image.fromarray(grey)))
    np.testing.assert_array_equal(pixels, np.repeat((grey // 256)[..., None], 3, axis=-1))


def test_sixteen_bits_of_colour_lose_the_low_byte() -> None:
    rows = (b"\0" + bytes([200, 1, 10, 255, 30, 0]) * 56) * 56
    content = pictures.png(56, 56, rows=rows, depth=16, colour=pictures.COLOUR)
    assert (pixels_of(content) == [200, 10, 30]).all()


@pytest.mark.usefixtures("strip_pixels")
@pytest.mark.parametrize("orientation", range(10))
@pytest.mark.parametrize("name", ["PNG", "JPEG", "WEBP"])
def test_orientations(name: str, orientation: int) -> None:
    content = saved(RGB, name, exif=pictures.exif(orientation))
    pixels = pixels_of(content)
    np.testing.assert_array_equal(pixels, by_reference(content))
    assert pixels.shape == ((84, 56, 3) if orientation in (5, 6, 7, 8) else (56, 84, 3))


def test_orientation_six_is_a_quarter_turn_to_the_right() -> None:
    """Where the camera's left edge is up: the file's first row becomes the last column."""
    image = np.zeros((56, 56, 3), np.uint8)
    image[0] = 255
    turned = pixels_of(saved(Image.fromarray(image), exif=pictures.exif(6)))
    assert (turned[:, -1] == 255).all()
    assert (turned[:, 0] == 0).all()


@pytest.mark.parametrize(
    ("height", "width"), [(1, 1), (700, 60), (60, 700), (900, 1000), (1000, 900), (199, 1), (28, 5600)]
)
def test_channels_resized_apart_equal_the_whole(height: int, width: int) -> None:
    """Pillow chooses by the sizes which side it resizes first; channels apart must not change that."""
    content = saved(Image.fromarray(noise(height, width)))
    np.testing.assert_array_equal(pixels_of(content), by_reference(content))


# Sizes.

SIZES = [  # height, width, their resize; worked out by hand from the rule
    (1, 1, 56, 56),  # both sides round to 0; the square root of 3136 is 56
    (10, 10, 56, 56),
    (14, 14, 56, 56),  # half a cell rounds to even, 0
    (15, 15, 56, 56),  # 28 x 28 is too few
    (14, 112, 28, 168),  # 0 x 112; grown by sqrt 2: 19.8, 158.4
    (14, 140, 28, 196),  # 0 x 140; by 1.265: 17.7, 177.1
    (42, 56, 56, 56),  # a cell and a half rounds to even, 2
    (70, 70, 56, 56),  # two cells and a half as well
    (98, 98, 112, 112),  # three cells and a half: 4
    (56, 56, 56, 56),
    (55, 57, 56, 56),
    (28, 112, 28, 112),  # just enough pixels
    (28, 84, 56, 112),  # 2352; by 1.1547: 32.3, 97.0
    (1, 199, 28, 812),  # 0 x 196; by 3.9697: 3.97, 789.97
    (1, 200, 28, 812),  # by 3.9598: 3.96, 791.96
    (199, 1, 812, 28),
    (872, 1000, 700, 812),  # 868 x 1008; by 1.2034: 724.6, 831.0
    (768, 784, 756, 784),  # 602,112, but its 756 x 784 is below the maximum
    (784, 768, 784, 756),
    (588, 1024, 588, 1008),  # 588 x 1036 is too many; shrunk by 1.0: 588, 1024
    (672, 896, 672, 896),  # exactly the maximum
    (672, 910, 672, 896),  # 32.5 rounds to 32: the maximum again
    (686, 896, 672, 896),  # 24.5 rounds to 24
    (8000, 8000, 756, 756),  # by 10.3098: 775.96
    (200, 40_000, 28, 10_948),  # by 3.645: 54.9, 10973.8
    (40_000, 200, 10_948, 28),
]


def side_in_cells(side: int, squared: Fraction) -> Fraction:
    """Return the square of the cells that a side has after it is multiplied by the root of a number."""
    return side * side * squared / (28 * 28)


def by_fractions(height: int, width: int) -> tuple[int, int]:
    """Work the rule out in exact numbers."""

    def rounded(side: int) -> int:
        whole, rest = divmod(side, 28)
        return (whole + (rest > 14 or (rest == 14 and whole % 2 == 1))) * 28

    def floor_root(number: Fraction) -> int:
        return isqrt(number.numerator // number.denominator)

    def ceil_root(number: Fraction) -> int:
        root = floor_root(number)
        return root + (root * root != number)

    area = rounded(height) * rounded(width)
    if area > 602112:
        shrink = Fraction(602112, height * width)
        down, across = (max(1, floor_root(side_in_cells(side, shrink))) for side in (height, width))
        return down * 28, across * 28
    if area < 3136:
        grow = Fraction(3136, height * width)
        return ceil_root(side_in_cells(height, grow)) * 28, ceil_root(side_in_cells(width, grow)) * 28
    return rounded(height), rounded(width)


@pytest.mark.parametrize(("height", "width", "new_height", "new_width"), SIZES)
def test_sizes(height: int, width: int, new_height: int, new_width: int) -> None:
    assert images.smart_resize(height, width, VISION) == (new_height, new_width)
    assert by_fractions(height, width) == (new_height, new_width)


def test_sizes_are_those_of_exact_numbers() -> None:
    choose = random.Random(1)
    for _ in range(3000):
        height = choose.randint(1, choose.choice((30, 300, 3000, 9000)))
        width = choose.randint(max(1, -(-height // 200)), min(200 * height, 9000))
        found = images.smart_resize(height, width, VISION)
        assert found == by_fractions(height, width), (height, width)
        assert 3136 <= found[0] * found[1] <= 602112


def test_no_side_is_shorter_than_a_cell() -> None:
    small = replace(VISION, min_pixels=784, max_pixels=6272)
    assert images.smart_resize(100, 10_000, small) == (28, 784)  # by 12.63: 7.9, 791.9
    assert images.smart_resize(10_000, 100, small) == (784, 28)


@pytest.mark.parametrize(("height", "width"), [(1, 201), (201, 1), (10, 2001), (100_000, 1)])
def test_narrow_pictures_are_refused(height: int, width: int) -> None:
    ratio = max(height, width) / min(height, width)
    with pytest.raises(ImageError, match=f"^absolute aspect ratio must be smaller than 200, got {ratio}$"):
        images.smart_resize(height, width, VISION)


def test_narrow_pictures_are_refused_before_the_resize() -> None:
    image = images.decode(saved(Image.new("RGB", (1, 201))), MAX_PIXELS)
    with pytest.raises(ImageError, match="aspect ratio") as caught:
        images.resized(image, VISION)
    assert caught.value.code == "invalid_image"


# Patches.


def by_index(pixels: np.ndarray, vision: Vision) -> np.ndarray:
    """Write every value where the definition has it, one by one."""
    side, merge, times = vision.patch_size, vision.merge_size, vision.temporal_patch_size
    down, across = pixels.shape[0] // side, pixels.shape[1] // side
    result = np.full((down * across, 3 * times * side * side), np.nan)
    for row, column in np.ndindex(down, across):
        cell = (row // merge) * (across // merge) + column // merge
        patch = cell * merge * merge + (row % merge) * merge + column % merge
        for channel, time, y, x in np.ndindex(3, times, side, side):
            value = int(pixels[row * side + y, column * side + x, channel]) / 255
            place = ((channel * times + time) * side + y) * side + x
            result[patch, place] = (value - vision.mean[channel]) / vision.std[channel]
    return result


@pytest.mark.parametrize(
    ("height", "width", "sides"),
    [(56, 84, (14, 2, 2)), (24, 36, (2, 3, 3)), (4, 4, (1, 1, 2)), (6, 10, (2, 1, 1))],
)
def test_patches(height: int, width: int, sides: tuple[int, int, int]) -> None:
    patch_size, times, merge_size = sides
    vision = replace(VISION, patch_size=patch_size, temporal_patch_size=times, merge_size=merge_size)
    pixels = noise(height, width)
    computed = images.patches(pixels, vision)
    assert computed.dtype == np.float32
    assert computed.flags.c_contiguous
    np.testing.assert_allclose(computed, by_index(pixels, vision), rtol=0, atol=1e-6)


def test_grid() -> None:
    assert images.grid(np.zeros((308, 448, 3), np.uint8), VISION) == (22, 32)


# Memory, in a process of its own: the peak of one that has run tests says nothing.

MEASURED = f"""
import resource, sys
from pathlib import Path
from service import images
from service.vision import Vision

vision = {VISION}
content = Path(sys.argv[1]).read_bytes()
images.decode(Path(sys.argv[2]).read_bytes(), 64)  # the formats are loaded
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
images.patches(images.resized(images.decode(content, 64_000_000), vision), vision)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in kB on Linux")
@pytest.mark.parametrize("mode", ["RGBA", "I;16"])
def test_memory_of_a_bomb(tmp_path: Path, mode: str) -> None:
    path, small = tmp_path / "bomb.png", tmp_path / "small.png"
    small.write_bytes(pictures.png(8, 8))
    path.write_bytes(saved(Image.new(mode, (8000, 8000)), exif=pictures.exif(6)))
    assert path.stat().st_size < 300_000
    command = [sys.executable, "-c", MEASURED, str(path), str(small)]
    run = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=True)
    assert int(run.stdout) < MEMORY


# The golden set.


def facts() -> list[Any]:
    if not golden.is_there():
        return [pytest.param(None, marks=pytest.mark.skip(reason=golden.MISSING), id="absent")]
    return [pytest.param(fact, id=fact["file"]) for fact in golden.expected("jina-embeddings-v4")["images"]]


@pytest.mark.reference
@pytest.mark.parametrize("fact", facts())
def test_golden_images(fact: dict[str, Any]) -> None:
    pixels = pixels_of((PICTURES / fact["file"]).read_bytes())
    assert pixels.shape == (*reversed(fact["resized_wh"]), 3)
    assert hashlib.sha256(pixels.tobytes()).hexdigest() == fact["resized_rgb_sha256"]
    assert (1, *images.grid(pixels, VISION)) == tuple(fact["grid_thw"])
    computed, expected = images.patches(pixels, VISION), fact["pixel_values"]
    assert computed.shape == tuple(expected["shape"])
    golden.assert_near(computed[tuple(np.transpose(expected["at"]))], np.array(expected["values"]), 1e-5)
    golden.assert_near(computed.mean(dtype=np.float64), np.array(expected["mean"]), 1e-5)
    golden.assert_near(computed.std(dtype=np.float64), np.array(expected["std"]), 1e-5)
    channels = computed.reshape(len(computed), 3, -1).mean(axis=(0, 2), dtype=np.float64)
    golden.assert_near(channels, np.array(expected["channel_mean"]), 1e-5)


@pytest.mark.reference
@needs_golden
def test_pictures_of_the_golden_set() -> None:
    files = [path for path in PICTURES.rglob("*.*") if path.suffix in (".png", ".jpg", ".gif")]
    good = [path for path in files if path.name != "truncated.jpg"]
    assert len(good) >= 16
    for path in good:
        np.testing.assert_array_equal(
            pixels_of(path.read_bytes()), by_reference(path.read_bytes()), str(path)
        )
    assert refused((PICTURES / "formats" / "truncated.jpg").read_bytes()).message == DAMAGED
    assert refused((PICTURES / "captions.jsonl").read_bytes()).message == UNKNOWN


@pytest.mark.parametrize("options", [{"name": "WEBP"}, {"name": "JPEG", "progressive": True}], ids=str)
def test_formats_whose_decoder_takes_more_memory_have_half_the_limit(options: dict[str, Any]) -> None:
    content = saved(Image.new("RGB", (20, 30)), **options)
    assert images.decode(content, 1200).size == (20, 30)
    error = refused(content, 1199)
    assert error.code == "image_too_large"
    assert error.message.startswith("has 20 x 30 pixels, more than 599 (IMAGE_MAX_PIXELS / 2 for WebP")
    plain = saved(Image.new("RGB", (20, 30)), "JPEG")
    assert images.decode(plain, 600).size == (20, 30)
