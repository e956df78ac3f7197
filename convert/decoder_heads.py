"""What stands on top of a decoder: from the states of the tokens it keeps to the output a bundle promises.

Knows the tokens that a head is about by their ids alone.

Sources: vllm (the one vector that stands for "yes" against "no"), jinaai/jina-reranker-v3 (the projector).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from convert import decoder
from convert.decoder_config import DecoderConfig
from convert.graph import Constant, Graph
from convert.prenorm import Parts
from convert.weights import FLOAT32, Floats, Weights
from service.errors import BakeError
from service.limits import PROMPT_ROOM
from service.manifest import Manifest, Output, Scoring

ANSWERS = "yes", "no"
LM_HEAD = "lm_head.weight"
PROJECTOR = "projector.0", "projector.2"  # linear layers with a ReLU between them


@dataclass(frozen=True)
class Head:
    """The weights of a model, its sizes, and the ids of the tokens that its head is about."""

    weights: Weights
    config: DecoderConfig
    token_ids: tuple[int, ...] = ()


def tokens_of(manifest: Manifest) -> tuple[str, ...]:
    """List the tokens whose ids the head of a model needs."""
    if manifest.listwise:
        return manifest.listwise.document_marker, manifest.listwise.query_marker
    return ANSWERS if manifest.scoring == Scoring.YES_NO else ()


def build(head: Head, manifest: Manifest) -> Graph:
    """Build the graph of a decoder with the one output of its manifest."""
    weights, config = head.weights, head.config
    if (highest := max(head.token_ids, default=0)) >= config.vocabulary_size:
        raise BakeError(
            f"the word table has {config.vocabulary_size} rows, but this model needs that of token {highest}"
        )
    is_listwise = manifest.scoring == Scoring.LISTWISE
    if is_listwise:
        config = replace(config, max_positions=config.max_positions + PROMPT_ROOM)
    graph = decoder.start(weights, config)
    kept = decoder.marker_tokens(graph, head.token_ids) if is_listwise else decoder.last_tokens(graph)
    parts = Parts(graph, weights, config.norm_eps)
    hidden = decoder.states(parts, config, decoder.words(graph, weights, config), kept)
    HEADS[manifest.scoring](graph, head, hidden)
    return graph


def _pool(graph: Graph, head: Head, hidden: str) -> None:
    """Take the states as they are: (batch, hidden)."""
    graph.op("Identity", Output.POOLED, [hidden])
    graph.output(Output.POOLED, ("batch", head.config.hidden_size))


def _score(graph: Graph, head: Head, hidden: str) -> None:
    """Take the logit of "yes" less that of "no": (batch,)."""
    vector = graph.constant("answer", _answer_vector(head))
    logits = graph.exact_op("MatMul", "answer.logits", [hidden, vector])  # (batch, 1)
    graph.op("Squeeze", Output.SCORES, [logits, graph.value("last_axis", [1])])
    graph.output(Output.SCORES, ("batch",))


def _answer_vector(head: Head) -> Constant:
    """Make the (hidden, 1) difference of two rows of the language model's head."""
    is_tied = head.config.is_tied
    if is_tied is None:  # the config does not say
        is_tied = LM_HEAD not in head.weights
    table = head.weights[decoder.WORD_TABLE if is_tied else LM_HEAD]
    if table.shape != (head.config.vocabulary_size, head.config.hidden_size):
        raise BakeError(f"the language model's head has shape {table.shape}, config.json says otherwise")
    yes, no = head.token_ids

    def read() -> Floats:
        rows = [table.rows(token_id, token_id + 1)[0] for token_id in (yes, no)]
        return np.asarray(rows[0] - rows[1], dtype=np.float32)[:, None]

    return Constant(f"{table.key}[{yes}]-[{no}]", (head.config.hidden_size, 1), FLOAT32, read)


def _project(graph: Graph, head: Head, hidden: str) -> None:
    """Project the state of every marker: (batch, markers, size). Every row must hold as many markers."""
    first, second = PROJECTOR
    wide = head.weights[f"{first}.weight"].shape[0]
    narrow = head.weights[f"{second}.weight"].shape[0]
    inner = _linear(graph, head, first, hidden, (wide, head.config.hidden_size))
    outer = _linear(graph, head, second, graph.op("Relu", "projector.relu", [inner]), (narrow, wide))
    size = graph.value("projector.shape", [-1, narrow])
    shape = graph.op("Concat", "projected.shape", ["num_rows", size], {"axis": 0})
    graph.op("Reshape", Output.PROJECTED, [outer, shape])
    graph.output(Output.PROJECTED, ("batch", "markers", narrow))


def _linear(graph: Graph, head: Head, name: str, value: str, shape: tuple[int, int]) -> str:
    """Apply a linear layer that no precision rounds: beside the decoder a head costs next to nothing."""
    graph.exact.add(name)
    return Parts(graph, head.weights, head.config.norm_eps).linear(name, value, shape)


HEADS: dict[Scoring | None, Callable[[Graph, Head, str], None]] = {
    None: _pool,
    Scoring.YES_NO: _score,
    Scoring.LISTWISE: _project,
}
