"""Places of external tensors, read and rewritten in the bytes of a model, against the onnx package."""

from __future__ import annotations

from collections.abc import Mapping

import onnx
import pytest
from onnx import TensorProto, helper

from service import wire
from service.wire import External

PLACE = {"location": "weights.data", "offset": "4096", "length": "16"}
ELSEWHERE = {"location": "other.data", "offset": "0", "length": "16", "prepacked_0": "MatMul+1|16;16;0"}


def tensor(name: str, place: Mapping[str, str] | None = PLACE) -> TensorProto:
    made = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[2, 2])
    if place is None:
        made.raw_data = bytes(16)
        return made
    made.data_location = TensorProto.EXTERNAL
    for key, value in place.items():
        made.external_data.add(key=key, value=value)
    return made


def model() -> onnx.ModelProto:
    """A graph with external tensors of its own, in a branch of an `If`, and as attributes of a node."""
    out = helper.make_tensor_value_info("out", TensorProto.FLOAT, [2, 2])
    branches = [
        helper.make_graph([helper.make_node("Identity", [name], ["out"])], name, [], [out], [tensor(name)])
        for name in ("then", "else")
    ]
    nodes = [
        helper.make_node("If", ["given"], ["out"], then_branch=branches[0], else_branch=branches[1]),
        helper.make_node("Constant", [], ["constant"], value=tensor("attribute")),
        helper.make_node("Scaled", [], ["scaled"], alpha=0.5, axes=[-1, 300], both=[tensor("listed")]),
    ]
    given = helper.make_tensor_value_info("given", TensorProto.BOOL, [])
    inside = [tensor("weight"), tensor("small", None)]
    return helper.make_model(helper.make_graph(nodes, "graph", [given], [out], inside))


def with_place(made: TensorProto, place: Mapping[str, str]) -> None:
    del made.external_data[:]
    for key, value in place.items():
        made.external_data.add(key=key, value=value)


def test_tensors_are_found_wherever_they_are() -> None:
    found = wire.external_tensors(model().SerializeToString())
    assert sorted(each.name for each in found) == ["attribute", "else", "listed", "then", "weight"]
    assert all(each.entries == PLACE for each in found)


def test_a_model_moved_nowhere_stays_as_it_was() -> None:
    given = model()
    kept = wire.rewrite(given.SerializeToString(), lambda each: each.entries)
    assert onnx.load_from_string(kept) == given


def test_a_tensor_moves_and_nothing_else() -> None:
    given = model()
    moved = wire.rewrite(
        given.SerializeToString(), lambda each: ELSEWHERE if each.name in ("weight", "else") else each.entries
    )
    with_place(given.graph.initializer[0], ELSEWHERE)
    with_place(given.graph.node[0].attribute[0].g.initializer[0], ELSEWHERE)
    assert given.graph.node[0].attribute[0].name == "else_branch"
    assert onnx.load_from_string(moved) == given


def test_a_long_place_gets_a_long_length() -> None:
    place = PLACE | {"note": "x" * 70_000}
    moved = onnx.load_from_string(wire.rewrite(model().SerializeToString(), lambda each: place))
    assert {each.key: each.value for each in moved.graph.initializer[0].external_data} == place


@pytest.mark.parametrize("cut", range(1, 40, 3))
def test_a_model_cut_short_is_refused(cut: int) -> None:
    content = onnx.ModelProto(graph=onnx.GraphProto(initializer=[tensor("weight")])).SerializeToString()
    with pytest.raises(ValueError, match=r"whole|no end|no graph"):
        wire.external_tensors(content[:-cut])


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "no graph"),
        (b"\x08\x07", "no graph"),
        (b"\x3b", "wire type 3"),
        (b"\x3a\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", "no end"),
        (b"\x38\x01", "wire type 0 instead of 2"),
        (b"\x02\x00", "field 0"),
    ],
)  # fmt: skip
def test_bytes_that_are_no_model_are_refused(content: bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        wire.external_tensors(content)


def test_a_place_said_twice_is_refused() -> None:
    twice = tensor("weight")
    twice.external_data.add(key="offset", value="0")
    content = helper.make_model(helper.make_graph([], "graph", [], [], [twice])).SerializeToString()
    with pytest.raises(ValueError, match="'offset' is said twice"):
        wire.rewrite(content, lambda each: External("", {}).entries)
