"""From an exporter's ONNX model to a graph with this project's inputs and heads. Knows no torch.

NOTE: exporters write opset 18, this project 21. Of the operators that text models are exported to, those
between have gained types and attributes with defaults, and mean the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import onnx
from onnx import numpy_helper

from convert import encoder, heads
from convert.exported_config import ExportedConfig
from convert.graph import ATTENTION_MASK, INPUT_IDS, Graph, constant_of
from convert.heads import Body
from convert.recipe import Recipe
from convert.weights import Weights
from service.errors import BakeError
from service.manifest import Output

TOKEN_TYPES, POSITIONS = "token_type_ids", "position_ids"
STATES, LOGITS = "last_hidden_state", "logits"
SERVICE_PADDING = 0  # the id that the service puts behind texts


def graph_of(model: onnx.ModelProto, recipe: Recipe, config: ExportedConfig, weights: Weights) -> Graph:
    """Make the graph of a bundle; `weights` are those of heads beside the model. Raises BakeError."""
    graph = Graph("exported")
    graph.input(INPUT_IDS, np.int64, ("batch", "tokens"))
    graph.input(ATTENTION_MASK, np.int64, ("batch", "tokens"))
    for name in (value.name for value in model.graph.input):
        if name in INPUTS:
            INPUTS[name](graph, recipe)
        elif name not in (INPUT_IDS, ATTENTION_MASK):
            raise BakeError(f"the exported graph of {config.model_type} needs {name}, which no text has")
    wanted = LOGITS if Output.SCORES in recipe.manifest.outputs else STATES
    if wanted == LOGITS and config.padding_id != SERVICE_PADDING:
        _read_instead(model.graph.node, _padded_ids(graph, config.padding_id))
    _add_nodes(graph, model)
    _keep_exact(graph)
    names = [value.name for value in model.graph.output]
    if wanted not in names:
        raise BakeError(
            f"the exported graph of {config.model_type} computes {', '.join(names)}, not {wanted}"
        )
    if wanted == LOGITS:
        graph.op("Squeeze", Output.SCORES, [LOGITS, graph.value("scores.last_axis", [-1])])
        graph.output(Output.SCORES, ("batch",))
    else:
        pooling = recipe.manifest.pooling
        body = Body(graph, weights, STATES, config.hidden_size, pooling, dense=recipe.dense)
        heads.add_outputs(body, recipe.manifest.outputs)
    return graph


def _padded_ids(graph: Graph, padding_id: int) -> str:
    """Put the model's own padding behind texts: its classifier may look for the last token before that."""
    is_text = graph.op("Cast", "padding.is_text", [ATTENTION_MASK], {"to": onnx.TensorProto.BOOL})
    return graph.op("Where", "padding.ids", [is_text, INPUT_IDS, graph.value("padding.id", padding_id)])


def _read_instead(nodes: Iterable[onnx.NodeProto], ids: str) -> None:
    """Let nodes read `ids` where they read those of the texts, in branches too."""
    for node in nodes:
        for place, name in enumerate(node.input):
            if name == INPUT_IDS:
                node.input[place] = ids
        for attribute in node.attribute:
            _read_instead(attribute.g.node, ids)


def _add_nodes(graph: Graph, model: onnx.ModelProto) -> None:
    """Take over nodes and constants; a node is named as its value, as everywhere here."""
    for initializer in model.graph.initializer:
        _add_constant(graph, initializer.name, initializer)
    for node in model.graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            _add_constant(graph, node.output[0], node.attribute[0].t)
        else:
            node.name = node.output[0]
            graph.nodes.append(node)


def _keep_exact(graph: Graph) -> None:
    """Keep linear layers as they are that no text goes through: relative positions have other shapes."""
    of_text = {INPUT_IDS}
    for node in graph.nodes:
        if node.op_type != "Shape" and not of_text.isdisjoint(node.input):
            of_text.update(node.output)
        elif node.op_type == "MatMul":
            graph.exact.add(node.name)


def _add_constant(graph: Graph, name: str, tensor: onnx.TensorProto) -> None:
    graph.constant(name, constant_of(f"exported:{name}", numpy_helper.to_array(tensor)))


def _token_types(graph: Graph, recipe: Recipe) -> None:
    """Compute what the tokenizer would say: 0, or of pairs 1 for the second text."""
    if recipe.separator_id is None:
        graph.op("Mul", TOKEN_TYPES, [INPUT_IDS, graph.value("no_type", 0)])
    else:
        graph.op("Identity", TOKEN_TYPES, [encoder.token_types(graph, recipe.separator_id)])


def _positions(graph: Graph, recipe: Recipe) -> None:
    """Count tokens from 0, padding being on the right."""
    running = graph.op("CumSum", "positions.count", [ATTENTION_MASK, graph.value("positions.axis", 1)])
    graph.op("Sub", POSITIONS, [running, graph.value("positions.one", 1)])


INPUTS: dict[str, Callable[[Graph, Recipe], None]] = {TOKEN_TYPES: _token_types, POSITIONS: _positions}
