"""Adapters of all tasks in one file, as jina-embeddings-v4 has them: formula, sharing, what is refused."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from safetensors.numpy import load_file

from convert import lora
from convert.checkpoint import Checkpoint
from convert.weights import Weights
from service.errors import BakeError
from tests import qwen, qwen_vl, qwen_vl_reference, xlmr
from tests.qwen_vl import ADAPTERS, JINA_V4, PROJECTOR, SIZES
from tests.xlmr import F32

LINEARS = tuple(
    f"layers.{layer}.{part}"
    for layer in range(SIZES.text.layers)
    for part in (
        "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj",
        "mlp.up_proj", "mlp.down_proj",
    )
)  # fmt: skip
ADAPTED = (*LINEARS, PROJECTOR)
GATE, PROJECTED = "layers.1.mlp.gate_proj", PROJECTOR
SHARED = ("embed_tokens.weight", "norm.weight", "layers.0.input_layernorm.weight")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return qwen_vl.write_jina_v4(tmp_path_factory.mktemp("v4") / "checkpoint")


@pytest.fixture
def copy(source: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(source, tmp_path / "copy"))


def merged(folder: Path, task: str) -> Weights:
    opened = Checkpoint(folder)
    return lora.merged(opened.weights, lora.read_adapter(opened, task))


def adapters_of(folder: Path) -> dict[str, np.ndarray]:
    stored = load_file(folder / qwen_vl.ADAPTER_WEIGHTS)
    return {name: values.astype(np.float32) for name, values in stored.items()}


def stored_name(module: str, side: str, task: str) -> str:
    tree = "" if module == PROJECTOR else "model.language_model."
    return f"base_model.model.{tree}{module}.lora_{side}.{task}.weight"


# --- the formula ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", ADAPTERS)
def test_every_linear_layer_and_the_projector_get_b_times_a(source: Path, task: str) -> None:
    plain, found = qwen_vl_reference.read(source).tensors, merged(source, task)
    stored = adapters_of(source)
    for module in ADAPTED:
        side_a, side_b = (stored[stored_name(module, side, task)].astype(np.float64) for side in "AB")
        update = 1.5 * side_b @ side_a  # alpha 6, rank 4
        weight = f"{module}.weight"
        assert np.abs(found[weight].read() - plain[weight] - update).max() < 1e-6, module
        assert np.abs(update).max() > 0.05  # the adapter is there to be seen, and so is its scale


def test_the_scale_is_alpha_over_rank(copy: Path) -> None:
    qwen.change_json(copy / qwen_vl.ADAPTER_CONFIG, lora_alpha=2)
    plain, found = qwen_vl_reference.read(copy).tensors, merged(copy, "code")
    updates = qwen_vl_reference.updates(copy, "code", 0.5)
    assert set(updates) == {f"{module}.weight" for module in ADAPTED}
    for weight, update in updates.items():
        assert np.abs(found[weight].read() - plain[weight] - update).max() < 1e-6


def test_the_trees_of_weights_and_adapters_may_differ(source: Path, copy: Path) -> None:
    """Older files of adapters lack `language_model`, as their weights do."""
    shorter = {name.replace(".language_model", ""): values for name, values in adapters_of(source).items()}
    xlmr.write_safetensors(copy / qwen_vl.ADAPTER_WEIGHTS, shorter, F32)
    one, other = (merged(folder, "code") for folder in (source, copy))
    for module in ADAPTED:
        assert np.array_equal(one[f"{module}.weight"].read(), other[f"{module}.weight"].read())


# --- sharing ----------------------------------------------------------------------------------------------


def test_only_adapted_weights_have_keys_of_their_own(source: Path) -> None:
    every = [Checkpoint(source).weights, *(merged(source, task) for task in ADAPTERS)]
    assert {frozenset(weights.tensors) for weights in every} == {frozenset(every[0].tensors)}
    own = {f"{module}.weight" for module in ADAPTED}
    for name in every[0].tensors:
        keys = {weights[name].key for weights in every}
        assert len(keys) == (len(every) if name in own else 1), name
    assert set(SHARED) <= set(every[0].tensors) - own


def test_what_tasks_share_is_stored_once(source: Path, tmp_path: Path) -> None:
    bundle = xlmr.bake_tiny(tmp_path, JINA_V4, source, (*ADAPTERS, "none"))
    places: dict[str, set[tuple[int, int]]] = {}
    for task in (*ADAPTERS, "none"):
        graph = onnx.load(str(bundle / "fp32" / f"{task}.onnx"), load_external_data=False).graph
        for tensor in graph.initializer:
            if tensor.data_location == onnx.TensorProto.EXTERNAL:
                record = {entry.key: entry.value for entry in tensor.external_data}
                assert record["location"] == "weights.data"
                place = int(record["offset"]), int(record["length"])
                places.setdefault(tensor.name, set()).add(place)
    own = {f"{module}.weight" for module in LINEARS}
    assert {name for name, found in places.items() if len(found) == len(ADAPTERS) + 1} >= own
    assert {name for name, found in places.items() if len(found) == 1} == {"word_embeddings"}
    stored = sorted(set().union(*places.values()))
    size = (bundle / "fp32" / "weights.data").stat().st_size
    assert sum(length for _, length in stored) <= size < sum(length + 4096 for _, length in stored)
    assert sorted(path.name for path in (bundle / "vision").iterdir()) == ["model.onnx", "weights.data"]


# --- what is refused --------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", ["separation", "retrieval.query", "retrieva", "lora_A"])
def test_a_task_that_the_file_lacks_is_named(source: Path, task: str) -> None:
    with pytest.raises(BakeError, match=f"no task '{task}', only code, retrieval, text-matching"):
        merged(source, task)


@pytest.mark.parametrize("file", [qwen_vl.ADAPTER_CONFIG, qwen_vl.ADAPTER_WEIGHTS])
def test_a_missing_file_is_refused(copy: Path, file: str) -> None:
    (copy / file).unlink()
    with pytest.raises(BakeError, match=r"no adapter of 'code': .* adapters/|adapter_model.safetensors"):
        merged(copy, "code")


def drop_side_a(tensors: dict[str, np.ndarray]) -> None:
    del tensors[stored_name(GATE, "A", "code")]


def drop_side_b_of_the_projector(tensors: dict[str, np.ndarray]) -> None:
    del tensors[stored_name(PROJECTED, "B", "code")]


def drop_module(tensors: dict[str, np.ndarray]) -> None:
    for side in "AB":
        del tensors[stored_name(GATE, side, "code")]


def drop_projector(tensors: dict[str, np.ndarray]) -> None:
    for side in "AB":
        del tensors[stored_name(PROJECTED, side, "code")]


def add_module(tensors: dict[str, np.ndarray]) -> None:
    for side in "AB":
        tensors[stored_name("layers.7.mlp.gate_proj", side, "code")] = np.zeros((4, 4), dtype=np.float32)


def add_head(tensors: dict[str, np.ndarray]) -> None:
    for side in "AB":
        tensors[f"base_model.model.lm_head.lora_{side}.code.weight"] = np.zeros((4, 4), dtype=np.float32)


def add_stranger(tensors: dict[str, np.ndarray]) -> None:
    tensors["base_model.model.model.language_model.layers.0.other"] = np.zeros(1, dtype=np.float32)


def add_dora(tensors: dict[str, np.ndarray]) -> None:
    name = "base_model.model.model.language_model.layers.0.mlp.up_proj.lora_magnitude_vector.code.weight"
    tensors[name] = np.zeros(1, dtype=np.float32)


def add_table(tensors: dict[str, np.ndarray]) -> None:
    name = "base_model.model.model.language_model.embed_tokens.lora_embedding_A.code"
    tensors[name] = np.zeros((4, 4), dtype=np.float32)


def forget_tasks(tensors: dict[str, np.ndarray]) -> None:
    name = stored_name(GATE, "A", "code")
    tensors[name.replace(".code.", ".")] = tensors.pop(name)


def cut_columns(tensors: dict[str, np.ndarray]) -> None:
    name = stored_name(GATE, "A", "code")
    tensors[name] = tensors[name][:, :-1]


def cut_rows(tensors: dict[str, np.ndarray]) -> None:
    name = stored_name(GATE, "B", "code")
    tensors[name] = tensors[name][:-1]


def cut_rank(tensors: dict[str, np.ndarray]) -> None:
    name = stored_name(GATE, "A", "code")
    tensors[name] = tensors[name][:-1]


def exchange_sides(tensors: dict[str, np.ndarray]) -> None:
    """Transpose both: the product has the shape of the weight's transpose."""
    for side in "AB":
        name = stored_name(GATE, side, "code")
        tensors[name] = tensors[name].T


