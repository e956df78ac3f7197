"""What stands on top of the hidden states: from (batch, tokens, hidden) to the outputs a bundle promises."""

from __future__ import annotations

from collections.abc import Callable

from convert.encoder import ATTENTION_MASK
from convert.graph import Graph
from service.manifest import Output, Pooling


def mean(graph: Graph, hidden: str) -> str:
    """Append the mean of the states over the unmasked tokens; return its name, (batch, hidden)."""
    mask = graph.op("Cast", "pool.mask", [ATTENTION_MASK], {"to": 1})  # float32
    last_axis = graph.value("pool.last_axis", [-1])
    count = graph.op("ReduceSum", "pool.count", [mask, last_axis], {"keepdims": 1})
    shares = graph.op("Div", "pool.shares", [mask, count])  # (batch, tokens), rows sum to 1
    second_axis = graph.value("pool.second_axis", [1])
    rows = graph.op("Unsqueeze", "pool.rows", [shares, second_axis])  # (batch, 1, tokens)
    weighted = graph.op("MatMul", "pool.weighted", [rows, hidden])  # (batch, 1, hidden)
    return graph.op("Squeeze", "pool.mean", [weighted, second_axis])


POOLINGS: dict[Pooling, Callable[[Graph, str], str]] = {Pooling.MEAN: mean}


def add_embedding_outputs(graph: Graph, hidden: str, pooling: Pooling, size: int) -> None:
    """Declare the outputs of an embedding model: `pooled` (not normalised) and `token_embeddings`."""
    for source, name in (
        (POOLINGS[pooling](graph, hidden), Output.POOLED),
        (hidden, Output.TOKEN_EMBEDDINGS),
    ):
        graph.op("Identity", name, [source])
    graph.output(Output.POOLED, ("batch", size))
    graph.output(Output.TOKEN_EMBEDDINGS, ("batch", "tokens", size))
