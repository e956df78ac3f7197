"""BERT-family graphs: post-norm layers, learned or rotary positions. Knows no pooling and no task.

The graph takes the unmasked attention kernel whenever no row is padded: the masked one needs memory for
tokens x tokens per head, and both give the same numbers.
"""

from __future__ import annotations

import numpy as np

from convert import rotary
from convert.encoder_config import EncoderConfig
from convert.graph import ATTENTION_MASK, INPUT_IDS, Columns, Constant, Graph, branch
from convert.lora import TABLE_A, TABLE_B, WORD_TABLE
from convert.weights import FLOAT32, Floats, Weights
from service.errors import BakeError


def build(
    weights: Weights, config: EncoderConfig, *, first_only: bool = False, separator_id: int | None = None
) -> tuple[Graph, str]:
    """Build the graph from token ids to the last hidden states; return it and the name of those states.

    Inputs: `input_ids`, `attention_mask` (batch, tokens) int64. States: (batch, tokens, hidden) float32;
    with `first_only` those of the first token alone, (batch, 1, hidden): the last layer computes no others.
    With `separator_id` tokens behind the first of this id are of type 1.
    """
    if (found := weights.num_layers(config.layout.layer)) != config.num_layers:
        raise BakeError(f"{weights.origin} has {found} layers, its config.json says {config.num_layers}")
    graph = Graph("encoder")
    graph.input(INPUT_IDS, np.int64, ("batch", "tokens"))
    graph.input(ATTENTION_MASK, np.int64, ("batch", "tokens"))
    graph.op("Cast", "mask", [ATTENTION_MASK], {"to": 6})  # int32
    lowest = graph.op("ReduceMin", "mask.lowest", ["mask"], {"keepdims": 0})
    graph.op("Equal", "is_padded", [lowest, graph.value("zero.int32", 0, np.int32)])
    hidden = _embeddings(graph, weights, config, separator_id)
    for layer in range(config.num_layers):
        name = f"{config.layout.layer}.{layer}"
        context = _attention(graph, weights, config, name, hidden)
        if first_only and layer + 1 == config.num_layers:
            columns = graph.scaled_by[context]
            hidden, context = (_first_token(graph, value) for value in (hidden, context))
            graph.scaled_by[context] = columns
        hidden = _attention_output(graph, weights, config, name, (context, hidden))
        hidden = _feed_forward(graph, weights, config, name, hidden)
    return graph, hidden


def _first_token(graph: Graph, value: str) -> str:
    return graph.op("Gather", f"{value}.first", [value, graph.value("first_token", [0])], {"axis": 1})


def _embeddings(graph: Graph, weights: Weights, config: EncoderConfig, separator_id: int | None) -> str:
    """Sum word, adapter, position and type, then normalise."""
    shape = (config.vocabulary_size, config.hidden_size)
    table = graph.constant("word_embeddings", weights.constant(f"{WORD_TABLE}.weight", shape))
    summed = graph.op("Gather", "words", [table, INPUT_IDS])
    if TABLE_A in weights:
        summed = graph.op("Add", "words.adapted", [summed, _word_update(graph, weights)])
    if separator_id is not None:
        table = graph.constant("second_type", _second_type(weights, config))
        types = token_types(graph, separator_id)
        update = graph.exact_op("Gather", "words.second_type", [table, types])
        summed = graph.op("Add", "words.typed", [summed, update])
    if config.rotary_base is None:
        added = _positions(graph, weights, config)
    else:
        added = graph.constant("token_type", _token_type(weights, config))
    return _norm(
        graph, weights, config, config.layout.embeddings_norm, graph.op("Add", "embedded", [summed, added])
    )


def _word_update(graph: Graph, weights: Weights) -> str:
    """Apply a word adapter to the rows looked up: the table itself stays the same for all tasks."""
    rows = graph.constant("words.adapter.rows", weights.constant(TABLE_A, weights[TABLE_A].shape))
    narrow = graph.exact_op("Gather", "words.adapter.narrow", [rows, INPUT_IDS])  # (batch, tokens, rank)
    columns = graph.constant("words.adapter.columns", weights.constant(TABLE_B, weights[TABLE_B].shape))
    return graph.exact_op("MatMul", "words.adapter", [narrow, columns])


