"""What a manifest says of images: sizes, the prompt they stand in, limits of pixels. Data only.

Also the names of what the graphs of such a model take and give beside token ids.
"""

from __future__ import annotations

from dataclasses import dataclass

# The vision tower. Patches of all images of a run, cell by cell, the cells of a window one behind the other.
PIXEL_VALUES = "pixel_values"  # (patches, values) float32
PATCH_POSITIONS = "patch_positions"  # (patches, 2) int64: row and column in its image
WINDOW_PATCHES = "window_patches"  # (windows, longest) int64: places of patches, in order, then -1
IMAGE_PATCHES = "image_patches"  # (images, longest) int64: likewise
IMAGE_VECTORS = "image_vectors"  # (cells, hidden) float32: from the tower, to the text graph
# The text graph. Places of image vectors count rows x longest tokens, padding included.
IMAGE_PLACES = "image_places"  # (cells,) int64
POSITION_IDS = "position_ids"  # (batch, tokens, 3) int64: time, row and column
POOLING_MASK = "pooling_mask"  # (batch, tokens) int64: tokens whose states' mean is the vector


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
