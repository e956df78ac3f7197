"""What becomes of an image's pixels, read from preprocessor_config.json. Knows no graph."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

from convert.vision_config import VisionConfig
from service.errors import BakeError
from service.vision import Vision

FILE = "preprocessor_config.json"
BICUBIC = 3  # as Pillow numbers it
STEPS = ("do_convert_rgb", "do_resize", "do_rescale", "do_normalize")
GREY_LEVELS = 255
STD = "image_std"
# Where the limits are: under their own name, or as sides of a square in newer files.
LIMITS = {"min_pixels": "shortest_edge", "max_pixels": "longest_edge"}


def described(known: Vision, config: VisionConfig, found: Mapping[str, object], file: str) -> Vision:
    """Fill in the sizes of the tower in `file` and what the checkpoint's own file says of pixels.

    Raises BakeError on a step that the service does not take, or on numbers that cannot be used.
    """
    _check(found, config)
    sides = found.get("size")
    sides = sides if isinstance(sides, Mapping) else {}
    limits: list[int] = []
    for name, side in LIMITS.items():
        given = (found.get(name), sides.get(side), getattr(known, name))
        limit = next(value for value in given if value is not None)
        if type(limit) is not int or limit < 1:
            raise BakeError(f"{FILE} has {name} {limit!r}, must be a positive integer")
        limits.append(limit)
    min_pixels, max_pixels = limits
    if min_pixels > max_pixels:
        raise BakeError(f"{FILE} has min_pixels {min_pixels} above max_pixels {max_pixels}")
    return replace(
        known,
        file=file,
        mean=_channels("image_mean", found, known.mean),
        std=_channels(STD, found, known.std),
        patch_size=config.patch_size,
        temporal_patch_size=config.temporal_patch_size,
        merge_size=config.merge_size,
        window_size=config.window_size,
        min_pixels=min_pixels,
        max_pixels=max_pixels,
    )


def _check(found: Mapping[str, object], config: VisionConfig) -> None:
    """Refuse what would change the numbers."""
    off = [name for name in STEPS if found.get(name) is False]
    if off:
        raise BakeError(f"{FILE} has {', '.join(off)} false, which the service does not know")
    if found.get("resample", BICUBIC) != BICUBIC:
        raise BakeError(
            f"{FILE} has resample {found['resample']!r}: the service knows only {BICUBIC}, bicubic"
        )
    factor = found.get("rescale_factor", 1 / GREY_LEVELS)
    if not isinstance(factor, float) or abs(factor * GREY_LEVELS - 1) > 1e-6:
        raise BakeError(f"{FILE} has rescale_factor {factor!r} instead of 1/{GREY_LEVELS}")
    for name in ("patch_size", "temporal_patch_size", "merge_size"):
        if found.get(name, getattr(config, name)) != getattr(config, name):
            raise BakeError(
                f"{FILE} has {name} {found[name]!r}, config.json has {getattr(config, name)} for the tower"
            )


def _channels(
    name: str, found: Mapping[str, object], known: tuple[float, float, float]
) -> tuple[float, float, float]:
    given = found.get(name, known)
    if not isinstance(given, list | tuple) or len(given) != len(known):
        raise BakeError(f"{FILE} has {name} {given!r}, must be {len(known)} numbers")
    try:
        red, green, blue = (float(value) for value in given)
    except (TypeError, ValueError) as error:
        raise BakeError(f"{FILE} has {name} {given!r}, must be {len(known)} numbers") from error
    is_divisor = name == STD
    if not all(math.isfinite(value) and (value > 0 or not is_divisor) for value in (red, green, blue)):
        raise BakeError(
            f"{FILE} has {name} {given!r}, must be {len(known)} finite numbers, no deviation below 0"
        )
    return red, green, blue
