"""Sizes of the Qwen2.5-VL vision tower, read from config.json. Knows no graph."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from service.errors import BakeError

ACTIVATION = "silu"
NORM_EPS = 1e-6  # transformers has it in the code, not in the config
ROTARY_BASE = 10_000.0
NUM_CHANNELS = 3


@dataclass(frozen=True, kw_only=True)
class VisionConfig:
    """The sizes of a vision tower."""

    num_layers: int
    hidden_size: int
    num_heads: int
    feed_forward_size: int
    output_size: int
    patch_size: int  # pixels on a side
    temporal_patch_size: int  # times that an image is repeated
    merge_size: int  # patches on the side of a cell, which becomes one vector
    window_size: int  # cells on the side of an attention window
    full_layers: tuple[int, ...]  # layers that attend over the whole image
    norm_eps: float = NORM_EPS
    rotary_base: float = ROTARY_BASE

    def __post_init__(self) -> None:
        """Refuse sizes that do not fit together."""
        if min(self.num_layers, self.hidden_size, self.num_heads, self.patch_size, self.merge_size) < 1:
            raise BakeError(f"config.json has a size below 1 in vision_config: {self}")
        if self.window_size < 1:
            raise BakeError("config.json has a window_size in vision_config that is smaller than a cell")
        if any(not 0 <= index < self.num_layers for index in self.full_layers):
            raise BakeError(
                f"config.json has fullatt_block_indexes {list(self.full_layers)} in vision_config, "
                f"but a depth of {self.num_layers}"
            )
        if self.hidden_size % self.num_heads or self.head_size % 4:
            raise BakeError(
                f"config.json has hidden_size {self.hidden_size} and num_heads {self.num_heads} in "
                "vision_config: heads must have a multiple of 4 values"
            )

    @property
    def head_size(self) -> int:
        """Return the width of one attention head."""
        return self.hidden_size // self.num_heads

    @property
    def patch_values(self) -> int:
        """Return the numbers of one patch: channels, repeats, rows, columns."""
        return NUM_CHANNELS * self.temporal_patch_size * self.patch_size**2

    @property
    def patches_of_cell(self) -> int:
        """Return the patches that become one vector."""
        return self.merge_size**2


def read(config: Mapping[str, object]) -> VisionConfig:
    """Take the sizes from a config.json. Raises BakeError on what this builder cannot represent."""
    vision = config.get("vision_config")
    if not isinstance(vision, Mapping):
        raise BakeError("config.json lacks 'vision_config'")
    if vision.get("hidden_act", ACTIVATION) != ACTIVATION:
        raise BakeError(
            f"config.json has hidden_act {vision['hidden_act']!r} in vision_config instead of {ACTIVATION!r}"
        )
    if _channels(vision) != NUM_CHANNELS:
        raise BakeError(f"config.json has {_channels(vision)} channels in vision_config, not {NUM_CHANNELS}")
    try:
        sizes = {key: int(str(vision[key])) for key in (
            "depth", "hidden_size", "num_heads", "intermediate_size", "out_hidden_size", "patch_size",
            "temporal_patch_size", "spatial_merge_size", "window_size",
        )}  # fmt: skip
        full_layers = tuple(int(str(index)) for index in vision["fullatt_block_indexes"])
        return VisionConfig(
            num_layers=sizes["depth"],
            hidden_size=sizes["hidden_size"],
            num_heads=sizes["num_heads"],
            feed_forward_size=sizes["intermediate_size"],
            output_size=sizes["out_hidden_size"],
            patch_size=sizes["patch_size"],
            temporal_patch_size=sizes["temporal_patch_size"],
            merge_size=sizes["spatial_merge_size"],
            window_size=sizes["window_size"] // (sizes["patch_size"] * sizes["spatial_merge_size"] or 1),
            full_layers=full_layers,
        )
    except KeyError as error:
        raise BakeError(f"config.json lacks {error.args[0]!r} in vision_config") from error
    except (TypeError, ValueError) as error:
        raise BakeError(f"config.json has a size that is no number in vision_config: {error}") from error


def _channels(vision: Mapping[str, object]) -> object:
    """Read the channels, under the name that the tower's code reads."""
    return vision.get("in_channels", vision.get("in_chans", NUM_CHANNELS))
