"""The Qwen2.5-VL vision tower: patches of images to the vectors that stand for them. Knows no text.

Values are flat, (patches, size), the patches of all images of a run one behind the other, window by window.
A layer attends within windows or within whole images; either way patches are laid out in rows of equal
length, given as places of patches with -1 where a row is shorter. So a window's attention costs what a window
costs, and only rows that are shorter need a mask. Source: transformers, modeling_qwen2_5_vl.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import onnx

from convert.graph import Constant, Graph, node, subgraph
from convert.prenorm import Parts
from convert.vision_config import NUM_CHANNELS, VisionConfig
from convert.weights import FLOAT32, Floats, Tensor, Weights
from service.errors import BakeError
from service.vision import IMAGE_PATCHES, IMAGE_VECTORS, PATCH_POSITIONS, PIXEL_VALUES, WINDOW_PATCHES

TOWER = "visual"
BLOCKS = f"{TOWER}.blocks"
FLOAT, INT32 = 1, 6
ROTARY_VALUES = ("rotary.places", "rotary.cos", "rotary.sin")
PROJECTIONS = ("q", "k", "v")


@dataclass(frozen=True)
class Layout:
    """Names of values that say how patches are laid out in rows for attention."""

    places: str  # (rows, longest), of patches; 0 where there is none
    is_patch: str  # (rows * longest,)
    mask: str  # (rows, longest) int32
    is_padded: str  # whether any row is shorter
    shape: str  # (rows, longest, -1)


def build(weights: Weights, config: VisionConfig) -> Graph:
    """Build the tower. Its inputs and output are those of service.vision."""
    if (found := weights.num_layers(BLOCKS)) != config.num_layers:
        raise BakeError(
            f"{weights.origin} has {found} vision layers, its config.json says {config.num_layers}"
        )
    graph = Graph("vision", is_flat=True)
    parts = Parts(graph, _divided(weights, config), config.norm_eps)
    graph.input(PIXEL_VALUES, np.float32, ("patches", config.patch_values))
    graph.input(PATCH_POSITIONS, np.int64, ("patches", 2))
    windows = _layout(graph, WINDOW_PATCHES, ("windows", "window_patches"))
    images = _layout(graph, IMAGE_PATCHES, ("images", "image_patches"))
    _turns(graph, config)
    size = config.hidden_size
    hidden = parts.linear(f"{TOWER}.patch_embed.proj", PIXEL_VALUES, (size, config.patch_values))
    normed = parts.norm(f"{BLOCKS}.0.norm1", hidden, size)
    for index in range(config.num_layers):
        block = f"{BLOCKS}.{index}"
        layout = images if index in config.full_layers else windows
        context = _attention(parts, config, f"{block}.attn", normed, layout)
        added = parts.linear(f"{block}.attn.proj", context, (size, size), has_bias=True)
        normed, hidden = parts.add_norm(f"{block}.norm2", (hidden, added), size)
        sizes = (size, config.feed_forward_size)
        added = parts.feed_forward(f"{block}.mlp", normed, sizes, has_bias=True)
        is_last = index + 1 == config.num_layers
        following = f"{TOWER}.merger.ln_q" if is_last else f"{BLOCKS}.{index + 1}.norm1"
        normed, hidden = parts.add_norm(following, (hidden, added), size)
    _merger(parts, config, normed)
    return graph


def _divided(weights: Weights, config: VisionConfig) -> Weights:
    """Name the parts of fused tensors, and the patch convolution as the linear layer that it is."""
    size = config.hidden_size
    made = {}
    for index in range(config.num_layers):
        for end in ("weight", "bias"):
            fused = weights[f"{BLOCKS}.{index}.attn.qkv.{end}"]
            if fused.shape[0] != 3 * size:
                raise BakeError(f"{fused.key} has {fused.shape[0]} rows instead of {3 * size}")
            for part, name in enumerate(PROJECTIONS):
                made[f"{BLOCKS}.{index}.attn.{name}.{end}"] = Tensor(
                    f"{fused.key}.{name}",
                    (size, *fused.shape[1:]),
                    partial(fused.rows, part * size, (part + 1) * size),
                )
    name = f"{TOWER}.patch_embed.proj.weight"
    kernel = weights[name]
    patch = (NUM_CHANNELS, config.temporal_patch_size, config.patch_size, config.patch_size)
    if kernel.shape != (size, *patch):
        raise BakeError(f"{kernel.key} has shape {kernel.shape} instead of {(size, *patch)}")
    shape = (size, config.patch_values)
    made[name] = Tensor(f"{kernel.key}.flat", shape, lambda: kernel.read().reshape(shape))
    return weights.updated(made)


def _layout(graph: Graph, name: str, dimensions: Sequence[str]) -> Layout:
    graph.input(name, np.int64, dimensions)
    zero = graph.value("zero", 0)
    held = graph.op("GreaterOrEqual", f"{name}.held", [name, zero])
    mask = graph.op("Cast", f"{name}.mask", [held], {"to": INT32})
    lowest = graph.op("ReduceMin", f"{name}.lowest", [name], {"keepdims": 0})
    rows = graph.op("Shape", f"{name}.rows", [name])
    return Layout(
        places=graph.op("Max", f"{name}.places", [name, zero]),
        is_patch=graph.op("Reshape", f"{name}.is_patch", [held, graph.value("flat", [-1])]),
        mask=mask,
        is_padded=graph.op("Less", f"{name}.is_padded", [lowest, zero]),
        shape=graph.op("Concat", f"{name}.shape", [rows, graph.value("rest", [-1])], {"axis": 0}),
    )


def _turns(graph: Graph, config: VisionConfig) -> None:
    """Compute cos and sin of every patch's angles: those of its row, then those of its column."""
    positions = graph.op("Cast", "positions", [PATCH_POSITIONS], {"to": FLOAT})
    table = graph.constant("frequencies", _frequencies(config))
    angles = graph.exact_op("MatMul", "angles", [positions, table])  # (patches, head / 2), exact: one is 0
    for function, value in zip(("Cos", "Sin"), ROTARY_VALUES[1:], strict=True):
        graph.op(function, value, [angles])
    count = graph.op("Shape", "num_patches", [PATCH_POSITIONS], {"start": 0, "end": 1})
    end = graph.op("Squeeze", "num_patches.scalar", [count])
    order = graph.op("Range", "order", [graph.value("zero", 0), end, graph.value("one", 1)])
    graph.op("Unsqueeze", ROTARY_VALUES[0], [order, graph.value("first_axis", [0])])


