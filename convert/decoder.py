"""Qwen-family graphs: pre-norm layers, grouped queries, rotary positions. Knows no head and no task.

Values are flat, (batch * tokens, size): only attention and the choice of tokens know rows. Texts are padded
on the right; what is computed at padding is never read, for no token looks at a later one. The last layer's
output is computed only for the tokens that a head reads.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from convert import rotary
from convert.decoder_config import DecoderConfig
from convert.graph import ATTENTION_MASK, INPUT_IDS, Graph, node
from convert.prenorm import Parts
from convert.weights import Weights
from service.errors import BakeError

LAYERS = "layers"
WORD_TABLE = "embed_tokens.weight"
LAST_ROWS = "rows.last"
INT32 = 6
# Of positions in several streams: the place of each token in the tables, and the tables of this run.
ROTARY_VALUES = ("rotary.places", "rotary.cos", "rotary.sin")


def start(weights: Weights, config: DecoderConfig) -> Graph:
    """Open a graph with its inputs and the values that layers share.

    Inputs: `input_ids`, `attention_mask` (batch, tokens) int64, padded on the right.
    """
    if (found := weights.num_layers(LAYERS)) != config.num_layers:
        raise BakeError(f"{weights.origin} has {found} layers, its config.json says {config.num_layers}")
    graph = Graph("decoder", is_flat=True)
    graph.input(INPUT_IDS, np.int64, ("batch", "tokens"))
    graph.input(ATTENTION_MASK, np.int64, ("batch", "tokens"))
    graph.op("Reshape", "ids", [INPUT_IDS, graph.value("flat", [-1])])
    lengths = graph.op(
        "ReduceSum", "lengths", [ATTENTION_MASK, graph.value("tokens_axis", [1])], {"keepdims": 0}
    )
    graph.op("Sub", "last_tokens", [lengths, graph.value("one", 1)])
    graph.op("Cast", "last_tokens.int32", ["last_tokens"], {"to": INT32})
    graph.op("Shape", "num_rows", [INPUT_IDS], {"start": 0, "end": 1})
    tokens = graph.op("Shape", "num_tokens", [INPUT_IDS], {"start": 1, "end": 2})
    graph.op("Squeeze", "num_tokens.scalar", [tokens])
    graph.op("Cast", "num_tokens.int32", ["num_tokens.scalar"], {"to": INT32})
    graph.op("Concat", "rows_shape", ["num_rows", tokens, graph.value("rest", [-1])], {"axis": 0})
    return graph


def last_tokens(graph: Graph) -> str:
    """Return the name of each row's last token, as an index of flat values: (batch,)."""
    graph.op("Squeeze", "num_rows.scalar", ["num_rows"])
    rows = graph.op("Range", "rows", [graph.value("zero", 0), "num_rows.scalar", graph.value("one", 1)])
    begins = graph.op("Mul", "rows.begin", [rows, "num_tokens"])
    return graph.op("Add", LAST_ROWS, [begins, "last_tokens"])


def marker_tokens(graph: Graph, marker_ids: Sequence[int]) -> str:
    """Return the name of the places of marker tokens in flat values, in the order of the text."""
    found = [
        graph.op("Equal", f"is_marker.{marker_id}", ["ids", graph.value(f"marker.{marker_id}", marker_id)])
        for marker_id in marker_ids
    ]
    is_marker = found[0]
    for other in found[1:]:
        is_marker = graph.op("Or", f"{is_marker}.or", [is_marker, other])
    places = graph.op("NonZero", "markers.places", [is_marker])  # (1, markers)
    return graph.op("Squeeze", "markers", [places, graph.value("first_axis", [0])])


def words(graph: Graph, weights: Weights, config: DecoderConfig) -> str:
    """Look the tokens up in the word table; return the name of their rows, (batch * tokens, hidden)."""
    shape = (config.vocabulary_size, config.hidden_size)
    table = graph.constant("word_embeddings", weights.constant(WORD_TABLE, shape))
    return graph.op("Gather", "words", [table, "ids"])