def _positions(graph: Graph, weights: Weights, config: EncoderConfig) -> str:
    """Look up the learned positions, to which the vector of token type 0, which every token has, is added.

    Where an architecture skips padding positions, a padding token that a text contains has a position of its
    own, and the tokens behind it count on as if it were not there. Source: transformers, XLM-RoBERTa.
    """
    table = graph.constant("position_embeddings", _position_table(weights, config))
    if config.padding_id is None:
        num_tokens = graph.op("Shape", "num_tokens", [INPUT_IDS], {"start": 1, "end": 2})
        return graph.op("Slice", "positions", [table, graph.value("begin", [0]), num_tokens])
    is_padding = graph.op("Equal", "is_padding", [INPUT_IDS, graph.value("padding_id", config.padding_id)])
    counts = graph.op("Cast", "counts", [graph.op("Not", "is_counted", [is_padding])], {"to": 7})  # int64
    running = graph.op("CumSum", "running_count", [counts, graph.value("tokens_axis", 1)])
    places = graph.op("Mul", "positions.places", [running, counts])  # 0 for padding, 1 for the first token
    return graph.exact_op("Gather", "positions", [table, places])


def _position_table(weights: Weights, config: EncoderConfig) -> Constant:
    first_row = config.padding_id or 0
    num_rows = config.num_position_rows
    positions = weights.constant("embeddings.position_embeddings.weight", (num_rows, config.hidden_size))
    token_type = _token_type(weights, config)

    def read() -> Floats:
        rows, added = np.asarray(positions.read(), np.float32), np.asarray(token_type.read(), np.float32)
        return rows[first_row:] + added

    shape = (num_rows - first_row, config.hidden_size)
    return Constant(f"{positions.key}+{token_type.key}", shape, FLOAT32, read)


def _token_type(weights: Weights, config: EncoderConfig) -> Constant:
    types = weights["embeddings.token_type_embeddings.weight"]
    if types.shape[1:] != (config.hidden_size,):
        raise BakeError(f"the table of token types has shape {types.shape}, config.json says otherwise")
    return Constant(f"{types.key}[0]", types.shape[1:], FLOAT32, lambda: types.read()[0])


def _second_type(weights: Weights, config: EncoderConfig) -> Constant:
    """Make the (2, hidden) table of what is added to type 0, which every token has already."""
    types = weights["embeddings.token_type_embeddings.weight"]

    def read() -> Floats:
        rows = types.read()
        return np.stack([np.zeros_like(rows[0]), rows[1] - rows[0]])

    return Constant(f"{types.key}[1]-[0]", (2, config.hidden_size), FLOAT32, read)


def token_types(graph: Graph, separator_id: int) -> str:
    """Return the name of 0 for the first text and the separator behind it, 1 for the second: (batch, tokens).

    NOTE: a text that spells the separator itself, which no tokenizer escapes, is cut there.
    """
    is_separator = graph.op("Equal", "is_separator", [INPUT_IDS, graph.value("separator", separator_id)])
    found = graph.op("Cast", "separators", [is_separator], {"to": 7})  # int64
    axis = graph.value("tokens_axis", 1)
    before = graph.op("CumSum", "separators.before", [found, axis], {"exclusive": 1})
    return graph.op("Min", "token_types", [before, graph.value("second", 1)])


def _attention(graph: Graph, weights: Weights, config: EncoderConfig, layer: str, hidden: str) -> str:
    """Return the name of what the heads see, (batch, tokens, hidden), before it is projected."""
    layout, name = config.layout, f"{layer}.attention"
    parts = [f"{layer}.{part}" for part in layout.query_key_value]
    size = config.hidden_size
    kernel = weights.joined([f"{part}.weight" for part in parts], (3 * size, size))
    weight = graph.constant(f"{name}.qkv.weight", kernel)
    bias = graph.constant(f"{name}.qkv.bias", weights.joined([f"{part}.bias" for part in parts], (3 * size,)))
    projected = graph.op("MatMul", f"{name}.qkv", [hidden, weight])  # (batch, tokens, 3 * hidden)
    if config.rotary_base is None:
        arguments = [*graph.split(f"{name}.split", projected, 3), bias]
    else:
        biased = graph.op("Add", f"{name}.qkv.biased", [projected, bias])
        query, key, value = graph.split(f"{name}.split", biased, 3)
        arguments = [_rotated(graph, config, query), _rotated(graph, config, key), value, ""]
    heads = {"num_heads": config.num_heads}
    graph.scaled_by[f"{name}.context"] = (Columns(weight, 2 * size, size), Columns(bias, 2 * size, size))
    return graph.op(
        "If",
        f"{name}.context",
        ["is_padded"],
        {
            "then_branch": branch(f"{name}.masked", "MultiHeadAttention", [*arguments, "mask"], heads),
            "else_branch": branch(f"{name}.unmasked", "MultiHeadAttention", arguments, heads),
        },
    )


