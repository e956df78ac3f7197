"""The rotary graph with merged adapters against numpy; the check of published states."""

from __future__ import annotations

import json
import math
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from tokenizers import Tokenizer

from convert import reference
from convert.__main__ import main
from service.manifest import BASE_TASK
from service.session import Session, SessionSettings, pad
from tests import golden, xlmr
from tests.xlmr import TINY, V3

TOLERANCE = 2e-5
MODEL_FACTS = golden.SHARED / "design" / "model-facts.md"
TASKS = (*xlmr.PREFIXES, BASE_TASK)
erf = np.vectorize(math.erf)


class Reference:
    """jina-embeddings-v3 in float64, from the formulas; adapters are applied, not merged."""

    def __init__(self, folder: Path, task: str) -> None:
        stored = load_file(folder / "model.safetensors")
        self.tensors = {
            name.removeprefix("roberta."): value.astype(np.float64) for name, value in stored.items()
        }
        self.adapter = None if task == BASE_TASK else list(xlmr.PREFIXES).index(task)

    def sides(self, module: str) -> tuple[np.ndarray, np.ndarray]:
        """Return A and B of a module for this task, nothing without one."""
        found = (self.tensors[f"{module}.parametrizations.weight.0.lora_{side}"] for side in "AB")
        side_a, side_b = (side[self.adapter or 0] for side in found)
        return side_a, side_b if self.adapter is not None else 0 * side_b

    def linear(self, module: str, states: np.ndarray) -> np.ndarray:
        side_a, side_b = self.sides(module)
        plain = states @ self.tensors[f"{module}.parametrizations.weight.original"].T
        update = states @ side_a.T @ side_b.T * xlmr.ALPHA / xlmr.RANK
        return np.asarray(plain + update + self.tensors[f"{module}.bias"])

    def rows(self, table: str, ids: np.ndarray) -> np.ndarray:
        side_a, side_b = self.sides(table)
        plain = self.tensors[f"{table}.parametrizations.weight.original"][ids]
        return np.asarray(plain + side_a[ids] @ side_b * xlmr.ALPHA / xlmr.RANK)

    def norm(self, name: str, states: np.ndarray) -> np.ndarray:
        centred = states - states.mean(-1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
        return np.asarray(scaled * self.tensors[f"{name}.weight"] + self.tensors[f"{name}.bias"])

    def states(self, ids: np.ndarray) -> np.ndarray:
        """Return the last hidden states (tokens, hidden)."""
        words = self.rows("embeddings.word_embeddings", ids)
        types = self.rows("embeddings.token_type_embeddings", np.zeros_like(ids))
        states = self.norm("emb_ln", words + types)
        for number in range(TINY.layers):
            layer = f"encoder.layers.{number}"
            mixed = self.linear(f"{layer}.mixer.out_proj", self.attention(layer, states))
            states = self.norm(f"{layer}.norm1", mixed + states)
            wide = self.linear(f"{layer}.mlp.fc1", states)
            wide = wide * 0.5 * (1 + erf(wide / math.sqrt(2)))
            states = self.norm(f"{layer}.norm2", self.linear(f"{layer}.mlp.fc2", wide) + states)
        return states

    def attention(self, layer: str, states: np.ndarray) -> np.ndarray:
        size = TINY.hidden // TINY.heads
        projected = self.linear(f"{layer}.mixer.Wqkv", states).reshape(len(states), 3, TINY.heads, size)
        query, key, value = projected[:, 0], projected[:, 1], projected[:, 2]
        scores = np.einsum("qhd,khd->hqk", rotated(query), rotated(key)) / math.sqrt(size)
        shares = np.exp(scores - scores.max(-1, keepdims=True))
        shares /= shares.sum(-1, keepdims=True)
        return np.asarray(np.einsum("hqk,khd->qhd", shares, value).reshape(len(states), -1))


def rotated(heads: np.ndarray, base: float = 20000.0) -> np.ndarray:
    """Turn (tokens, heads, size) by position, in halves."""
    half = heads.shape[-1] // 2
    angles = np.arange(len(heads))[:, None] * base ** (-np.arange(half) / half)
    cos, sin = np.cos(angles)[:, None], np.sin(angles)[:, None]
    one, other = heads[..., :half], heads[..., half:]
    return np.concatenate([one * cos - other * sin, other * cos + one * sin], axis=-1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return xlmr.write_jina_v3(tmp_path_factory.mktemp("v3") / "checkpoint")


@pytest.fixture(scope="module")
def bundle(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("models")
    return xlmr.bake_tiny(out, V3, folder, TASKS)


@pytest.mark.parametrize("task", TASKS)
def test_states_and_mean_equal_numpy(folder: Path, bundle: Path, task: str) -> None:
    draw = np.random.default_rng(2)
    texts = [draw.integers(0, TINY.rows, length) for length in (3, 40, 17)]
    session = Session(bundle / "fp32" / f"{task}.onnx", SessionSettings(num_threads=2))
    pooled, states = session.run(pad(texts), ["pooled", "token_embeddings"])
    for row, ids in enumerate(texts):
        expected = Reference(folder, task).states(ids)
        assert np.abs(states[row, : len(ids)] - expected).max() < TOLERANCE
        assert np.abs(pooled[row] - expected.mean(axis=0)).max() < TOLERANCE


def test_tasks_share_what_no_adapter_touches(bundle: Path) -> None:
    """Five merged copies of the linears, one word table: its size shows in the file once."""
    num_bytes = (bundle / "fp32" / "weights.data").stat().st_size
    linears = TINY.layers * TINY.hidden * (4 * TINY.hidden + 2 * TINY.feed_forward) * 4
    table, updates = TINY.rows * TINY.hidden * 4, 5 * TINY.rows * xlmr.RANK * 4
    padding = 4096 * 8 * len(TASKS) * (TINY.layers + 1)  # each tensor begins on a page
    assert table + updates + len(TASKS) * linears < num_bytes
    assert (
        num_bytes
        < table + updates + len(TASKS) * linears + padding
        < 2 * table + updates + 6 * linears + padding
    )


@pytest.fixture
def published(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put states of the tiny model, computed by numpy, in the place of the published ones."""
    ids = np.array([0, 345, 232, 328, 740, 140, 2])
    text = "the red fox is far"
    tokens = np.array(Tokenizer.from_file(str(folder / "tokenizer.json")).encode(text).ids)
    # Rotary positions are relative: the states behind a masked first token are those of the text without it.
    masked = {task: Reference(folder, task).states(ids[1:])[:3, 1:4].round(4).tolist() for task in TASKS}
    whole = {task: Reference(folder, task).states(tokens)[1:2, 1:10].round(4).tolist() for task in TASKS}
    cases = [
        {"name": "A", "ids": ids.tolist(), "mask": [0] + [1] * 6, "rows": [1, 4], "columns": [1, 4],
         "states": masked},
        {"name": "B", "text": text, "rows": [1, 2], "columns": [1, 10], "states": whole},
    ]  # fmt: skip
    content = {"dimensions": TINY.hidden, "tolerance": 1e-4, "cases": cases}
    (tmp_path / "jina-embeddings-v3.json").write_text(json.dumps(content))
    monkeypatch.setattr(reference, "FOLDER", tmp_path)


@pytest.mark.usefixtures("published")
def test_verify_passes_every_task_against_published_states(
    bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["verify", V3, "--out", str(bundle.parent)]) == 0
    lines = capsys.readouterr().out.splitlines()
    for task in TASKS:
        (line,) = (line for line in lines if f" {task} fp32" in line)
        assert "against the reference PASS" in line


@pytest.mark.usefixtures("published")
def test_verify_fails_on_a_wrong_adapter_order(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    config = json.loads((copy / "config.json").read_text())
    order = config["lora_adaptations"]
    config["lora_adaptations"] = [order[1], order[0], *order[2:]]
    (copy / "config.json").write_text(json.dumps(config))
    xlmr.bake_tiny(tmp_path / "out", V3, copy, TASKS)
    assert main(["verify", V3, "--out", str(tmp_path / "out")]) == 1
    output = capsys.readouterr()
    verdicts = {task: f" {task} fp32: verified; against the reference PASS" in output.out for task in TASKS}
    assert [task for task, passed in verdicts.items() if not passed] == [
        "retrieval.query",
        "retrieval.passage",
    ]
    assert "published reference values" in output.err


def test_published_values_are_those_of_six_variants_and_two_cases() -> None:
    content = json.loads((reference.FOLDER / "jina-embeddings-v3.json").read_text(encoding="utf-8"))
    assert [set(case["states"]) for case in content["cases"]] == [set(TASKS)] * 2
    shapes = [{np.shape(states) for states in case["states"].values()} for case in content["cases"]]
    assert shapes == [{(3, 3)}, {(1, 9)}]
    assert content["cases"][0]["mask"] == [0] + [1] * 10


@pytest.mark.skipif(not MODEL_FACTS.is_file(), reason=golden.MISSING)
def test_published_values_are_those_of_the_model_facts() -> None:
    """Every number of the tables, in their order."""
    section = MODEL_FACTS.read_text(encoding="utf-8").split("### 1.7 Reference values")[1].split("## 2.")[0]
    rows = re.findall(r"^\| (\w+) \|((?: -?\d.*)+)\|$", section, re.MULTILINE)
    written = [float(number) for _, cells in rows for number in re.findall(r"-?\d+\.\d+", cells)]
    content = json.loads((reference.FOLDER / "jina-embeddings-v3.json").read_text(encoding="utf-8"))
    stored = [np.ravel(states).tolist() for case in content["cases"] for states in case["states"].values()]
    assert len(written) == 6 * (9 + 9)
    assert written == [number for numbers in stored for number in numbers]


def test_a_model_of_other_sizes_is_not_compared(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", V3, "--out", str(bundle.parent)]) == 0
    assert "against the reference" not in capsys.readouterr().out
