"""Hand-made models in the place of exported ones: what the graph of a bundle makes of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from convert import bundle, exported_config, exported_graph, running
from convert.checkpoint import Checkpoint
from convert.recipe import Architecture, Recipe
from service.manifest import Kind, Manifest, Output, Pooling, Source
from service.session import Session, pad
from tests import checkpoints

CONFIG = {"model_type": "gpt2", "n_embd": 8, "vocab_size": 50, "n_positions": 64}
RECIPE = Recipe(
    manifest=Manifest(
        name="other", kind=Kind.RERANKER, pooling=Pooling.CLS, outputs=(Output.SCORES,), licence="mit",
        owned_by="us", source=Source(id="us/other"), max_tokens=64,
    ),
    architecture=Architecture.EXPORTED,
    num_parameters=0,
)  # fmt: skip
TEXTS = [[5, 6, 7], [8, 7, 7, 7, 9], [4], [7, 7], [0, 5, 0, 7]]


def last_before_padding(padding_id: int, *, in_branch: bool) -> onnx.ModelProto:
    """Answer with the place of the last token that is not padding, as classifiers of decoders find it."""
    nodes = [
        helper.make_node("Equal", ["input_ids", "padding"], ["is_padding"]),
        helper.make_node("Not", ["is_padding"], ["is_token"]),
        helper.make_node("Cast", ["is_token"], ["tokens"], to=TensorProto.INT64),
        helper.make_node("CumSum", ["ones", "axis"], ["places"]),
        helper.make_node("Mul", ["tokens", "places"], ["token_places"]),
        helper.make_node("ReduceMax", ["token_places", "axes"], ["last"], keepdims=1),
        helper.make_node("Cast", ["last"], ["found"], to=TensorProto.FLOAT),
    ]
    before = [helper.make_node("Add", ["attention_mask", "one"], ["more"]),
              helper.make_node("Min", ["more", "one"], ["ones"])]  # fmt: skip
    if in_branch:
        found = helper.make_tensor_value_info("found", TensorProto.FLOAT, None)
        branch = helper.make_graph(nodes, "branch", [], [found])
        before.append(helper.make_node("If", ["yes"], ["logits"], then_branch=branch, else_branch=branch))
    else:
        before += [*nodes, helper.make_node("Identity", ["found"], ["logits"])]
    constants = {"padding": padding_id, "axis": 1, "axes": [1], "one": 1}
    graph = helper.make_graph(
        before,
        "exported",
        [helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "tokens"])
         for name in ("input_ids", "attention_mask")],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 1])],
        [onnx.numpy_helper.from_array(np.asarray(value, dtype=np.int64), name)
         for name, value in constants.items()] + [onnx.numpy_helper.from_array(np.asarray(True), "yes")],
    )  # fmt: skip
    return helper.make_model(graph)


@pytest.mark.parametrize("in_branch", [False, True])
@pytest.mark.parametrize("padding_id", [7, 0, None])
def test_classifiers_find_the_last_token_before_their_own_padding(
    tmp_path: Path, padding_id: int | None, in_branch: bool
) -> None:
    config = exported_config.read({**CONFIG, "pad_token_id": padding_id})
    model = last_before_padding(config.padding_id, in_branch=in_branch)
    source = checkpoints.write_bert(tmp_path / "source")
    graph = exported_graph.graph_of(model, RECIPE, config, Checkpoint(source).weights)
    bundle.write_graphs(tmp_path, "made", {"model": graph}, lambda count: None)
    session = Session(tmp_path / "made" / "model.onnx", running.settings())
    (found,) = session.run(pad([np.array(ids) for ids in TEXTS]), [Output.SCORES])
    expected = [max((place for place, id in enumerate(ids, 1) if id != padding_id), default=0)
                for ids in TEXTS]  # fmt: skip
    assert found.tolist() == expected
