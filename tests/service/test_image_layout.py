"""Windows, positions and prompts of images, against slow definitions of the same."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest

from service.image_embedding import ALONE_FROM_PATCHES, MAX_PATCHES, plan
from service.multimodal import ImagePrompt, ImageTemplate, stack
from service.vision import (
    IMAGE_PATCHES,
    IMAGE_PLACES,
    IMAGE_VECTORS,
    PATCH_POSITIONS,
    PIXEL_VALUES,
    POOLING_MASK,
    POSITION_IDS,
    WINDOW_PATCHES,
    Vision,
)
from service.windows import Patches, tower_inputs, window_order

VISION = Vision(
    prompt="", image_token="", pooled_from="", pooled_to="", min_pixels=3136, max_pixels=602_112,
    patch_size=14,
    mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), temporal_patch_size=2, merge_size=2, window_size=4,
)  # fmt: skip
GRIDS = [(2, 2), (4, 4), (8, 8), (10, 6), (6, 10), (22, 32), (18, 2), (2, 18), (24, 8)]
HIDDEN = 6


def patches_of(grid: tuple[int, int], begin: int = 0) -> Patches:
    """Number the patches of an image in the order in which they are given."""
    count = grid[0] * grid[1]
    return Patches(np.arange(begin, begin + count, dtype=np.float32)[:, None], grid)


def place_of(grid: tuple[int, int], number: int) -> tuple[int, int]:
    """Return row and column of a patch, by the order of cells and of patches in a cell."""
    cell, inner = divmod(number, 4)
    row, column = divmod(cell, grid[1] // 2)
    return 2 * row + inner // 2, 2 * column + inner % 2


@pytest.mark.parametrize("grid", GRIDS)
def test_windows_hold_neighbours_and_every_cell_once(grid: tuple[int, int]) -> None:
    order = window_order(grid, VISION)
    rows, columns = grid[0] // 2, grid[1] // 2
    assert sorted(order.cells) == list(range(rows * columns))
    assert order.window_lengths.sum() == rows * columns
    windows = np.split(order.cells, np.cumsum(order.window_lengths)[:-1])
    for window in windows:
        found = {(int(cell) // columns // 4, int(cell) % columns // 4) for cell in window}
        assert len(found) == 1, "a window with cells of several"
        assert list(window) == sorted(window), "rows first"
    firsts = [(int(window[0]) // columns, int(window[0]) % columns) for window in windows]
    assert firsts == list(itertools.product(range(0, rows, 4), range(0, columns, 4)))


@pytest.mark.parametrize("grids", [[grid] for grid in GRIDS] + [GRIDS, [(4, 4), (4, 4)]], ids=str)
def test_inputs_of_the_tower(grids: list[tuple[int, int]]) -> None:
    begins = np.cumsum([0, *(down * across for down, across in grids)])
    images = [patches_of(grid, begin) for grid, begin in zip(grids, begins[:-1].tolist(), strict=True)]
    inputs, rows = tower_inputs(images, VISION)
    numbers = inputs[PIXEL_VALUES][:, 0].astype(int)  # of the patch at each place
    assert sorted(numbers) == list(range(begins[-1]))
    image_of = np.searchsorted(begins, numbers, side="right") - 1
    for place, (number, image) in enumerate(zip(numbers, image_of, strict=True)):
        expected = place_of(grids[image], int(number - begins[image]))
        assert tuple(inputs[PATCH_POSITIONS][place]) == expected
    # What the tower makes of the cell at row r of its output goes back to where the cell was.
    cells = numbers.reshape(-1, 4)[:, 0] // 4
    assert cells[rows].tolist() == list(range(begins[-1] // 4))
    for name in (WINDOW_PATCHES, IMAGE_PATCHES):
        places = np.asarray(inputs[name], dtype=np.int64)
        assert places[places >= 0].tolist() == list(range(begins[-1])), f"{name}: each once, in order"
        assert (np.diff((places >= 0).astype(int), axis=1) <= 0).all(), f"{name}: padded on the right"
        assert (places >= 0).any(axis=1).all()
    for row in inputs[IMAGE_PATCHES]:
        assert len({int(image_of[place]) for place in row if place >= 0}) == 1
    assert len(inputs[IMAGE_PATCHES]) == len(grids)
    for row in inputs[WINDOW_PATCHES]:
        held = {(int(image_of[place]), *(inputs[PATCH_POSITIONS][place] // 8)) for place in row if place >= 0}
        assert len(held) == 1, "a window of two places"
    assert inputs[WINDOW_PATCHES].shape[1] <= 64


def test_windows_follow_the_sizes_of_the_model() -> None:
    order = window_order((8, 8), replace(VISION, window_size=2))
    assert order.window_lengths.tolist() == [4, 4, 4, 4]
    assert order.cells[:4].tolist() == [0, 1, 4, 5]


TEMPLATE = ImageTemplate(np.array([1, 2, 3]), np.array([4, 5]), image_id=9, pooled_from=2, pooled_to=0)


def prompt_of(cells: tuple[int, int]) -> ImagePrompt:
    count = cells[0] * cells[1]
    return TEMPLATE.prompt(np.arange(count * HIDDEN, dtype=np.float32).reshape(count, HIDDEN), cells)


def test_a_prompt_repeats_the_image_token() -> None:
    prompt = prompt_of((2, 3))
    assert prompt.ids.tolist() == [1, 2, 3, 9, 9, 9, 9, 9, 9, 4, 5]
    assert (len(prompt), prompt.pooled) == (11, (2, 10)), "from the last of the head to the first of the tail"
    assert TEMPLATE.num_tokens == 5


@pytest.mark.parametrize(("cells", "behind"), [((2, 3), 6), ((3, 2), 6), ((1, 1), 4), ((5, 1), 8)])
def test_positions_of_images(cells: tuple[int, int], behind: int) -> None:
    positions = stack([prompt_of(cells)], HIDDEN)[POSITION_IDS][0].tolist()
    grid = [[3, 3 + row, 3 + column] for row in range(cells[0]) for column in range(cells[1])]
    assert positions == [[0] * 3, [1] * 3, [2] * 3, *grid, [behind] * 3, [behind + 1] * 3]


def test_texts_and_images_in_one_run() -> None:
    text, one, two = np.array([7, 9, 7]), prompt_of((1, 2)), prompt_of((2, 2))
    inputs = stack([text, one, two], HIDDEN)
    assert inputs["input_ids"].shape == (3, 9)
    assert inputs["attention_mask"].sum(axis=1).tolist() == [3, 7, 9]
    assert inputs[POSITION_IDS][0, :3].tolist() == [[0] * 3, [1] * 3, [2] * 3]
    assert [np.flatnonzero(row).tolist() for row in inputs[POOLING_MASK]] == [
        [0, 1, 2], [2, 3, 4, 5], [2, 3, 4, 5, 6, 7],
    ]  # fmt: skip
    flat = inputs["input_ids"].ravel()
    assert (flat[inputs[IMAGE_PLACES]] == 9).all()
    assert inputs[IMAGE_PLACES].tolist() == [12, 13, 21, 22, 23, 24], "not the literal token of the text"
    assert inputs[IMAGE_VECTORS].tolist() == [*one.vectors.tolist(), *two.vectors.tolist()]


def test_texts_alone_have_no_image_vectors() -> None:
    inputs = stack([np.array([1, 2]), np.array([3])], HIDDEN)
    assert inputs[IMAGE_VECTORS].shape == (0, HIDDEN)
    assert [str(inputs[name].dtype) for name in (IMAGE_VECTORS, IMAGE_PLACES)] == ["float32", "int64"]
    assert (inputs[POOLING_MASK] == inputs["attention_mask"]).all()


@pytest.mark.parametrize(
    ("patches", "groups"),
    [
        ([3072], [[0]]),
        ([256] * 8, [[0, 1, 2, 3, 4, 5, 6, 7]]),
        ([3072, 256, 3072, 256], [[0], [2], [1, 3]]),
        ([ALONE_FROM_PATCHES] * 2, [[0], [1]]),
        ([MAX_PATCHES * 2, 4], [[0], [1]]),
    ],
    ids=str,
)
def test_images_are_grouped(patches: list[int], groups: list[list[int]]) -> None:
    assert plan(dict(enumerate(patches))) == groups


def test_groups_hold_every_image_once_within_the_budget() -> None:
    patches = {key: int(count) for key, count in enumerate(np.random.default_rng(0).integers(4, 3000, 300))}
    groups = plan(patches)
    assert sorted(key for group in groups for key in group) == sorted(patches)
    for group in groups:
        longest = max(patches[key] for key in group)
        assert len(group) == 1 or (longest < ALONE_FROM_PATCHES and longest * len(group) <= MAX_PATCHES)
    assert len(groups) < len(patches)
    assert plan({}) == []
