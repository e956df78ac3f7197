"""Qwen2 and Qwen3 in numpy, in float64, written from the formulas: what graphs are compared with."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from tests import qwen


@dataclass(frozen=True, kw_only=True)
class Reference:
    """A model in float64, from the formulas. Other fields than by default are mistakes one could make."""

    tensors: dict[str, np.ndarray]
    sizes: qwen.Sizes
    theta: float = qwen.THETA
    eps: float = qwen.EPS
    has_biases: bool = True
    has_head_norms: bool = True
    is_causal: bool = True
    interleaves_kv_heads: bool = False
    interleaves_angles: bool = False
    rotates_values: bool = False

    def states(self, ids: np.ndarray) -> np.ndarray:
        """Return the last hidden states (tokens, hidden)."""
        states = self.tensors["embed_tokens.weight"][ids]
        for number in range(self.sizes.layers):
            layer = f"layers.{number}"
            context = self.attention(f"{layer}.self_attn", self.norm(f"{layer}.input_layernorm", states))
            states = states + self.linear(f"{layer}.self_attn.o_proj", context)
            normed = self.norm(f"{layer}.post_attention_layernorm", states)
            gate = self.linear(f"{layer}.mlp.gate_proj", normed)
            gated = gate / (1 + np.exp(-gate)) * self.linear(f"{layer}.mlp.up_proj", normed)
            states = states + self.linear(f"{layer}.mlp.down_proj", gated)
        return self.norm("norm", states)

    def attention(self, name: str, normed: np.ndarray) -> np.ndarray:
        """Return what the heads see, side by side: (tokens, heads * head)."""
        query, key = self.rotated(self.heads(name, "q", normed)), self.rotated(self.heads(name, "k", normed))
        value = self.heads(name, "v", normed)
        value = self.rotated(value) if self.rotates_values else value
        is_hidden = np.triu(np.ones((len(normed), len(normed)), dtype=bool), 1) & self.is_causal
        group = self.sizes.heads // self.sizes.kv_heads
        contexts = []
        for head in range(self.sizes.heads):
            other = head % self.sizes.kv_heads if self.interleaves_kv_heads else head // group
            scores = query[:, head] @ key[:, other].T / math.sqrt(self.sizes.head)
            scores[is_hidden] = -np.inf
            shares = np.exp(scores - scores.max(-1, keepdims=True))
            contexts.append(shares / shares.sum(-1, keepdims=True) @ value[:, other])
        return np.concatenate(contexts, axis=-1)

    def heads(self, name: str, part: str, normed: np.ndarray) -> np.ndarray:
        """Return one projection by heads: (tokens, heads, head)."""
        projected = self.linear(f"{name}.{part}_proj", normed)
        bias = self.tensors.get(f"{name}.{part}_proj.bias")
        if bias is not None and self.has_biases:
            projected = projected + bias
        projected = projected.reshape(len(normed), -1, self.sizes.head)
        if f"{name}.{part}_norm.weight" in self.tensors and self.has_head_norms:
            projected = self.norm(f"{name}.{part}_norm", projected)
        return projected

    def rotated(self, heads: np.ndarray) -> np.ndarray:
        """Turn (tokens, heads, head) by position, in halves, or in neighbours by mistake."""
        half = self.sizes.head // 2
        angles = np.arange(len(heads))[:, None] * self.theta ** (-np.arange(half) / half)
        cos, sin = np.cos(angles)[:, None], np.sin(angles)[:, None]
        first, second = slice(half), slice(half, None)
        if self.interleaves_angles:
            first, second = slice(0, None, 2), slice(1, None, 2)
        turned = np.empty_like(heads)
        turned[..., first] = heads[..., first] * cos - heads[..., second] * sin
        turned[..., second] = heads[..., second] * cos + heads[..., first] * sin
        return turned

    def linear(self, name: str, states: np.ndarray) -> np.ndarray:
        return np.asarray(states @ self.tensors[f"{name}.weight"].T)

    def norm(self, name: str, states: np.ndarray) -> np.ndarray:
        size = np.sqrt((states**2).mean(-1, keepdims=True) + self.eps)
        return np.asarray(self.tensors[f"{name}.weight"] * states / size)


def read(folder: Path, sizes: qwen.Sizes) -> Reference:
    """Read a checkpoint of one file, its names with or without prefix."""
    stored = load_file(folder / "model.safetensors")
    tensors = {
        name.removeprefix(qwen.MODEL_PREFIX): value.astype(np.float64) for name, value in stored.items()
    }
    return Reference(tensors=tensors, sizes=sizes)


def unit(vectors: np.ndarray) -> np.ndarray:
    """Scale the last axis to length 1."""
    return np.asarray(vectors / np.linalg.norm(vectors, axis=-1, keepdims=True))
