"""Adapters: both layouts, the formulas of both kinds of layers, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from convert import lora
from convert.checkpoint import Checkpoint
from convert.lora import TABLE_A, TABLE_B, WORD_TABLE
from convert.weights import Weights
from service.errors import BakeError
from tests import xlmr

TASKS = tuple(xlmr.PREFIXES)
QKV, OUTPUT = "encoder.layers.1.mixer.Wqkv", "encoder.layers.0.mixer.out_proj"
SCALING = xlmr.ALPHA / xlmr.RANK


@pytest.fixture(scope="module")
def stacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return xlmr.write_jina_v3(tmp_path_factory.mktemp("lora") / "stacked")


@pytest.fixture(scope="module")
def peft(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return xlmr.write_jina_v3_peft(tmp_path_factory.mktemp("lora") / "peft")


def merged(folder: Path, task: str) -> Weights:
    opened = Checkpoint(folder)
    return lora.merged(opened.weights, lora.read_adapter(opened, task))


def raw(folder: Path) -> dict[str, np.ndarray]:
    return {name: value.astype(np.float64) for name, value in load_file(folder / "model.safetensors").items()}


@pytest.mark.parametrize("module", [QKV, OUTPUT, "encoder.layers.0.mlp.fc1", "encoder.layers.1.mlp.fc2"])
@pytest.mark.parametrize("task", TASKS)
def test_a_linear_layer_gets_b_times_a(stacked: Path, task: str, module: str) -> None:
    tensors, index = raw(stacked), TASKS.index(task)
    name = f"roberta.{module}.parametrizations.weight"
    update = tensors[f"{name}.0.lora_B"][index] @ tensors[f"{name}.0.lora_A"][index]
    expected = tensors[f"{name}.original"] + SCALING * update
    assert np.abs(merged(stacked, task)[f"{module}.weight"].read() - expected).max() < 1e-6
    assert np.abs(SCALING * update).max() > 1e-2  # the adapter is there to be seen


@pytest.mark.parametrize("task", TASKS)
def test_tables_get_a_times_b_and_the_word_table_stays_shared(stacked: Path, task: str) -> None:
    tensors, index, weights = raw(stacked), TASKS.index(task), merged(stacked, task)
    for table in ("word", "token_type"):
        name = f"roberta.embeddings.{table}_embeddings.parametrizations.weight"
        update = SCALING * tensors[f"{name}.0.lora_A"][index] @ tensors[f"{name}.0.lora_B"][index]
        if table == "word":
            applied = weights[TABLE_A].read() @ weights[TABLE_B].read()
            assert np.abs(applied - update).max() < 1e-6
            assert (
                weights[f"{WORD_TABLE}.weight"].key == Checkpoint(stacked).weights[f"{WORD_TABLE}.weight"].key
            )
        else:
            expected = tensors[f"{name}.original"] + update
            found = weights["embeddings.token_type_embeddings.weight"].read()
            assert np.abs(found - expected).max() < 1e-6


@pytest.mark.parametrize("task", TASKS)
def test_both_layouts_merge_to_the_same_weights(stacked: Path, peft: Path, task: str) -> None:
    one, other = merged(stacked, task), merged(peft, task)
    names = [name for name in one.tensors if not name.endswith((".lora_A", ".lora_B"))]
    assert set(names) == set(other.tensors)
    for name in names:
        assert np.abs(one[name].read() - other[name].read()).max() < 1e-6, name


def test_only_adapted_tensors_have_keys_of_their_own(stacked: Path) -> None:
    one, other = merged(stacked, TASKS[0]), merged(stacked, TASKS[1])
    shared = {name for name in one.tensors if one[name].key == other[name].key}
    assert "encoder.layers.0.norm1.weight" in shared
    assert f"{QKV}.bias" in shared
    assert not {f"{QKV}.weight", TABLE_A, "embeddings.token_type_embeddings.weight"} & shared


def test_a_peft_adapter_may_carry_the_prefix_of_peft(peft: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(peft, tmp_path / "copy"))
    path = copy / "separation" / lora.PEFT_WEIGHTS
    renamed = {f"base_model.model.{name}": value for name, value in load_file(path).items()}
    save_file(renamed, path)
    plain, prefixed = (merged(folder, "separation")[f"{QKV}.weight"].read() for folder in (peft, copy))
    assert np.array_equal(plain, prefixed)


@pytest.mark.parametrize("side", ["A", "B"])
def test_a_stacked_adapter_with_one_side_is_refused(stacked: Path, tmp_path: Path, side: str) -> None:
    copy = Path(shutil.copytree(stacked, tmp_path / "copy"))
    tensors = dict(load_file(copy / "model.safetensors"))
    del tensors[f"roberta.{OUTPUT}.parametrizations.weight.0.lora_{side}"]
    save_file(tensors, copy / "model.safetensors")
    with pytest.raises(BakeError, match=f"no tensor '{OUTPUT}.lora_{side}'"):
        merged(copy, TASKS[0])


@pytest.mark.parametrize("change", [{"use_rslora": True}, {"use_dora": True}, {"peft_type": "IA3"}, {"r": 0}])
def test_a_peft_config_with_another_formula_is_refused(
    peft: Path, tmp_path: Path, change: dict[str, object]
) -> None:
    copy = Path(shutil.copytree(peft, tmp_path / "copy"))
    path = copy / "separation" / lora.PEFT_CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(BakeError, match=next(iter(change)) if change.get("peft_type") is None else "IA3"):
        merged(copy, "separation")


def drop_side(tensors: dict[str, np.ndarray]) -> None:
    del tensors[next(name for name in tensors if name.endswith("lora_B.weight"))]


def add_stranger(tensors: dict[str, np.ndarray]) -> None:
    tensors["roberta.encoder.layers.0.other"] = np.zeros(1, dtype=np.float32)


def add_module(tensors: dict[str, np.ndarray]) -> None:
    for side in "AB":
        tensors[f"roberta.nothing.lora_{side}.weight"] = np.zeros((1, 1), dtype=np.float32)


def cut_columns(tensors: dict[str, np.ndarray]) -> None:
    name = next(name for name in tensors if name.endswith("fc1.lora_A.weight"))
    tensors[name] = np.ascontiguousarray(tensors[name][:, :-1])


def drop_module(tensors: dict[str, np.ndarray]) -> None:
    for name in [name for name in tensors if "layers.0.mlp.fc1." in name]:
        del tensors[name]


def cut_rank(tensors: dict[str, np.ndarray]) -> None:
    name = next(name for name in tensors if name.endswith("fc1.lora_A.weight"))
    tensors[name] = np.ascontiguousarray(tensors[name][:-1])


@pytest.mark.parametrize(
    ("break_it", "reason"),
    [
        (drop_side, "only side A"),
        (add_stranger, "not a part of a LoRA layer"),
        (add_module, "no tensor 'nothing.weight'"),
        (cut_columns, "does not have the shape"),
        (drop_module, "nothing for encoder.layers.0.mlp.fc1"),
        (cut_rank, "rank 4 x 3, its config says 4"),
    ],
)
def test_a_broken_peft_adapter_is_named(
    peft: Path, tmp_path: Path, break_it: Callable[[dict[str, np.ndarray]], None], reason: str
) -> None:
    copy = Path(shutil.copytree(peft, tmp_path / "copy"))
    path = copy / "separation" / lora.PEFT_WEIGHTS
    tensors = dict(load_file(path))
    break_it(tensors)
    save_file(tensors, path)
    with pytest.raises(BakeError, match=reason):
        merged(copy, "separation")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"lora_adaptations": list(TASKS[1:])}, "retrieval.query"),
        ({"lora_adaptations": [*TASKS, "another"]}, "config.json names 6 tasks"),
        ({"lora_rank": 0}, "lora_rank"),
        ({"lora_rank": 8}, "rank 4 x 4, its config says 8"),
        ({"lora_alpha": None}, "lora_alpha"),
    ],
)
def test_a_config_that_contradicts_the_stacked_adapters_is_refused(
    stacked: Path, tmp_path: Path, change: dict[str, object], reason: str
) -> None:
    copy = Path(shutil.copytree(stacked, tmp_path / "copy"))
    path = copy / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(BakeError, match=reason):
        merged(copy, TASKS[0])


def test_a_task_without_an_adapter_folder_is_refused(peft: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(peft, tmp_path / "copy"))
    shutil.rmtree(copy / "text_matching")
    with pytest.raises(BakeError, match="no adapter of 'text-matching'"):
        merged(copy, "text-matching")