def states(parts: Parts, config: DecoderConfig, hidden: str, kept: str | None = None) -> str:
    """Append the layers to the rows `hidden`; return the name of the last states, (kept, hidden) float32.

    `kept` names the tokens whose last state is computed; None: all of them.
    """
    graph, size = parts.graph, config.hidden_size
    normed = parts.norm(f"{LAYERS}.0.input_layernorm", hidden, size, "normed")
    for index in range(config.num_layers):
        layer = f"{LAYERS}.{index}"
        context = _attention(parts, config, f"{layer}.self_attn", normed)
        is_last = index + 1 == config.num_layers
        if is_last and kept:
            graph.scaled_by["kept.context"] = graph.scaled_by[context]
            context = graph.op("Gather", "kept.context", [context, kept])
            hidden = graph.op("Gather", "kept.hidden", [hidden, kept])
        added = parts.linear(f"{layer}.self_attn.o_proj", context, (size, config.query_size))
        normed, hidden = parts.add_norm(f"{layer}.post_attention_layernorm", (hidden, added), size)
        added = parts.feed_forward(f"{layer}.mlp", normed, (size, config.feed_forward_size))
        following = "norm" if is_last else f"{LAYERS}.{index + 1}.input_layernorm"
        normed, hidden = parts.add_norm(following, (hidden, added), size)
    return normed


def _attention(parts: Parts, config: DecoderConfig, name: str, normed: str) -> str:
    """Return the name of what the heads see, (batch * tokens, query_size), before it is projected."""
    graph = parts.graph
    shapes = {"q": (config.query_size, True), "k": (config.kv_size, True), "v": (config.kv_size, False)}
    arguments = []
    for part, (size, is_turned) in shapes.items():
        projection = f"{name}.{part}_proj"
        value = parts.linear(projection, normed, (size, config.hidden_size), has_bias=config.has_biases)
        if config.has_head_norms and is_turned:
            value = _head_norm(parts, config, f"{name}.{part}_norm", value)
        rows = graph.op("Reshape", f"{projection}.rows", [value, "rows_shape"])
        if config.rotary_sections and is_turned:
            rows = graph.op("RotaryEmbedding", f"{projection}.turned", [rows, *ROTARY_VALUES])
        arguments.append(rows)
    # NOTE: without the two outputs for a cache, ONNX Runtime takes a kernel that needs tokens x tokens memory
    # (1.31, CPU: 8,192 tokens add 4.7 GB instead of 0.4, and take twice the time).
    context, keys, values = outputs = [f"{name}.context", f"{name}.keys", f"{name}.values"]
    inputs = [*arguments, "", "", "last_tokens.int32", "num_tokens.int32", *_rotary_tables(graph, config)]
    heads = {"num_heads": config.num_heads, "kv_num_heads": config.num_kv_heads}
    heads |= {} if config.rotary_sections else {"do_rotary": 1}
    graph.nodes.append(node("GroupQueryAttention", context, inputs, outputs, heads))
    # A value that no node on the way to the result reads stays in memory until the end of the run, and so the
    # caches of all layers would. The shape of the context is taken from them, to have them read and dropped.
    rows = graph.op("Shape", f"{keys}.rows", [keys], {"start": 0, "end": 1})
    tokens = graph.op("Shape", f"{values}.tokens", [values], {"start": 2, "end": 3})
    width = graph.value(f"width.{config.query_size}", [config.query_size])
    shape = graph.op("Concat", f"{context}.shape", [rows, tokens, width], {"axis": 0})
    seen = graph.op("Reshape", f"{context}.rows", [context, shape])
    graph.scaled_by[f"{name}.flat"] = parts.columns(
        f"{name}.v_proj", config.kv_size, has_bias=config.has_biases,
        width=config.head_size, repeats=config.num_heads // config.num_kv_heads,
    )  # fmt: skip
    return graph.op(
        "Reshape", f"{name}.flat", [seen, graph.value(f"flat.{config.query_size}", [-1, config.query_size])]
    )


def _rotary_tables(graph: Graph, config: DecoderConfig) -> list[str]:
    """Name the tables that attention turns queries and keys by; none where they are turned before."""
    if config.rotary_sections:
        return []
    return [
        graph.constant(
            f"rotary.{kind}",
            rotary.table(kind, config.rotary_base, config.max_positions, config.head_size),
        )
        for kind in rotary.FUNCTIONS
    ]


def _head_norm(parts: Parts, config: DecoderConfig, name: str, value: str) -> str:
    """Normalise each head by itself: (rows, heads * head_size) becomes (rows * heads, head_size)."""
    flat = parts.graph.value(f"flat.{config.head_size}", [-1, config.head_size])
    heads = parts.graph.op("Reshape", f"{name}.heads", [value, flat])
    return parts.norm(name, heads, config.head_size)
