"""Makers of pictures, good and hostile: plain functions that return the bytes of a file."""

from __future__ import annotations

import struct
import zlib
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
GREY, COLOUR, PALETTE = 0, 2, 3  # colour types of PNG
ORIENTATION = 0x0112


def noise(height: int, width: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    """Return random pixels (height, width, channels)."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)


def saved(image: Image.Image, name: str = "PNG", **options: Any) -> bytes:
    """Write an image in a format."""
    file = BytesIO()
    image.save(file, name, **options)
    return file.getvalue()


def exif(orientation: int) -> Image.Exif:
    """Return EXIF that states an orientation."""
    found = Image.Exif()
    found[ORIENTATION] = orientation
    return found


def chunk(kind: bytes, content: bytes) -> bytes:
    """Return a chunk of a PNG, with its sum."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png_header(height: int, width: int, depth: int = 8, colour: int = GREY) -> bytes:
    """Return the beginning of a PNG."""
    return PNG_SIGNATURE + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))


def png(
    height: int, width: int, *chunks: bytes, rows: bytes | None = None, depth: int = 8, colour: int = GREY
) -> bytes:
    """Return a PNG with chunks before its pixels, which are zeros if not given; every row begins with a 0."""
    rows = bytes((width + 1) * height) if rows is None else rows
    end = chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return png_header(height, width, depth, colour) + b"".join(chunks) + end


def png_claiming(height: int, width: int) -> bytes:
    """Return a PNG of a few bytes whose header claims a size."""
    return png_header(height, width) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def png_bomb(height: int, width: int) -> bytes:
    """Return a PNG of RGBA zeros, some thousand times smaller than its pixels."""
    return saved(Image.new("RGBA", (width, height)))


def png_text_bomb(num_bytes: int) -> bytes:
    """Return a small PNG with a compressed text of that size."""
    return png(8, 8, chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(num_bytes))))


def png_profile_bomb(num_bytes: int) -> bytes:
    """Return a small PNG with a compressed colour profile of that size."""
    return png(8, 8, chunk(b"iCCP", b"profile\0\0" + zlib.compress(bytes(num_bytes))))


def png_with_exif(content: bytes) -> bytes:
    """Return a small PNG with these bytes as its EXIF."""
    return png(8, 8, chunk(b"eXIf", content))


def png_with_bad_animation() -> bytes:
    """Return a small PNG whose animation has no frames, of which pillow warns."""
    return png(8, 8, chunk(b"acTL", struct.pack(">II", 0, 0)))


def gif_claiming(screen: tuple[int, int], frame: tuple[int, int]) -> bytes:
    """Return a GIF of almost no data; screen and frame are (height, width)."""
    colours = bytes([0, 0, 0, 255, 255, 255])
    head = b"GIF89a" + struct.pack("<HHBBB", screen[1], screen[0], 0x80, 0, 0) + colours
    return head + b"," + struct.pack("<HHHHB", 0, 0, frame[1], frame[0], 0) + b"\x02\x02\x4c\x01\x00;"


def webp_claiming(height: int, width: int) -> bytes:
    """Return a lossless WebP of one colour with another size in its header; sides to 16384."""
    content = bytearray(saved(Image.new("RGB", (1, 1), (9, 99, 200)), "WEBP", lossless=True))
    place = content.index(b"\x2f", content.index(b"VP8L")) + 1
    (bits,) = struct.unpack_from("<I", content, place)
    struct.pack_into("<I", content, place, (bits & ~0xFFFFFFF) | (height - 1) << 14 | (width - 1))
    return bytes(content)


def bmp_claiming(height: int, width: int) -> bytes:
    """Return a BMP without pixels."""
    head = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 54, 0, 0, 54) + head


def jpeg_claiming(height: int, width: int) -> bytes:
    """Return a JPEG of 8 x 8 pixels with another size in its header; sides to 65535."""
    content = bytearray(saved(Image.new("RGB", (8, 8)), "JPEG"))
    struct.pack_into(">HH", content, content.index(b"\xff\xc0") + 5, height, width)
    return bytes(content)