Break = Callable[[dict[str, np.ndarray]], None]
BROKEN: list[tuple[Break, str]] = [
    (drop_side_a, f"only side B of {GATE}"),
    (drop_side_b_of_the_projector, f"only side A of {PROJECTED}"),
    (drop_module, f"adapter code has nothing for {GATE}"),
    (drop_projector, f"adapter code has nothing for {PROJECTED}"),
    (add_module, "no tensor 'layers.7.mlp.gate_proj.weight'"),
    (add_head, "no tensor 'lm_head.weight'"),
    (add_stranger, "layers.0.other', which is not a part of a task's LoRA layer"),
    (add_dora, "lora_magnitude_vector.code.weight', which is not a part of a task's LoRA layer"),
    (add_table, "lora_embedding_A.code', which is not a part of a task's LoRA layer"),
    (forget_tasks, "lora_A.weight', which is not a part of a task's LoRA layer"),
    (cut_columns, f"{GATE} does not have the shape"),
    (cut_rows, f"{GATE} does not have the shape"),
    (cut_rank, f"{GATE} has rank 4 x 3, its config says 4"),
    (exchange_sides, f"{GATE} does not have the shape"),
]


@pytest.mark.parametrize(("break_it", "reason"), BROKEN, ids=[each.__name__ for each, _ in BROKEN])
def test_a_broken_adapter_is_named(copy: Path, break_it: Break, reason: str) -> None:
    tensors = adapters_of(copy)
    break_it(tensors)
    xlmr.write_safetensors(copy / qwen_vl.ADAPTER_WEIGHTS, tensors, F32)
    with pytest.raises(BakeError) as caught:
        merged(copy, "code")
    assert reason in str(caught.value)


