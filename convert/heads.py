"""What stands on top of the hidden states: from (batch, tokens, hidden) to the outputs a bundle promises.

Sources: FlagEmbedding (sparse and ColBERT heads of bge-m3), transformers (classification head of XLM-R),
jinaai/jina-embeddings-v4 (projector of multi-vectors).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from convert.encoder import linear
from convert.graph import ATTENTION_MASK, Graph
from convert.recipe import Dense
from convert.weights import Weights
from service.manifest import Output, Pooling

COLBERT, SPARSE = "colbert_linear", "sparse_linear"
MULTIVECTOR = "multi_vector_projector"
CLASSIFIERS = ("classifier.dense", "classifier.out_proj"), ("pooler.dense", "classifier")  # RoBERTa, BERT
# What an optional head needs of the checkpoint; without it the bundle lacks the output.
OPTIONAL = {
    Output.COLBERT: f"{COLBERT}.weight",
    Output.SPARSE: f"{SPARSE}.weight",
    Output.MULTIVECTOR: f"{MULTIVECTOR}.weight",
}


@dataclass(frozen=True)
class Body:
    """A graph up to its last hidden states, (batch, tokens, size), and the weights its heads come from."""

    graph: Graph
    weights: Weights
    hidden: str
    size: int
    pooling: Pooling
    pooled: str = ATTENTION_MASK  # (batch, tokens), 1 where a mean takes a token in
    dense: tuple[Dense, ...] = ()

    @property
    def pooled_size(self) -> int:
        """Return the size of the pooled vector."""
        return self.dense[-1].size if self.dense else self.size


def available(outputs: Sequence[Output], weights: Weights) -> tuple[Output, ...]:
    """Leave out the optional outputs that the checkpoint has no head for."""
    return tuple(output for output in outputs if output not in OPTIONAL or OPTIONAL[output] in weights)


def add_outputs(body: Body, outputs: Sequence[Output]) -> None:
    """Append the head of every output and declare it."""
    for output in outputs:
        head, shape = HEADS[output]
        body.graph.op("Identity", output, [head(body)])
        sizes: dict[str, int] = {"size": body.size, "pooled_size": body.pooled_size}
        body.graph.output(output, [sizes.get(dimension, dimension) for dimension in shape])


def _pooled(body: Body) -> str:
    """Pool, then apply the dense layers: (batch, pooled_size)."""
    value, size = POOLINGS[body.pooling](body), body.size
    for layer in body.dense:
        value = _dense(body, layer, value, size)
        size = layer.size
    return value


def _dense(body: Body, layer: Dense, value: str, size: int) -> str:
    graph, name = body.graph, f"{layer.folder}.linear"
    weight = graph.constant(f"{name}.weight", body.weights.joined([f"{name}.weight"], (layer.size, size)))
    value = graph.exact_op("MatMul", name, [value, weight])
    if f"{name}.bias" in body.weights:
        bias = graph.constant(f"{name}.bias", body.weights.constant(f"{name}.bias", (layer.size,)))
        value = graph.op("Add", f"{name}.biased", [value, bias])
    return graph.op(layer.activation, f"{name}.activated", [value]) if layer.activation else value


def _mean(body: Body) -> str:
    """Average the states over the pooled tokens: (batch, size)."""
    graph = body.graph
    mask = graph.op("Cast", "pool.mask", [body.pooled], {"to": 1})  # float32
    last_axis = graph.value("pool.last_axis", [-1])
    count = graph.op("ReduceSum", "pool.count", [mask, last_axis], {"keepdims": 1})
    shares = graph.op("Div", "pool.shares", [mask, count])  # (batch, tokens), rows sum to 1
    second_axis = graph.value("pool.second_axis", [1])
    rows = graph.op("Unsqueeze", "pool.rows", [shares, second_axis])  # (batch, 1, tokens)
    weighted = graph.op("MatMul", "pool.weighted", [rows, body.hidden])  # (batch, 1, size)
    return graph.op("Squeeze", "pool.mean", [weighted, second_axis])


def _first(body: Body) -> str:
    """Take the state of the first token: (batch, size)."""
    return body.graph.op("Gather", "pool.first", [body.hidden, body.graph.value("pool.zero", 0)], {"axis": 1})


def _last(body: Body) -> str:
    """Take the state of the last token, padding being on the right: (batch, size)."""
    graph, axis = body.graph, body.graph.value("pool.second_axis", [1])
    mask = graph.op("Cast", "pool.mask.int64", [ATTENTION_MASK], {"to": 7})
    lengths = graph.op("ReduceSum", "pool.lengths", [mask, axis], {"keepdims": 1})  # (batch, 1)
    last = graph.op("Sub", "pool.last", [lengths, graph.value("pool.one", 1)])
    return graph.op("GatherND", "pool.last_state", [body.hidden, last], {"batch_dims": 1})


def _states(body: Body) -> str:
    return body.hidden


def _sparse(body: Body) -> str:
    """Weigh every token, not below zero: (batch, tokens)."""
    weights = _linear(body, SPARSE, body.hidden, 1)  # (batch, tokens, 1)
    last_axis = body.graph.value("sparse.last_axis", [-1])
    return body.graph.op(
        "Relu", "sparse.weights", [body.graph.op("Squeeze", "sparse.flat", [weights, last_axis])]
    )


def _colbert(body: Body) -> str:
    """Project every token: (batch, tokens, colbert_size)."""
    return _linear(body, COLBERT, body.hidden, body.weights[f"{COLBERT}.bias"].shape[0])


def _multivector(body: Body) -> str:
    """Project every token: (batch, tokens, multivector_size)."""
    return _linear(body, MULTIVECTOR, body.hidden, body.weights[f"{MULTIVECTOR}.bias"].shape[0])


def _score(body: Body) -> str:
    """Classify by the state of the first token: one logit a row, (batch,)."""
    dense, projection = next(
        (names for names in CLASSIFIERS if f"{names[0]}.weight" in body.weights), CLASSIFIERS[0]
    )
    activated = body.graph.op("Tanh", "classifier.tanh", [_linear(body, dense, _first(body), body.size)])
    logits = _linear(body, projection, activated, 1)  # (batch, 1)
    return body.graph.op(
        "Squeeze", "classifier.logit", [logits, body.graph.value("classifier.last_axis", [-1])]
    )


def _linear(body: Body, name: str, value: str, num_outputs: int) -> str:
    """Apply a linear layer that no precision rounds: beside the encoder a head costs next to nothing."""
    body.graph.exact.add(name)
    return linear(body.graph, body.weights, name, value, (num_outputs, body.size))


POOLINGS: dict[Pooling, Callable[[Body], str]] = {
    Pooling.MEAN: _mean,
    Pooling.CLS: _first,
    Pooling.LAST: _last,
}
HEADS: dict[Output, tuple[Callable[[Body], str], tuple[str, ...]]] = {
    Output.POOLED: (_pooled, ("batch", "pooled_size")),
    Output.TOKEN_EMBEDDINGS: (_states, ("batch", "tokens", "size")),
    Output.SPARSE: (_sparse, ("batch", "tokens")),
    Output.COLBERT: (_colbert, ("batch", "tokens", "colbert_size")),
    Output.MULTIVECTOR: (_multivector, ("batch", "tokens", "multivector_size")),
    Output.SCORES: (_score, ("batch",)),
}
