"""BERT-family graphs: post-norm layers, learned positions. Reads sizes from config.json; knows no pooling.

The graph takes the unmasked attention kernel whenever no row is padded: the masked one needs memory for
tokens x tokens per head, and both give the same numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from convert.checkpoint import Checkpoint, Floats
from convert.graph import Constant, Graph, branch
from service.errors import BakeError

INPUT_IDS = "input_ids"
ATTENTION_MASK = "attention_mask"
MODEL_TYPE = "bert"
ACTIVATIONS = ("gelu",)  # the exact (erf) form, as BiasGelu computes it


@dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """The sizes of a BERT-family encoder."""

    num_layers: int
    num_heads: int
    hidden_size: int
    norm_eps: float
    max_positions: int

    def __post_init__(self) -> None:
        """Refuse sizes that do not fit together."""
        if min(self.num_layers, self.num_heads, self.hidden_size, self.max_positions) < 1:
            raise BakeError(f"config.json has a size below 1: {self}")
        if self.hidden_size % self.num_heads:
            raise BakeError(
                f"hidden_size {self.hidden_size} is not a multiple of num_attention_heads {self.num_heads}"
            )


def read_config(config: Mapping[str, object]) -> EncoderConfig:
    """Take the sizes from a config.json. Raises BakeError on what this builder cannot represent."""
    if config.get("model_type", MODEL_TYPE) != MODEL_TYPE:
        raise BakeError(
            f"model_type {config['model_type']!r} is not {MODEL_TYPE!r}: this recipe cannot read it"
        )
    if config.get("hidden_act") not in ACTIVATIONS:
        raise BakeError(f"hidden_act {config.get('hidden_act')!r} is not supported (only {ACTIVATIONS})")
    if config.get("position_embedding_type", "absolute") != "absolute":
        raise BakeError(f"position_embedding_type {config['position_embedding_type']!r} is not supported")
    try:
        return EncoderConfig(
            num_layers=int(str(config["num_hidden_layers"])),
            num_heads=int(str(config["num_attention_heads"])),
            hidden_size=int(str(config["hidden_size"])),
            norm_eps=float(str(config["layer_norm_eps"])),
            max_positions=int(str(config["max_position_embeddings"])),
        )
    except KeyError as error:
        raise BakeError(f"config.json lacks {error.args[0]!r}") from error
    except ValueError as error:
        raise BakeError(f"config.json has a size that is no number: {error}") from error


def build(checkpoint: Checkpoint, config: EncoderConfig) -> tuple[Graph, str]:
    """Build the graph from token ids to the last hidden states; return it and the name of those states.

    Inputs: `input_ids`, `attention_mask` (batch, tokens) int64. States: (batch, tokens, hidden) float32.
    """
    if checkpoint.has_tensors(f"encoder.layer.{config.num_layers}."):
        raise BakeError(f"the checkpoint has more than the {config.num_layers} layers of its config.json")
    graph = Graph("encoder")
    graph.input(INPUT_IDS, np.int64, ("batch", "tokens"))
    graph.input(ATTENTION_MASK, np.int64, ("batch", "tokens"))
    graph.op("Cast", "mask", [ATTENTION_MASK], {"to": 6})  # int32
    lowest = graph.op("ReduceMin", "mask.lowest", ["mask"], {"keepdims": 0})
    graph.op("Equal", "is_padded", [lowest, graph.value("zero.int32", 0, np.int32)])
    hidden = _embeddings(graph, checkpoint, config)
    for layer in range(config.num_layers):
        hidden = _attention(graph, checkpoint, config, f"encoder.layer.{layer}.attention", hidden)
        hidden = _feed_forward(graph, checkpoint, config, f"encoder.layer.{layer}", hidden)
    return graph, hidden


def _embeddings(graph: Graph, checkpoint: Checkpoint, config: EncoderConfig) -> str:
    table = graph.constant("word_embeddings", checkpoint.constant("embeddings.word_embeddings.weight"))
    words = graph.op("Gather", "words", [table, INPUT_IDS])
    num_tokens = graph.op("Shape", "num_tokens", [INPUT_IDS], {"start": 1, "end": 2})
    positions = graph.constant("position_embeddings", _positions(checkpoint))
    begin = graph.value("begin", [0])
    used = graph.op("Slice", "positions", [positions, begin, num_tokens])  # (tokens, hidden)
    return _norm(
        graph, checkpoint, config, "embeddings.LayerNorm", graph.op("Add", "embedded", [words, used])
    )


def _positions(checkpoint: Checkpoint) -> Constant:
    """Join the position table and the vector of token type 0, which every token has."""
    names = ("embeddings.position_embeddings.weight", "embeddings.token_type_embeddings.weight")

    def read() -> Floats:
        positions, types = (checkpoint.read(name) for name in names)
        joined: Floats = positions + types[0]
        return joined

    return Constant("+".join(names), checkpoint.shape(names[0]), np.dtype(np.float32), read)


def _attention(graph: Graph, checkpoint: Checkpoint, config: EncoderConfig, name: str, hidden: str) -> str:
    parts = [f"{name}.self.{part}" for part in ("query", "key", "value")]
    weight = graph.constant(f"{name}.qkv.weight", checkpoint.joined([f"{part}.weight" for part in parts]))
    bias = graph.constant(f"{name}.qkv.bias", checkpoint.joined([f"{part}.bias" for part in parts]))
    projected = graph.op("MatMul", f"{name}.qkv", [hidden, weight])  # (batch, tokens, 3 * hidden)
    query_key_value = graph.split(f"{name}.split", projected, 3)
    heads = {"num_heads": config.num_heads}
    arguments = [*query_key_value, bias]
    context = graph.op(
        "If",
        f"{name}.context",
        ["is_padded"],
        {
            "then_branch": branch(f"{name}.masked", "MultiHeadAttention", [*arguments, "mask"], heads),
            "else_branch": branch(f"{name}.unmasked", "MultiHeadAttention", arguments, heads),
        },
    )
    output = _linear(graph, checkpoint, f"{name}.output.dense", context)
    return _add_norm(graph, checkpoint, config, f"{name}.output", (output, hidden))


def _feed_forward(graph: Graph, checkpoint: Checkpoint, config: EncoderConfig, name: str, hidden: str) -> str:
    weight = graph.constant(
        f"{name}.up.weight", checkpoint.constant(f"{name}.intermediate.dense.weight", transposed=True)
    )
    bias = graph.constant(f"{name}.up.bias", checkpoint.constant(f"{name}.intermediate.dense.bias"))
    wide = graph.op("MatMul", f"{name}.up", [hidden, weight])  # (batch, tokens, feed_forward)
    activated = graph.op("BiasGelu", f"{name}.gelu", [wide, bias])
    narrow = _linear(graph, checkpoint, f"{name}.output.dense", activated)
    return _add_norm(graph, checkpoint, config, f"{name}.output", (narrow, hidden))


def _linear(graph: Graph, checkpoint: Checkpoint, name: str, value: str) -> str:
    weight = graph.constant(f"{name}.weight", checkpoint.constant(f"{name}.weight", transposed=True))
    bias = graph.constant(f"{name}.bias", checkpoint.constant(f"{name}.bias"))
    return graph.op("Add", f"{name}.biased", [graph.op("MatMul", name, [value, weight]), bias])


def _add_norm(
    graph: Graph, checkpoint: Checkpoint, config: EncoderConfig, name: str, values: tuple[str, str]
) -> str:
    """Add the residual, then normalise, as two nodes: faster on the CPU than the fused operator."""
    return _norm(graph, checkpoint, config, f"{name}.LayerNorm", graph.op("Add", f"{name}.sum", values))


def _norm(graph: Graph, checkpoint: Checkpoint, config: EncoderConfig, name: str, value: str) -> str:
    scale = graph.constant(f"{name}.weight", checkpoint.constant(f"{name}.weight"))
    bias = graph.constant(f"{name}.bias", checkpoint.constant(f"{name}.bias"))
    attributes = {"axis": -1, "epsilon": config.norm_eps}
    return graph.op("LayerNormalization", name, [value, scale, bias], attributes)