def _frequencies(config: VisionConfig) -> Constant:
    """Make the (2, head / 2) matrix that takes rows and columns to angles."""
    quarter = config.head_size // 4
    steps = np.arange(quarter, dtype=np.float32) / np.float32(quarter)

    def read() -> Floats:
        frequencies = 1 / np.power(np.float32(config.rotary_base), steps)
        made = np.zeros((2, 2 * quarter), dtype=np.float32)
        made[0, :quarter] = made[1, quarter:] = frequencies
        return made

    return Constant(f"frequencies.{config.rotary_base}.{quarter}", (2, 2 * quarter), FLOAT32, read)


def _attention(parts: Parts, config: VisionConfig, name: str, normed: str, layout: Layout) -> str:
    """Return the name of what the heads see, (patches, hidden), before it is projected."""
    graph, size = parts.graph, config.hidden_size
    first_axis = graph.value("first_axis", [0])
    arguments = []
    for part in PROJECTIONS:
        value = parts.linear(f"{name}.{part}", normed, (size, size), has_bias=True)
        if part != "v":
            row = graph.op("Unsqueeze", f"{name}.{part}.row", [value, first_axis])
            turned = graph.op("RotaryEmbedding", f"{name}.{part}.turned", [row, *ROTARY_VALUES])
            value = graph.op("Squeeze", f"{name}.{part}.flat", [turned, first_axis])
        arguments.append(value)
    branches = {
        "then_branch": _padded(graph, config, name, arguments, layout),
        "else_branch": _unpadded(graph, config, name, arguments, layout),
    }
    return graph.op("If", f"{name}.context", [layout.is_padded], branches)


def _padded(
    graph: Graph, config: VisionConfig, name: str, arguments: Sequence[str], layout: Layout
) -> onnx.GraphProto:
    """Lay patches out by their places, attend under a mask, and take back what is at patches."""
    prefix = f"{name}.padded"
    rows, seen = [f"{prefix}.{part}" for part in PROJECTIONS], f"{prefix}.seen"
    nodes = [
        node("Gather", row, [value, layout.places], [row]) for row, value in zip(rows, arguments, strict=True)
    ]
    nodes += _seen(graph, config, [*rows, "", layout.mask], seen)
    nodes += [node("Compress", prefix, [seen, layout.is_patch], [prefix], {"axis": 0})]
    return subgraph(prefix, nodes)


def _unpadded(
    graph: Graph, config: VisionConfig, name: str, arguments: Sequence[str], layout: Layout
) -> onnx.GraphProto:
    """Attend in rows of equal length, which lie one behind the other as they are."""
    prefix = f"{name}.unpadded"
    rows = [f"{prefix}.{part}" for part in PROJECTIONS]
    nodes = [
        node("Reshape", row, [value, layout.shape], [row]) for row, value in zip(rows, arguments, strict=True)
    ]
    return subgraph(prefix, nodes + _seen(graph, config, rows, prefix))


def _seen(graph: Graph, config: VisionConfig, inputs: Sequence[str], result: str) -> list[onnx.NodeProto]:
    """Make the nodes that attend in rows (rows, longest, hidden) and make the result flat again."""
    context, flat = f"{result}.context", graph.value("flat.hidden", [-1, config.hidden_size])
    heads = {"num_heads": config.num_heads}
    return [
        node("MultiHeadAttention", context, inputs, [context], heads),
        node("Reshape", result, [context, flat], [result]),
    ]


def _merger(parts: Parts, config: VisionConfig, normed: str) -> None:
    """Turn the patches of a cell into one vector and declare it: (cells, output_size)."""
    graph, wide = parts.graph, config.hidden_size * config.patches_of_cell
    cells = graph.op("Reshape", "cells", [normed, graph.value("flat.cells", [-1, wide])])
    first, second = (f"{TOWER}.merger.mlp.{index}" for index in (0, 2))
    inner = parts.linear(first, cells, (wide, wide))
    bias = graph.constant(f"{first}.bias", parts.weights.constant(f"{first}.bias", (wide,)))
    activated = graph.op("BiasGelu", f"{first}.gelu", [inner, bias])
    vectors = parts.linear(second, activated, (config.output_size, wide), has_bias=True)
    graph.op("Identity", IMAGE_VECTORS, [vectors])
    graph.output(IMAGE_VECTORS, ("cells", config.output_size))
