"""Full-size random checkpoints of jina-embeddings-v4 in its published layout. Knows names and shapes.

Text layers and vision blocks may be fewer than published, to try something or to compute what all of them
would take: every eighth block attends over the whole image, so that any multiple of 8 has the real share.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tests.bench import checkpoint_files, full_size_qwen
from tests.bench.checkpoint_files import BFLOAT16, Shapes, Weights
from tests.bench.full_size_qwen import DEFAULT_TOKENIZER, Decoder

NAME = "jina-embeddings-v4"
ADAPTERS = ("retrieval", "text-matching", "code")
ADAPTER_WEIGHTS, ADAPTER_CONFIG = "adapters/adapter_model.safetensors", "adapters/adapter_config.json"
RANK, PROJECTED, NUM_SHARDS = 32, 128, 2
PROJECTOR = "multi_vector_projector"
IMAGE_TOKEN = 151_655
MIN_PIXELS, MAX_PIXELS = 3136, 602_112
CHANNELS, REPEATS, PATCH, MERGE, WINDOW = 3, 2, 14, 2, 112  # the last in pixels
FULL_EVERY = 8  # blocks; of so many, the last attends over the whole image
PATCH_VALUES, PATCHES_OF_CELL = CHANNELS * REPEATS * PATCH**2, MERGE**2
PATCHES_OF_WINDOW = (WINDOW // PATCH) ** 2


@dataclass(frozen=True)
class Sizes:
    """The text layers and the vision tower, whose vectors have the text's width."""

    text: Decoder
    blocks: int
    hidden: int
    feed_forward: int
    heads: int

    def few(self, num_layers: int, num_blocks: int) -> Sizes:
        """Return the same widths with other depths."""
        return replace(self, text=replace(self.text, layers=num_layers), blocks=num_blocks)

    @property
    def full_blocks(self) -> list[int]:
        """List the blocks that attend over the whole image."""
        return list(range(FULL_EVERY - 1, self.blocks, FULL_EVERY))

    def num_parameters(self, adapters: tuple[str, ...]) -> int:
        """Count the values of a checkpoint with these adapters."""
        return sum(map(math.prod, [*_shapes(self).values(), *_adapter_shapes(self, adapters).values()]))

    def share_of_blocks(self, num_patches: int) -> float:
        """Return the part of the tower's multiplications for an image that grows with the blocks."""
        size, num_full = self.hidden, len(self.full_blocks)
        layer = 4 * size**2 + 3 * size * self.feed_forward
        seen = num_full * num_patches + (self.blocks - num_full) * min(num_patches, PATCHES_OF_WINDOW)
        blocks = self.blocks * layer + 2 * size * seen
        wide = PATCHES_OF_CELL * size
        ends = PATCH_VALUES * size + (wide**2 + wide * self.text.hidden) / PATCHES_OF_CELL
        return blocks / (blocks + ends)


JINA_V4 = Sizes(Decoder("qwen2", 151_936, 2048, 11_008, 36, 16, 2, 128), 32, 1280, 3420, 16)


def write(
    folder: Path,
    tokenizer: Path = DEFAULT_TOKENIZER,
    sizes: Sizes = JINA_V4,
    adapters: tuple[str, ...] = ADAPTERS,
) -> None:
    """Write jinaai/jina-embeddings-v4: two files with their index, and one of all adapters."""
    files, index = checkpoint_files.sharded(Weights(_shapes(sizes), BFLOAT16), NUM_SHARDS)
    adapted = Weights(_adapter_shapes(sizes, adapters), BFLOAT16)
    documents = {
        "config.json": _config(sizes),
        "preprocessor_config.json": _processor_config(),
        ADAPTER_CONFIG: _adapter_config(),
        **full_size_qwen.qwen25_tokenizer_files(tokenizer),
        **index,
    }
    checkpoint_files.write(folder, {**files, ADAPTER_WEIGHTS: adapted}, documents)


