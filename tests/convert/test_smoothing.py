"""Smoothing keeps the function and makes values easier to round; calibration sees what runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
from tests import qwen, tiny
from tests.conftest import MODEL
from tests.gpu_check import sessions

IDS = [np.arange(3, 24)]
OUTLIER = 300.0


def built(name: str, checkpoint: Path) -> Graph:
    recipe = RECIPES[name]
    return build.build(recipe, Checkpoint(checkpoint, recipe.head_files), (None,))[None]


def pooled_of(graph: Graph, folder: Path, name: str) -> np.ndarray:
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


@pytest.mark.parametrize("name", tiny.WRITERS)
def test_a_smoothed_graph_computes_the_same(name: str, tmp_path: Path) -> None:
    recipe = RECIPES[name]
    manifest = tiny.write_and_bake(tmp_path, name, [Precision.FP32])
    opened = Checkpoint(tmp_path / ".checkpoints" / name, recipe.head_files)
    tasks = [variant.task for variant in manifest.variants][:2]
    for task, graph in build.build(recipe, opened, tasks).items():
        target, seen = smoothing.smoothed(graph, made_up(graph))
        changed = [key for key in graph.constants if target.constants[key].key != graph.constants[key].key]
        assert len(changed) > len(list(linear_layers(graph))) // 2
        folders = {"exact": graph, "smoothed": target}
        for folder, made in folders.items():
            bundle.write_graphs(tmp_path, f"{folder}.{task}", {"model": made}, lambda count: None)
        exact, same = (
            Session(tmp_path / f"{folder}.{task}" / "model.onnx", SessionSettings(num_threads=1))
            for folder in folders
        )
        for run in sessions.runs(tmp_path / name, manifest):
            computed = [session.run(run.inputs, exact.output_names) for session in (exact, same)]
            for output, *values in zip(exact.output_names, *computed, strict=True):
                expected, found = (run.answers(output, each) for each in values)
                assert np.linalg.norm(found - expected) < 2e-5 * np.linalg.norm(expected)
        outliers = {key: value.highest.max() / np.median(value.highest) for key, value in seen.items()}
        assert max(outliers[layer.input[0]] for layer, _ in linear_layers(target)) < OUTLIER / 2


def test_a_channel_that_the_texts_hardly_woke_does_not_take_over_its_row(tiny_checkpoint: Path) -> None:
    graph = built(MODEL, tiny_checkpoint)
    asleep = {}
    for value, seen in made_up(graph).items():
        rows = seen.rows.copy()
        rows[:, 3] = 0
        asleep[value] = LinearInput(np.abs(rows).max(axis=0), np.square(rows).mean(axis=0), rows)
    target, _ = smoothing.smoothed(graph, asleep)
    num_changed = 0
    for layer, _ in linear_layers(target):
        before, after = (np.asarray(each.constants[layer.input[1]].read()) for each in (graph, target))
        factors = np.abs(after).max(axis=1) / np.abs(before).max(axis=1)
        num_changed += factors.std() > 0.01
        assert factors[3] > np.median(factors) / 16
    assert num_changed > 4


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
    opened = {
        name: Session(tmp_path / Precision.FP32 / f"{name}.onnx", SessionSettings(num_threads=1))
        for name in graphs
    }
    values = list(calibration.observed_values(graph))
    recording = calibration.Recording(opened["observing"], values)
    (pooled,) = recording.run(pad(IDS), ["pooled"])
    assert np.array_equal(pooled, opened["model"].run(pad(IDS), ["pooled"])[0])
    recording.run(pad([np.arange(30, 37)]), ["pooled"])
    seen = dict(recording.seen())
    assert list(seen) == values
    for found in seen.values():
        assert len(found.rows) == calibration.ROWS_OF_A_RUN + 7
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
    exact = pooled_of(replace(graph), tmp_path, "exact")
    off, on = pooled(~everything), pooled(everything)
    assert np.abs(off - exact).max() < 0.05  # the word table alone is rounded
    alone = everything & (np.arange(len(names)) == 2)
    assert len({off.tobytes(), on.tobytes(), pooled(alone).tobytes()}) == 3


def test_of_many_rows_a_fair_sample_is_kept() -> None:
    class Counting:
        """Answers with rows that say in which run they were seen."""

        num_runs = 0

        def run(self, inputs: Mapping[str, np.ndarray], outputs: Sequence[str]) -> list[np.ndarray]:
            self.num_runs += 1
            row = np.full(4, self.num_runs, dtype=np.float32)
            return [row, row**2, np.tile(row, (len(inputs[calibration.PICKED]), 1))]

    recording = calibration.Recording(Counting(), ["value"])  # type: ignore[arg-type]
    for _ in range(100):
        recording.run(pad([np.arange(40)]), [])
    ((_, seen),) = recording.seen()
    assert seen.rows.shape == (calibration.MAX_ROWS, 4)
    assert 40 < seen.rows[:, 0].mean() < 61
    assert seen.highest.tolist() == [100] * 4
    assert np.allclose(seen.squares, np.mean(np.arange(1, 101) ** 2.0))
