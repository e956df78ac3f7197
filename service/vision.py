"""What a manifest says of images: sizes, the prompt they stand in, limits of pixels. Data only."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Vision:
    """How images enter a model: what becomes of their pixels, and the prompt that they stand in."""

    file: str = ""  # the graph of the vision tower, one for all variants
    prompt: str  # holds one `image_token`, which is repeated for every vector of the image
    image_token: str
    pooled_from: str  # the tokens between which, both included, an image's vector is the mean of states
    pooled_to: str
    min_pixels: int  # of an image after its resize
    max_pixels: int
    mean: tuple[float, float, float]  # of channels from 0 to 1
    std: tuple[float, float, float]
    patch_size: int = 0  # pixels on a side
    temporal_patch_size: int = 0  # times that an image is repeated
    merge_size: int = 0  # patches on the side of a cell, which becomes one vector
    window_size: int = 0  # cells on the side of an attention window