def _shapes(sizes: Sizes) -> Shapes:
    shapes = full_size_qwen.decoder_shapes(sizes.text, sizes.text.layers, "model.")
    shapes |= {f"{PROJECTOR}.weight": (PROJECTED, sizes.text.hidden), f"{PROJECTOR}.bias": (PROJECTED,)}
    size, wide = sizes.hidden, sizes.hidden * PATCHES_OF_CELL
    shapes["visual.patch_embed.proj.weight"] = size, CHANNELS, REPEATS, PATCH, PATCH
    linear = {"visual.merger.mlp.0": (wide, wide), "visual.merger.mlp.2": (sizes.text.hidden, wide)}
    for block in (f"visual.blocks.{index}." for index in range(sizes.blocks)):
        shapes[f"{block}norm1.weight"] = shapes[f"{block}norm2.weight"] = (size,)
        linear |= {f"{block}attn.qkv": (3 * size, size), f"{block}attn.proj": (size, size)}
        linear |= {f"{block}mlp.{part}_proj": (sizes.feed_forward, size) for part in ("gate", "up")}
        linear[f"{block}mlp.down_proj"] = size, sizes.feed_forward
    for name, shape in linear.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    return shapes | {"visual.merger.ln_q.weight": (size,)}


def _adapter_shapes(sizes: Sizes, adapters: tuple[str, ...]) -> Shapes:
    """Return an update of every matrix of the text layers and of the projector; the tower has none."""
    shapes: Shapes = {}
    for name, shape in _shapes(sizes).items():
        if len(shape) != 2 or "embed_tokens" in name or name.startswith("visual."):
            continue
        module = name.removesuffix(".weight").replace("model.", "model.language_model.")
        rows, columns = shape
        for task in adapters:
            shapes[f"base_model.model.{module}.lora_A.{task}.weight"] = RANK, columns
            shapes[f"base_model.model.{module}.lora_B.{task}.weight"] = rows, RANK
    return shapes


def _config(sizes: Sizes) -> dict[str, Any]:
    text = full_size_qwen.config(sizes.text, sizes.text.layers)
    half = sizes.text.head_dim // 2
    sections = [half // 4, half * 3 // 8, half * 3 // 8]  # 16, 24, 24 of 64
    text |= {
        "max_position_embeddings": 128_000,
        "rope_scaling": {"mrope_section": sections, "rope_type": "default", "type": "default"},
    }
    vision = {
        "depth": sizes.blocks, "fullatt_block_indexes": sizes.full_blocks, "hidden_act": "silu",
        "hidden_size": sizes.hidden, "in_channels": CHANNELS, "in_chans": CHANNELS,
        "intermediate_size": sizes.feed_forward, "model_type": "qwen2_5_vl", "num_heads": sizes.heads,
        "out_hidden_size": sizes.text.hidden, "patch_size": PATCH, "spatial_merge_size": MERGE,
        "spatial_patch_size": PATCH, "temporal_patch_size": REPEATS, "tokens_per_second": 2,
        "window_size": WINDOW,
    }  # fmt: skip
    return text | {
        "architectures": ["JinaEmbeddingsV4Model"], "model_type": "qwen2_5_vl",
        "image_token_id": IMAGE_TOKEN, "single_vector_pool_strategy": "mean",
        "multi_vector_projector_dim": PROJECTED, "task_names": [*ADAPTERS],
        "text_config": text | {"model_type": "qwen2_5_vl_text"}, "vision_config": vision,
    }  # fmt: skip


def _processor_config() -> dict[str, Any]:
    return {
        "do_convert_rgb": True, "do_normalize": True, "do_rescale": True, "do_resize": True,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_processor_type": "Qwen2VLImageProcessorFast",
        "image_std": [0.26862954, 0.26130258, 0.27577711], "max_pixels": MAX_PIXELS, "merge_size": MERGE,
        "min_pixels": MIN_PIXELS, "patch_size": PATCH, "resample": 3, "rescale_factor": 1 / 255,
        "size": {"longest_edge": MAX_PIXELS, "shortest_edge": MIN_PIXELS}, "temporal_patch_size": REPEATS,
    }  # fmt: skip


def _adapter_config() -> dict[str, Any]:
    return {
        "base_model_name_or_path": f"jinaai/{NAME}", "bias": "none", "exclude_modules": ".*visual.*",
        "fan_in_fan_out": False, "lora_alpha": RANK, "lora_dropout": 0.1, "peft_type": "LORA", "r": RANK,
        "target_modules": (
            "(.*(model).*(down_proj|gate_proj|up_proj|k_proj|q_proj|v_proj|o_proj).*$"
            f"|.*({PROJECTOR}).*$)"
        ),
        "task_type": "FEATURE_EXTRACTION", "use_dora": False, "use_rslora": False,
    }  # fmt: skip
