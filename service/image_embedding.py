"""From pixels to prompts of a text graph, through the vision tower. Knows graphs, no task and no HTTP."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from service import images, multimodal
from service.errors import ModelOutputInvalid
from service.graphs import Graphs
from service.multimodal import ImagePrompt, ImageTemplate
from service.shares import Runs
from service.tokenization import Tokenizer
from service.vision import IMAGE_VECTORS, Vision
from service.windows import Patches, tower_inputs

MAX_PATCHES = 4096  # of one run of the tower, unless one image alone has more; measured: more is not faster
# Images from this size on run alone: where images are of unequal size, attention over the whole of them takes
# memory for rows x longest x longest patches.
ALONE_FROM_PATCHES = 1024

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class ImageTower:
    """A loaded vision tower; its graph is opened when the first image comes."""

    vision: Vision
    template: ImageTemplate
    graphs: Graphs
    scheduler: Runs

    def num_tokens(self, pixels: Pixels) -> int:
        """Return the tokens of an image and of the prompt that it stands in."""
        down, across = images.grid(pixels, self.vision)
        return down * across // self.vision.merge_size**2 + self.template.num_tokens

    @property
    def max_tokens(self) -> int:
        """Return the tokens computed for the largest image: by the tower, then again in its prompt."""
        cell_pixels = (self.vision.patch_size * self.vision.merge_size) ** 2
        return 2 * (self.vision.max_pixels // cell_pixels) + self.template.num_tokens

    def prompts(self, pictures: Mapping[int, Pixels]) -> Iterator[dict[int, ImagePrompt]]:
        """Turn images (height, width, 3) into prompts, a group of them at a time, under the keys given.

        Raises ModelUnavailable when the tower's graph is broken, ModelOutputInvalid for NaN and infinity.
        """
        grids = {key: images.grid(pixels, self.vision) for key, pixels in pictures.items()}
        for group in plan({key: down * across for key, (down, across) in grids.items()}):
            patches = [Patches(images.patches(pictures[key], self.vision), grids[key]) for key in group]
            vectors = self._vectors(patches)
            yield {
                key: self.template.prompt(rows, self._cells(grids[key]))
                for key, rows in zip(group, vectors, strict=True)
            }

    def _vectors(self, patches: Sequence[Patches]) -> list[npt.NDArray[np.float32]]:
        """Run the tower; return the vectors of each image, cell by cell, rows first."""
        inputs, rows = tower_inputs(patches, self.vision)
        lengths = [len(image.values) // self.vision.merge_size**2 for image in patches]
        # A cell has 4 patches, each of which goes through a fifth of the weights that a token goes through.
        session, num_tokens = self.graphs.vision_session(), sum(lengths)
        computed = self.scheduler.run(session, inputs, IMAGE_VECTORS, num_tokens)
        if not np.isfinite(computed).all():
            raise ModelOutputInvalid(self.graphs.manifest.name)
        return np.split(computed[rows], np.cumsum(lengths)[:-1])

    def _cells(self, grid: tuple[int, int]) -> tuple[int, int]:
        down, across = (side // self.vision.merge_size for side in grid)
        return down, across


def open_tower(graphs: Graphs, tokenizer: Tokenizer, scheduler: Runs) -> ImageTower | None:
    """Prepare the tower of a model that takes images; None for others. Raises BundleError."""
    vision = graphs.manifest.vision
    if vision is None:
        return None
    return ImageTower(vision, multimodal.template(tokenizer, vision), graphs, scheduler)


def plan(patches: Mapping[int, int]) -> list[list[int]]:
    """Group images by their numbers of patches, largest first, every key once.

    rows x longest of a group stays within MAX_PATCHES; from ALONE_FROM_PATCHES on images run alone.
    """
    groups: list[list[int]] = []
    for key in sorted(patches, key=lambda key: -patches[key]):
        longest = patches[groups[-1][0]] if groups else MAX_PATCHES
        if longest < ALONE_FROM_PATCHES and longest * (len(groups[-1]) + 1) <= MAX_PATCHES:
            groups[-1].append(key)
        else:
            groups.append([key])
    return groups
