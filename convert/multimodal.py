"""The text graph of a model that takes images: a decoder over words and image vectors. Knows no tower.

Inputs beside those of every text graph, named in service.vision: vectors that take the place of words,
positions in three streams, and the tokens that are pooled. Source: transformers, modeling_qwen2_5_vl, and
jinaai/jina-embeddings-v4 for the projector of the multi-vectors.
"""

from __future__ import annotations

import numpy as np

from convert import decoder, heads
from convert.decoder import ROTARY_VALUES
from convert.decoder_config import NUM_STREAMS, DecoderConfig
from convert.graph import Constant, Graph
from convert.heads import Body
from convert.prenorm import Parts
from convert.weights import FLOAT32, Floats, Weights
from service.manifest import Manifest
from service.vision import IMAGE_PLACES, IMAGE_VECTORS, POOLING_MASK, POSITION_IDS

FLOAT = 1


def build(weights: Weights, config: DecoderConfig, manifest: Manifest) -> Graph:
    """Build the graph of text and image vectors with the outputs of its manifest."""
    graph = decoder.start(weights, config)
    graph.input(POSITION_IDS, np.int64, ("batch", "tokens", NUM_STREAMS))
    graph.input(POOLING_MASK, np.int64, ("batch", "tokens"))
    graph.input(IMAGE_VECTORS, np.float32, ("cells", config.hidden_size))
    graph.input(IMAGE_PLACES, np.int64, ("cells",))
    _turns(graph, config)
    words = decoder.words(graph, weights, config)
    last_axis = graph.value("last_axis", [1])
    places = graph.op("Unsqueeze", "image_places.rows", [IMAGE_PLACES, last_axis])
    embedded = graph.op("ScatterND", "embedded", [words, places, IMAGE_VECTORS])
    hidden = decoder.states(Parts(graph, weights, config.norm_eps), config, embedded)
    rows = graph.op("Reshape", "states", [hidden, "rows_shape"])  # (batch, tokens, hidden)
    body = Body(graph, weights, rows, config.hidden_size, manifest.pooling, POOLING_MASK)
    heads.add_outputs(body, manifest.outputs)
    return graph


def _turns(graph: Graph, config: DecoderConfig) -> None:
    """Compute cos and sin of every token's angles, each from the stream of positions that turns it."""
    flat = graph.op("Reshape", "positions", [POSITION_IDS, graph.value("streams", [-1, NUM_STREAMS])])
    positions = graph.op("Cast", "positions.float32", [flat], {"to": FLOAT})
    table = graph.constant("frequencies", _frequencies(config))
    angles = graph.exact_op(
        "MatMul", "angles", [positions, table]
    )  # (batch * tokens, head / 2); others are 0
    for function, value in zip(("Cos", "Sin"), ROTARY_VALUES[1:], strict=True):
        graph.op(function, value, [angles])
    count = graph.op("Size", "num_places", ["ids"])
    order = graph.op("Range", "order", [graph.value("zero", 0), count, graph.value("one", 1)])
    shape = graph.op("Concat", "places_shape", ["num_rows", "num_tokens"], {"axis": 0})
    graph.op("Reshape", ROTARY_VALUES[0], [order, shape])


def _frequencies(config: DecoderConfig) -> Constant:
    """Make the (streams, head / 2) matrix that takes positions to angles; each angle has one stream."""
    half = config.head_size // 2

    def read() -> Floats:
        exponents = np.arange(half, dtype=np.float32) * np.float32(2 / config.head_size)
        frequencies = 1 / np.power(np.float32(config.rotary_base), exponents)
        streams = np.repeat(np.arange(NUM_STREAMS), config.rotary_sections)
        made = np.zeros((NUM_STREAMS, half), dtype=np.float32)
        made[streams, np.arange(half)] = frequencies
        return made

    key = f"frequencies.{config.rotary_base}.{config.rotary_sections}"
    return Constant(key, (NUM_STREAMS, half), FLOAT32, read)