def _attention_output(
    graph: Graph, weights: Weights, config: EncoderConfig, layer: str, values: tuple[str, str]
) -> str:
    """Project what the heads see, then add it to the states it was seen from and normalise."""
    layout, (context, hidden) = config.layout, values
    shape = (config.hidden_size, config.hidden_size)
    output = linear(graph, weights, f"{layer}.{layout.attention_output}", context, shape)
    return _add_norm(graph, weights, config, f"{layer}.{layout.attention_norm}", (output, hidden))


def _rotated(graph: Graph, config: EncoderConfig, value: str) -> str:
    """Turn (batch, tokens, hidden) by the token's position, head by head, in halves (NeoX)."""
    base, size = config.rotary_base or 0, config.head_size
    tables = [
        graph.constant(f"rotary.{kind}", rotary.table(kind, base, config.max_positions, size))
        for kind in rotary.FUNCTIONS
    ]
    begin = graph.value("rotary.begin", [0])
    attributes = {"num_heads": config.num_heads, "interleaved": 0}
    return graph.op("RotaryEmbedding", f"{value}.rotated", [value, begin, *tables], attributes)


def _feed_forward(graph: Graph, weights: Weights, config: EncoderConfig, layer: str, hidden: str) -> str:
    layout, name = config.layout, f"{layer}.{config.layout.up}"
    narrow_size, wide_size = config.hidden_size, config.feed_forward_size
    weight = graph.constant(f"{name}.weight", weights.joined([f"{name}.weight"], (wide_size, narrow_size)))
    bias = graph.constant(f"{name}.bias", weights.constant(f"{name}.bias", (wide_size,)))
    wide = graph.op("MatMul", name, [hidden, weight])  # (batch, tokens, feed_forward)
    activated = graph.op("BiasGelu", f"{name}.gelu", [wide, bias])
    narrow = linear(graph, weights, f"{layer}.{layout.down}", activated, (narrow_size, wide_size))
    return _add_norm(graph, weights, config, f"{layer}.{layout.output_norm}", (narrow, hidden))


def linear(graph: Graph, weights: Weights, name: str, value: str, shape: tuple[int, int]) -> str:
    """Append a linear layer of (out, in) under its tensors' name; return the name of its result."""
    weight = graph.constant(f"{name}.weight", weights.joined([f"{name}.weight"], shape))
    bias = graph.constant(f"{name}.bias", weights.constant(f"{name}.bias", shape[:1]))
    return graph.op("Add", f"{name}.biased", [graph.op("MatMul", name, [value, weight]), bias])


def _add_norm(
    graph: Graph, weights: Weights, config: EncoderConfig, name: str, values: tuple[str, str]
) -> str:
    """Add the residual, then normalise, as two nodes: faster on the CPU than the fused operator."""
    return _norm(graph, weights, config, name, graph.op("Add", f"{name}.sum", values))


def _norm(graph: Graph, weights: Weights, config: EncoderConfig, name: str, value: str) -> str:
    shape = (config.hidden_size,)
    scale = graph.constant(f"{name}.weight", weights.constant(f"{name}.weight", shape))
    bias = graph.constant(f"{name}.bias", weights.constant(f"{name}.bias", shape))
    attributes = {"axis": -1, "epsilon": config.norm_eps}
    graph.scaled_by[name] = tuple(Columns(constant, 0, config.hidden_size) for constant in (scale, bias))
    return graph.op("LayerNormalization", name, [value, scale, bias], attributes)
