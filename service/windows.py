"""How the patches of images are laid out for the vision tower: windows, places, positions. Pure arithmetic.

A cell is a square of patches that becomes one vector, a window a square of cells. Patches come cell by cell,
rows first, from `service.images`; the tower takes the cells of a window one behind the other. Source:
transformers, Qwen2_5_VisionTransformerPretrainedModel.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from service.vision import IMAGE_PATCHES, PATCH_POSITIONS, PIXEL_VALUES, WINDOW_PATCHES, Vision

NO_PATCH = -1

Ids = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]
Arrays = dict[str, npt.NDArray[np.generic]]


@dataclass(frozen=True)
class Patches:
    """The patches of one image (patches, values), and how many there are down and across."""

    values: Floats
    grid: tuple[int, int]


@dataclass(frozen=True)
class WindowOrder:
    """The cells of an image in the order of windows, and how many each window has."""

    cells: Ids
    window_lengths: Ids


def window_order(grid: tuple[int, int], vision: Vision) -> WindowOrder:
    """Order the cells of an image of (patches down, patches across) by windows, rows first in both."""
    rows, columns = (side // vision.merge_size for side in grid)
    numbers = np.arange(rows * columns, dtype=np.int64).reshape(rows, columns)
    size = vision.window_size
    windows = [
        numbers[row : row + size, column : column + size].ravel()
        for row in range(0, rows, size)
        for column in range(0, columns, size)
    ]
    lengths = np.array([len(window) for window in windows], dtype=np.int64)
    return WindowOrder(np.concatenate(windows), lengths)


def tower_inputs(images: Sequence[Patches], vision: Vision) -> tuple[Arrays, Ids]:
    """Lay images out for one run of the tower.

    Return its inputs, and for every cell, image after image, the row of the output that has its vector.
    """
    per_cell = vision.merge_size**2
    values, positions, rows, window_lengths, begin = [], [], [], [], 0
    for image in images:
        order = window_order(image.grid, vision)
        num_cells = len(order.cells)
        values.append(image.values.reshape(num_cells, -1)[order.cells])
        positions.append(_positions(image.grid, vision.merge_size)[order.cells])
        rows.append(begin + np.argsort(order.cells))
        window_lengths.append(order.window_lengths * per_cell)
        begin += num_cells
    image_lengths = np.array([len(image.values) for image in images], dtype=np.int64)
    inputs: Arrays = {
        PIXEL_VALUES: np.concatenate(values).reshape(per_cell * begin, -1),
        PATCH_POSITIONS: np.concatenate(positions).reshape(per_cell * begin, 2),
        WINDOW_PATCHES: _places(np.concatenate(window_lengths)),
        IMAGE_PATCHES: _places(image_lengths),
    }
    return inputs, np.concatenate(rows)


def _positions(grid: tuple[int, int], merge_size: int) -> Ids:
    """Return row and column of every patch: (cells, patches of a cell, 2)."""
    rows, columns = (side // merge_size for side in grid)
    places = np.indices(grid, dtype=np.int64).reshape(2, rows, merge_size, columns, merge_size)
    return places.transpose(1, 3, 2, 4, 0).reshape(rows * columns, merge_size**2, 2)


def _places(lengths: Ids) -> Ids:
    """Number what lies one behind the other, a row for each length: (rows, longest), NO_PATCH at the end."""
    begins = np.cumsum(lengths) - lengths
    steps = np.arange(lengths.max(), dtype=np.int64)
    places: Ids = np.where(steps < lengths[:, None], begins[:, None] + steps, NO_PATCH)
    return places
