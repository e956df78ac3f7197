"""Smoothing keeps the function and makes values easier to round; calibration sees what runs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from convert import build, bundle, calibration, quantize, smoothing, tuning
from convert.calibrated import LinearInput
from convert.catalog import RECIPES
from convert.checkpoint import Checkpoint
from convert.graph import Graph
from convert.rewriting import linear_layers
from convert.smoothing import Calibration
from service.manifest import Precision
from service.session import Session, SessionSettings, pad
from tests import qwen
from tests.conftest import MODEL

IDS = [np.arange(3, 24)]
OUTLIER = 300.0


def built(name: str, checkpoint: Path) -> Graph:
    recipe = RECIPES[name]
    return build.build(recipe, Checkpoint(checkpoint, recipe.head_files), (None,))[None]


def run(graph: Graph, folder: Path, name: str) -> np.ndarray:
    bundle.write_graphs(folder, name, {"model": graph}, lambda count: None)
    session = Session(folder / name / "model.onnx", SessionSettings(num_threads=1))
    (output, *_) = session.output_names
    return session.run(pad(IDS), [output])[0]


def made_up(graph: Graph) -> Calibration:
    """Make up inputs of every linear layer, one channel of which is far larger than the others."""
    draw = np.random.default_rng(1)
    inputs = {}
    for value, size in calibration.observed_values(graph).items():
        rows = draw.normal(size=(64, size)).astype(np.float32)
        rows[:, size // 2] *= OUTLIER
        inputs[value] = LinearInput(np.abs(rows).max(axis=0), np.square(rows).mean(axis=0), rows)
    return inputs


@pytest.fixture
def sources(tiny_checkpoint: Path, tmp_path: Path) -> dict[str, Path]:
    written = {name: write(tmp_path / name) for name, write in qwen.WRITERS.items()}
    return {MODEL: tiny_checkpoint, **written}


# A listwise model answers for its marker tokens alone, which IDS lacks; its layers are those of the others.
@pytest.mark.parametrize("name", [MODEL, *sorted({*qwen.WRITERS} - {"jina-reranker-v3"})])
def test_a_smoothed_graph_computes_the_same(name: str, sources: dict[str, Path], tmp_path: Path) -> None:
    graph = built(name, sources[name])
    inputs = made_up(graph)
    target, seen = smoothing.smoothed(graph, inputs)
    changed = [key for key in graph.constants if target.constants[key].key != graph.constants[key].key]
    assert len(changed) > len(list(linear_layers(graph))) // 2
    exact, same = run(graph, tmp_path, "exact"), run(target, tmp_path, "smoothed")
    assert np.abs(exact).max() > 0.01
    assert np.abs(same - exact).max() < 2e-5 * max(1, np.abs(exact).max())
    outliers = {key: value.highest.max() / np.median(value.highest) for key, value in seen.items()}
    read = {layer.input[0] for layer, _ in linear_layers(target)}
    assert max(outliers[value] for value in read) < OUTLIER / 2


@pytest.mark.parametrize("name", [qwen.QWEN3_EMBEDDING])
def test_in_prenorm_layers_it_is_free(name: str, sources: dict[str, Path]) -> None:
    graph = built(name, sources[name])
    target, _ = smoothing.smoothed(graph, made_up(graph))
    assert [node.op_type for node in target.nodes] == [node.op_type for node in graph.nodes]


def test_where_a_residual_reads_the_value_it_costs_a_multiplication(sources: dict[str, Path]) -> None:
    graph = built(MODEL, sources[MODEL])
    target, _ = smoothing.smoothed(graph, made_up(graph))
    added = len(target.nodes) - len(graph.nodes)
    assert added == 3 * 2  # layers x (QKV, up, down); what heads see is divided in the projection of values


def test_a_multiplication_must_be_worth_it(sources: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(smoothing, "WORTH_A_MULTIPLICATION", 0.0)
    graph = built(MODEL, sources[MODEL])
    target, _ = smoothing.smoothed(graph, made_up(graph))
    assert len(target.nodes) == len(graph.nodes)


def test_heads_that_share_a_value_head_share_its_factors(sources: dict[str, Path]) -> None:
    graph = built(qwen.QWEN3_EMBEDDING, sources[qwen.QWEN3_EMBEDDING])
    (columns,) = graph.scaled_by["layers.0.self_attn.flat"]
    assert columns.repeats > 1
    _, seen = smoothing.smoothed(graph, made_up(graph))
    before = made_up(graph)["layers.0.self_attn.flat"].highest
    factors = (before / seen["layers.0.self_attn.flat"].highest).reshape(-1, columns.repeats, columns.width)
    assert np.allclose(factors, factors[:, :1], rtol=1e-4)
    assert factors.std() > 0.01


def test_calibration_sees_what_enters_the_layers(
    tiny_checkpoint: Path, tmp_path: Path, tiny_models: Path
) -> None:
    graph = built(MODEL, tiny_checkpoint)
    graphs = {"model": graph, "observing": calibration.observing(graph)}
    bundle.write_graphs(tmp_path, Precision.FP32, graphs, lambda count: None)
    sessions = {
        name: Session(tmp_path / Precision.FP32 / f"{name}.onnx", SessionSettings(num_threads=1))
        for name in graphs
    }
    values = list(calibration.observed_values(graph))
    recording = calibration.Recording(sessions["observing"], values)
    (pooled,) = recording.run(pad(IDS), ["pooled"])
    assert np.array_equal(pooled, sessions["model"].run(pad(IDS), ["pooled"])[0])
    recording.run(pad([np.arange(30, 37)]), ["pooled"])
    seen = dict(recording.seen())
    assert list(seen) == values
    for found in seen.values():
        assert len(found.rows) == 2 * calibration.ROWS_OF_A_RUN
        assert (np.abs(found.rows) <= found.highest * 1.0001).all()
        assert (found.squares <= found.highest**2).all()
        assert len(np.unique(found.rows, axis=0)) > calibration.ROWS_OF_A_RUN


def test_the_search_graph_is_exact_with_all_switches_off(tiny_checkpoint: Path, tmp_path: Path) -> None:
    graph = built(MODEL, tiny_checkpoint)
    target, names = quantize.switchable(graph, Precision.INT8)
    assert len(names) == 2 * 4
    bundle.write_graphs(tmp_path, "search", {"model": target}, lambda count: None)
    session = Session(tmp_path / "search" / "model.onnx", SessionSettings(num_threads=1))

    def pooled(switches: np.ndarray) -> np.ndarray:
        return tuning.Switched(session, switches).run(pad(IDS), ["pooled"])[0]

    everything = np.ones(len(names), dtype=np.bool_)
    exact = run(replace(graph), tmp_path, "exact")
    off, on = pooled(~everything), pooled(everything)
    assert np.abs(off - exact).max() < 0.05  # the word table alone is rounded
    alone = everything & (np.arange(len(names)) == 2)
    assert len({off.tobytes(), on.tobytes(), pooled(alone).tobytes()}) == 3