@pytest.mark.parametrize("break_it", [drop_side_a, drop_module, cut_columns, cut_rank])
def test_a_broken_adapter_of_another_task_does_not_matter(source: Path, copy: Path, break_it: Break) -> None:
    """Only the tasks that are baked are read."""
    tensors = adapters_of(copy)
    break_it(tensors)
    xlmr.write_safetensors(copy / qwen_vl.ADAPTER_WEIGHTS, tensors, F32)
    one, other = (merged(folder, "retrieval")[f"{GATE}.weight"].read() for folder in (source, copy))
    assert np.array_equal(one, other)


def test_an_adapter_of_the_tower_is_refused(copy: Path) -> None:
    """The tower is one for all tasks: an update of it would be dropped without a word."""
    tensors, module = adapters_of(copy), "base_model.model.model.visual.blocks.0.attn.proj"
    for side, shape in {"A": (4, 32), "B": (32, 4)}.items():
        tensors[f"{module}.lora_{side}.code.weight"] = np.zeros(shape, dtype=np.float32)
    xlmr.write_safetensors(copy / qwen_vl.ADAPTER_WEIGHTS, tensors, F32)
    with pytest.raises(BakeError, match="visual"):
        merged(copy, "code")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"use_dora": True}, "asks for ['use_dora']: only plain LORA"),
        ({"use_rslora": True}, "asks for ['use_rslora']: only plain LORA"),
        ({"fan_in_fan_out": True}, "asks for ['fan_in_fan_out']: only plain LORA"),
        ({"alpha_pattern": {"q_proj": 8}}, "asks for ['alpha_pattern']: only plain LORA"),
        ({"rank_pattern": {"q_proj": 8}}, "asks for ['rank_pattern']: only plain LORA"),
        ({"peft_type": "IA3"}, "asks for IA3: only plain LORA"),
        ({"r": 8}, "rank 4 x 4, its config says 8"),
        ({"r": 0}, "has r 0, must be positive"),
        ({"r": "many"}, "no usable r and lora_alpha"),
        ({"lora_alpha": None}, "no usable r and lora_alpha"),
    ],
    ids=str,
)
def test_a_config_of_another_formula_is_refused(copy: Path, change: dict[str, object], reason: str) -> None:
    qwen.change_json(copy / qwen_vl.ADAPTER_CONFIG, **change)
    with pytest.raises(BakeError) as caught:
        merged(copy, "code")
    assert reason in str(caught.value)


@pytest.mark.parametrize("key", ["r", "lora_alpha"])
def test_a_config_without_a_needed_key_is_refused(copy: Path, key: str) -> None:
    qwen.change_json(copy / qwen_vl.ADAPTER_CONFIG, key)
    with pytest.raises(BakeError, match=f"'{key}'"):
        merged(copy, "code")


def test_a_checkpoint_without_adapters_bakes_its_base_alone(copy: Path, tmp_path: Path) -> None:
    shutil.rmtree(copy / qwen_vl.ADAPTER_FOLDER)
    bundle = xlmr.bake_tiny(tmp_path / "models", JINA_V4, copy, ("none",))
    assert sorted(path.name for path in (bundle / "fp32").iterdir()) == ["none.onnx", "weights.data"]
    with pytest.raises(BakeError, match="no adapter of 'retrieval': neither stacked nor in retrieval/"):
        xlmr.bake_tiny(tmp_path / "others", JINA_V4, copy)
    assert not (tmp_path / "others" / JINA_V4).exists()
