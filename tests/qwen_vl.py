"""Checkpoints of jina-embeddings-v4 in its published layout, tiny, made on the spot.

Every tensor is drawn from its own name and holds bfloat16 values: all layouts hold the same weights.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import ml_dtypes
import numpy as np
from safetensors.numpy import load_file

from tests import qwen
from tests.xlmr import BF16, Tensors, write_json, write_safetensors

JINA_V4 = "jina-embeddings-v4"
ADAPTERS = ("retrieval", "text-matching", "code")  # graphs of a whole bundle
VISION_BEGIN, VISION_END, IMAGE = "<|vision_start|>", "<|vision_end|>", "<|image_pad|>"
PROMPT = "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>Describe the image.<|im_end|>\n"
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
MIN_PIXELS, MAX_PIXELS = 3136, 602_112
THETA, VISION_THETA = 100.0, 10_000.0  # the first is a million in reality: with few angles, columns turn none
EPS, VISION_EPS = 1e-3, 1e-6  # the first is 1e-6 in reality: two that differ cannot be exchanged
CHANNELS = 3
PROJECTOR = "multi_vector_projector"
BIAS, PATCH_GAIN, IMAGE_GAIN, UPDATE = 0.4, 2.0, 0.3, 0.5  # spreads: of biases, of what layers make
ADAPTER_FOLDER, ADAPTER_CONFIG = "adapters", "adapters/adapter_config.json"
ADAPTER_WEIGHTS = "adapters/adapter_model.safetensors"
PROCESSOR = "preprocessor_config.json"
INDEX = "model.safetensors.index.json"


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """The sizes of a model: of its text layers, its vision tower, its projector and its adapters."""

    text: qwen.Sizes = qwen.Sizes(rows=1100, hidden=64, is_qwen3=False)
    sections: tuple[int, int, int] = (2, 3, 3)
    blocks: int = 3
    full_blocks: tuple[int, ...] = (1,)
    hidden: int = 32
    heads: int = 2
    feed_forward: int = 44
    patch: int = 14
    repeats: int = 2
    merge: int = 2
    window: int = 112  # pixels
    projection: int = 24
    rank: int = 4
    alpha: int = 6

    @property
    def patch_values(self) -> int:
        """Return the numbers of one patch."""
        return CHANNELS * self.repeats * self.patch**2

    @property
    def window_patches(self) -> int:
        """Return the patches on the side of a window."""
        return self.window // self.patch

    @property
    def scaling(self) -> float:
        """Return what the adapters' products are multiplied by."""
        return self.alpha / self.rank

    @property
    def text_config(self) -> dict[str, object]:
        """What is said of the text layers."""
        content = self.text.config | {
            "model_type": "qwen2_5_vl_text", "image_token_id": None, "video_token_id": None,
            "rms_norm_eps": EPS, "rope_theta": THETA,
            "rope_scaling": {
                "mrope_section": [*self.sections], "rope_type": "default", "type": "default",
            },
        }  # fmt: skip
        if self.text.hidden == self.text.heads * self.text.head:
            return content
        return content | {"head_dim": self.text.head}

    @property
    def vision_config(self) -> dict[str, object]:
        """What is said of the vision tower."""
        return {
            "depth": self.blocks, "fullatt_block_indexes": [*self.full_blocks], "hidden_act": "silu",
            "hidden_size": self.hidden, "in_channels": CHANNELS, "in_chans": CHANNELS,
            "initializer_range": 0.02, "intermediate_size": self.feed_forward, "model_type": "qwen2_5_vl",
            "num_heads": self.heads, "out_hidden_size": self.text.hidden, "patch_size": self.patch,
            "spatial_merge_size": self.merge, "spatial_patch_size": self.patch,
            "temporal_patch_size": self.repeats, "tokens_per_second": 2, "torch_dtype": "bfloat16",
            "window_size": self.window,
        }  # fmt: skip

    @property
    def config(self) -> dict[str, object]:
        """What config.json holds: sizes of the text layers twice, at the top and in a part of their own."""
        own = ("model_type", "image_token_id", "video_token_id")
        made = qwen.tokenizer((VISION_BEGIN, VISION_END, IMAGE))
        return {
            "_name_or_path": "jinaai/jina-embeddings-v4", "architectures": ["JinaEmbeddingsV4Model"],
            **{key: value for key, value in self.text_config.items() if key not in own},
            "model_type": "qwen2_5_vl", "image_token_id": qwen.token_id(made, IMAGE),
            "single_vector_pool_strategy": "mean", "multi_vector_projector_dim": self.projection,
            "matryoshka_dims": [self.text.hidden // 4, self.text.hidden // 2, self.text.hidden],
            "task_names": [*ADAPTERS], "text_config": self.text_config, "vision_config": self.vision_config,
            "transformers_version": "4.52.0",
        }  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How the same model is stored."""

    text_prefix: str = "model."
    vision_prefix: str = "visual."
    shards: int = 2
    dtype: str = BF16
    has_projector: bool = True  # of multi-vectors, in the weights and in the adapters
    has_processor: bool = True  # preprocessor_config.json


SIZES = Sizes()
PUBLISHED = Layout()
NEWER = Layout(
    text_prefix="model.language_model.", vision_prefix="model.visual."
)  # transformers from 4.52 on


def wide(hidden: int) -> Sizes:
    """Return the sizes of a model with vectors of another size, such as the published 2048."""
    return replace(SIZES, text=replace(SIZES.text, hidden=hidden))


# --- checkpoints ------------------------------------------------------------------------------------------


def write_jina_v4(folder: Path, sizes: Sizes = SIZES, layout: Layout = PUBLISHED, seed: int = 0) -> Path:
    """Write weights, the adapters of all tasks in one file, configs and a tokenizer; return the folder."""
    text, tower = qwen.decoder_tensors(sizes.text, seed), vision_tensors(sizes, seed)
    projector = linear(PROJECTOR, sizes.projection, sizes.text.hidden, 1.0, seed)
    head = projector if layout.has_projector else {}
    named = {layout.text_prefix + name: values for name, values in text.items()} | head
    named |= {layout.vision_prefix + name: values for name, values in tower.items()}
    qwen.write_weights(folder, named, qwen.Layout(shards=layout.shards, dtype=layout.dtype))
    write_adapters(folder, sizes, text | head, seed)
    write_json(folder / "config.json", sizes.config)
    if layout.has_processor:
        write_json(folder / PROCESSOR, processor_config(sizes))
    qwen.write_tokenizer(folder, markers=(VISION_BEGIN, VISION_END, IMAGE))
    return folder


def write_adapters(folder: Path, sizes: Sizes, adapted: Tensors, seed: int = 0) -> None:
    """Write one PEFT file with an update for every matrix of the text layers and of the projector."""
    made: Tensors = {}
    for name, values in adapted.items():
        if values.ndim != 2 or name.startswith("embed_tokens"):
            continue
        tree = "" if name.startswith(PROJECTOR) else "model.language_model."
        for task in ADAPTERS:
            module = f"base_model.model.{tree}{name.removesuffix('.weight')}"
            sides = {side: f"{module}.lora_{side}.{task}.weight" for side in "AB"}
            (rows, columns), spread = values.shape, UPDATE / (sizes.scaling * sizes.rank**0.5)
            made[sides["A"]] = drawn(sides["A"], (sizes.rank, columns), columns**-0.5, seed)
            made[sides["B"]] = drawn(sides["B"], (rows, sizes.rank), spread, seed)
    write_safetensors(folder / ADAPTER_WEIGHTS, made, BF16)
    write_json(folder / ADAPTER_CONFIG, adapter_config(sizes))


def adapter_config(sizes: Sizes = SIZES) -> dict[str, object]:
    """What PEFT writes of the adapters."""
    layers = "down_proj|gate_proj|up_proj|k_proj|q_proj|v_proj|o_proj"
    return {
        "base_model_name_or_path": "jinaai/jina-embeddings-v4", "bias": "none",
        "exclude_modules": ".*visual.*", "fan_in_fan_out": False, "inference_mode": False,
        "lora_alpha": sizes.alpha, "lora_dropout": 0.1, "peft_type": "LORA", "r": sizes.rank,
        "target_modules": f"(.*(model).*({layers}).*$|.*(multi_vector_projector).*$)",
        "task_type": "FEATURE_EXTRACTION", "use_dora": False, "use_rslora": False,
    }  # fmt: skip


def processor_config(sizes: Sizes = SIZES) -> dict[str, object]:
    """What is said of pixels."""
    return {
        "do_convert_rgb": True, "do_normalize": True, "do_rescale": True, "do_resize": True,
        "image_mean": [*MEAN], "image_processor_type": "Qwen2VLImageProcessorFast", "image_std": [*STD],
        "max_pixels": MAX_PIXELS, "merge_size": sizes.merge, "min_pixels": MIN_PIXELS,
        "patch_size": sizes.patch, "processor_class": "JinaEmbeddingsV4Processor", "resample": 3,
        "rescale_factor": 0.00392156862745098,
        "size": {"longest_edge": MAX_PIXELS, "shortest_edge": MIN_PIXELS},
        "temporal_patch_size": sizes.repeats,
    }  # fmt: skip


# --- weights ----------------------------------------------------------------------------------------------


def vision_tensors(sizes: Sizes, seed: int = 0) -> Tensors:
    """Draw the weights of a vision tower by their names without prefix."""
    size, merged = sizes.hidden, sizes.hidden * sizes.merge**2
    shape = (size, CHANNELS, sizes.repeats, sizes.patch, sizes.patch)
    name = "patch_embed.proj.weight"
    tensors = {name: drawn(name, shape, PATCH_GAIN / sizes.patch_values**0.5, seed)}
    for number in range(sizes.blocks):
        block = f"blocks.{number}"
        tensors |= norm(f"{block}.norm1", size, seed) | norm(f"{block}.norm2", size, seed)
        tensors |= linear(f"{block}.attn.qkv", 3 * size, size, 1.5, seed)
        tensors |= linear(f"{block}.attn.proj", size, size, 1.5, seed)
        tensors |= linear(f"{block}.mlp.gate_proj", sizes.feed_forward, size, 1.5, seed)
        tensors |= linear(f"{block}.mlp.up_proj", sizes.feed_forward, size, 1.0, seed)
        tensors |= linear(f"{block}.mlp.down_proj", size, sizes.feed_forward, 1.2, seed)
    tensors |= norm("merger.ln_q", size, seed) | linear("merger.mlp.0", merged, merged, 1.2, seed)
    return tensors | linear("merger.mlp.2", sizes.text.hidden, merged, IMAGE_GAIN, seed)


def linear(name: str, rows: int, columns: int, gain: float, seed: int = 0) -> Tensors:
    """Draw an (out, in) weight that multiplies the size of its input by `gain`, and a bias far from 0."""
    bias = drawn(f"{name}.bias", (rows,), BIAS * gain, seed)
    return {f"{name}.weight": drawn(f"{name}.weight", (rows, columns), gain / columns**0.5, seed)} | {
        f"{name}.bias": bias
    }


def norm(name: str, size: int, seed: int = 0) -> Tensors:
    """Draw a norm whose weights differ from each other: it cannot be missing."""
    values = np.random.default_rng([seed, *name.encode()]).uniform(0.4, 1.6, size)
    return {f"{name}.weight": _rounded(values)}


def drawn(name: str, shape: tuple[int, ...], spread: float, seed: int = 0) -> np.ndarray:
    """Draw values around 0."""
    return _rounded(spread * np.random.default_rng([seed, *name.encode()]).standard_normal(shape))


def _rounded(values: np.ndarray) -> np.ndarray:
    """Keep what bfloat16 holds."""
    return np.asarray(values.astype(ml_dtypes.bfloat16).astype(np.float32))


# --- files ------------------------------------------------------------------------------------------------


def read_tensors(folder: Path) -> Tensors:
    """Read all shards under the names that they have in the files."""
    files = sorted(folder.glob("model*.safetensors"))
    return {name: values.astype(np.float32) for file in files for name, values in load_file(file).items()}


def change_tensors(folder: Path, *without: str, **changes: np.ndarray) -> None:
    """Change tensors of a checkpoint, or leave some out; it has one file then."""
    tensors = {name: values for name, values in read_tensors(folder).items() if name not in without}
    for file in (*folder.glob("model*.safetensors"), *folder.glob(INDEX)):
        file.unlink()
    qwen.write_weights(folder, tensors | changes, qwen.Layout())
