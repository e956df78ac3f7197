"""jina-embeddings-v4 in numpy, in float64, written from the formulas: what graphs are compared with.

The vision tower attends under a mask over all patches, said by the window and the image that a patch is in;
nothing is laid out in windows. LoRA is merged by hand.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from tests import qwen_vl
from tests.qwen_vl import PROJECTOR, Sizes

Grid = tuple[int, int]  # patches down and across
ERF = np.vectorize(math.erf, otypes=[float])
TEXT_PREFIXES = ("model.language_model.", "model.visual.", "model.")


@dataclass(frozen=True)
class Picture:
    """Patches (patches, values), cell by cell, and how many there are down and across."""

    patches: np.ndarray
    grid: Grid


@dataclass(frozen=True)
class Prompt:
    """Token ids, and where the vectors of an image (cells, hidden) stand in the place of words."""

    ids: np.ndarray
    vectors: np.ndarray | None = None
    cells: Grid = (0, 0)
    begin: int = 0

    @property
    def end(self) -> int:
        return self.begin + self.cells[0] * self.cells[1]


@dataclass(frozen=True, kw_only=True)
class Reference:
    """A model in float64, from the formulas. Other fields than by default are mistakes one could make."""

    tensors: dict[str, np.ndarray]
    sizes: Sizes
    full_blocks: tuple[int, ...]
    sections: tuple[int, ...]
    theta: float = qwen_vl.THETA
    vision_theta: float = qwen_vl.VISION_THETA
    vision_eps: float = qwen_vl.VISION_EPS
    eps: float = qwen_vl.EPS
    without: tuple[str, ...] = ()  # ends of names of biases that are forgotten
    swaps_rows_and_columns: bool = False
    mixes_images: bool = False
    gelu_by_tanh: bool = False
    counts_on_by_tokens: bool = False  # positions behind an image
    is_causal: bool = True

    # --- vision -------------------------------------------------------------------------------------------

    def image_vectors(self, pictures: Sequence[Picture]) -> list[np.ndarray]:
        """Run images together; return for each its vectors (cells, hidden), rows first."""
        sizes = self.sizes
        places = np.concatenate([self.places(picture.grid) for picture in pictures])
        lengths = [len(picture.patches) for picture in pictures]
        image = np.repeat(np.arange(len(pictures)) * (not self.mixes_images), lengths)
        window = np.concatenate([image[:, None], places // sizes.window_patches], axis=1)
        kernel = self.tensors["visual.patch_embed.proj.weight"].reshape(sizes.hidden, -1)
        states = np.concatenate([picture.patches for picture in pictures]).astype(np.float64) @ kernel.T
        for number in range(sizes.blocks):
            groups = image[:, None] if number in self.full_blocks else window
            is_seen = (groups[:, None] == groups[None]).all(-1)  # (patches, patches)
            states = self.block(f"visual.blocks.{number}", states, places, is_seen)
        normed = self.norm("visual.merger.ln_q", states, self.vision_eps)
        inner = self.linear("visual.merger.mlp.0", normed.reshape(-1, sizes.hidden * sizes.merge**2))
        vectors = self.linear("visual.merger.mlp.2", self.gelu(inner))
        return np.split(vectors, np.cumsum(lengths)[:-1] // sizes.merge**2)

    def places(self, grid: Grid) -> np.ndarray:
        """Return row and column of every patch: cell by cell, rows first, in a cell rows first too."""
        side = self.sizes.merge
        found = [
            (down + row, across + column)
            for down in range(0, grid[0], side)
            for across in range(0, grid[1], side)
            for row in range(side)
            for column in range(side)
        ]
        return np.array(found)[:, ::-1] if self.swaps_rows_and_columns else np.array(found)

    def block(self, name: str, states: np.ndarray, places: np.ndarray, is_seen: np.ndarray) -> np.ndarray:
        """Append attention, then the gated feed-forward."""
        sizes = self.sizes
        normed = self.norm(f"{name}.norm1", states, self.vision_eps)
        query, key, value = (
            part.reshape(len(states), sizes.heads, -1)
            for part in np.split(self.linear(f"{name}.attn.qkv", normed), 3, axis=1)
        )
        quarter = sizes.hidden // sizes.heads // 4
        frequencies = self.vision_theta ** (-np.arange(quarter) / quarter)
        angles = np.concatenate([places[:, :1] * frequencies, places[:, 1:] * frequencies], axis=1)
        query, key = turned(query, angles), turned(key, angles)
        context = np.concatenate(
            [attention(query[:, head], key[:, head], value[:, head], is_seen) for head in range(sizes.heads)],
            axis=1,
        )
        states = states + self.linear(f"{name}.attn.proj", context)
        normed = self.norm(f"{name}.norm2", states, self.vision_eps)
        return np.asarray(states + self.feed_forward(f"{name}.mlp", normed))

    def gelu(self, values: np.ndarray) -> np.ndarray:
        if self.gelu_by_tanh:
            inner = math.sqrt(2 / math.pi) * (values + 0.044715 * values**3)
            return np.asarray(values * (1 + np.tanh(inner)) / 2)
        return np.asarray(values * (1 + ERF(values / math.sqrt(2))) / 2)

    # --- text ---------------------------------------------------------------------------------------------

    def states(self, prompt: Prompt) -> np.ndarray:
        """Return the last hidden states (tokens, hidden)."""
        sizes = self.sizes.text
        states = self.tensors["embed_tokens.weight"][prompt.ids]
        if prompt.vectors is not None:
            states[prompt.begin : prompt.end] = prompt.vectors
        angles = self.angles(prompt)
        tokens = np.arange(len(states))
        is_seen = (tokens[None] <= tokens[:, None]) | (not self.is_causal)
        for number in range(sizes.layers):
            layer = f"layers.{number}"
            normed = self.norm(f"{layer}.input_layernorm", states, self.eps)
            query, key, value = (
                self.linear(f"{layer}.self_attn.{part}_proj", normed).reshape(len(states), -1, sizes.head)
                for part in "qkv"
            )
            query, key = turned(query, angles), turned(key, angles)
            group = sizes.heads // sizes.kv_heads
            contexts = [
                attention(query[:, head], key[:, head // group], value[:, head // group], is_seen)
                for head in range(sizes.heads)
            ]
            states = states + self.linear(f"{layer}.self_attn.o_proj", np.concatenate(contexts, axis=1))
            normed = self.norm(f"{layer}.post_attention_layernorm", states, self.eps)
            states = states + self.feed_forward(f"{layer}.mlp", normed)
        return self.norm("norm", states, self.eps)

    def positions(self, prompt: Prompt) -> np.ndarray:
        """Return time, row and column of every token: (tokens, 3)."""
        found: list[tuple[int, int, int]] = []
        following = 0  # the position that text goes on with
        for token in range(len(prompt.ids)):
            if prompt.begin <= token < prompt.end:
                row, column = divmod(token - prompt.begin, prompt.cells[1])
                found.append((prompt.begin, prompt.begin + row, prompt.begin + column))
                following = token + 1 if self.counts_on_by_tokens else max(map(max, found)) + 1
            else:
                found.append((following,) * 3)
                following += 1
        return np.array(found)

    def angles(self, prompt: Prompt) -> np.ndarray:
        """Return what every token is turned by, (tokens, head / 2): each angle by a stream of its own."""
        half = self.sizes.text.head // 2
        streams = [stream for stream, size in enumerate(self.sections) for _ in range(size)]
        frequencies = self.theta ** (-np.arange(half) / half)
        return np.asarray(self.positions(prompt)[:, streams] * frequencies)

    def multivector(self, states: np.ndarray) -> np.ndarray:
        """Project every token, not normalised."""
        return self.linear(PROJECTOR, states)

    # --- both ---------------------------------------------------------------------------------------------

    def feed_forward(self, name: str, normed: np.ndarray) -> np.ndarray:
        gate = self.linear(f"{name}.gate_proj", normed)
        gated = gate / (1 + np.exp(-gate)) * self.linear(f"{name}.up_proj", normed)
        return self.linear(f"{name}.down_proj", gated)

    def linear(self, name: str, states: np.ndarray) -> np.ndarray:
        product = states @ self.tensors[f"{name}.weight"].T
        if f"{name}.bias" not in self.tensors or name.endswith(self.without or ("\0",)):
            return np.asarray(product)
        return np.asarray(product + self.tensors[f"{name}.bias"])

    def norm(self, name: str, states: np.ndarray, eps: float) -> np.ndarray:
        size = np.sqrt((states**2).mean(-1, keepdims=True) + eps)
        return np.asarray(self.tensors[f"{name}.weight"] * states / size)


def attention(query: np.ndarray, key: np.ndarray, value: np.ndarray, is_seen: np.ndarray) -> np.ndarray:
    """Attend with one head, (tokens, head), to what is seen (tokens, tokens)."""
    scores = query @ key.T / math.sqrt(query.shape[1])
    scores[~is_seen] = -np.inf
    shares = np.exp(scores - scores.max(-1, keepdims=True))
    return np.asarray(shares / shares.sum(-1, keepdims=True) @ value)


def turned(heads: np.ndarray, angles: np.ndarray) -> np.ndarray:
    """Turn (tokens, heads, head) by angles (tokens, head / 2), the first half with the second."""
    first, second = np.split(heads, 2, axis=-1)
    cos, sin = np.cos(angles)[:, None], np.sin(angles)[:, None]
    return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def read(folder: Path, task: str | None = None, sizes: Sizes = qwen_vl.SIZES) -> Reference:
    """Read a checkpoint, the adapter of a task merged into it."""
    tensors = {}
    for name, values in qwen_vl.read_tensors(folder).items():
        plain = name
        for prefix in TEXT_PREFIXES:
            if name.startswith(prefix):
                plain = ("visual." if "visual." in prefix else "") + name.removeprefix(prefix)
                break
        tensors[plain] = values.astype(np.float64)
    if task:
        for name, update in updates(folder, task, sizes.scaling).items():
            tensors[name] = tensors[name] + update
    return Reference(tensors=tensors, sizes=sizes, full_blocks=sizes.full_blocks, sections=sizes.sections)


def updates(folder: Path, task: str, scaling: float) -> dict[str, np.ndarray]:
    """Return scaling * (B @ A) for every weight that a task's adapter changes."""
    stored = {
        name: values.astype(np.float64)
        for name, values in load_file(folder / qwen_vl.ADAPTER_WEIGHTS).items()
    }
    found = {}
    for name, side_b in stored.items():
        module, end = name.removeprefix("base_model.model."), f".lora_B.{task}.weight"
        if module.endswith(end):
            plain = module.removeprefix("model.language_model.").replace(end, ".weight")
            found[plain] = scaling * side_b @ stored[name.replace(".lora_B.", ".lora_A.")]
    return found


def unit(vectors: np.ndarray) -> np.ndarray:
    """Scale the last axis to length 1."""
    return np.asarray(vectors / np.linalg.norm(vectors, axis=-1, keepdims=True))
