"""Adapters: low-rank updates of a task, read in three published layouts, merged one tensor at a time.

Sources: jinaai/xlm-roberta-flash-implementation (stacked adapters behind a parametrization), PEFT (a folder
of its own for each task) and jinaai/jina-embeddings-v4 (one PEFT file for all tasks). A linear layer gets
W + s * (B @ A), a table W + s * (A @ B); s is alpha / rank.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from convert.checkpoint import Checkpoint, normalised, open_weights, read_json
from convert.weights import Floats, Tensor, Weights
from service.errors import BakeError

WORD_TABLE = "embeddings.word_embeddings"
TABLE_A, TABLE_B = f"{WORD_TABLE}.adapter_a", f"{WORD_TABLE}.adapter_b"  # (rows, rank), (rank, size) scaled
# Where every matrix has an update.
ADAPTED = ("embeddings.", "encoder.", "layers.", "multi_vector_projector.")
SHARED = "visual."  # where none may have one
COMBINED_FOLDER = "adapters"  # one file for all tasks
PEFT_CONFIG, PEFT_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
# What a PEFT adapter may not ask for: each changes the formula.
PEFT_UNSUPPORTED = ("use_dora", "use_rslora", "fan_in_fan_out", "alpha_pattern", "rank_pattern")
# PEFT knows query, key and value as layers of their own; the checkpoint has them as rows of one.
FUSED_PART = re.compile(r"(?P<layer>.*)\.self_attn\.(?P<part>[qkv])_proj$")
COMBINED_TENSOR = re.compile(r"(?P<module>.*)\.lora_(?P<side>[AB])\.(?P<task>[^.]+)\.weight$")
PEFT_TENSOR = re.compile(r"(?P<module>.*)\.lora_(?P<table>embedding_)?(?P<side>[AB])(\.weight)?$")


@dataclass(frozen=True)
class Update:
    """A product `left` (rows, rank) @ `right` (rank, columns), in the orientation of the weights."""

    left: Tensor
    right: Tensor


@dataclass(frozen=True)
class Adapter:
    """The updates of one task: by module, its blocks of rows one below the other."""

    task: str
    rank: int
    alpha: float
    updates: Mapping[str, tuple[Update, ...]]

    @property
    def scaling(self) -> float:
        """Return what the products are multiplied by."""
        return self.alpha / self.rank


def adapter_files(checkpoint: Checkpoint) -> list[Path]:
    """List the weight files of adapters that have folders of their own."""
    return sorted(checkpoint.folder.glob(f"*/{PEFT_WEIGHTS}"))


def read_adapter(checkpoint: Checkpoint, task: str) -> Adapter:
    """Find a task's adapter, stacked in the checkpoint or in a folder of its own. Raises BakeError."""
    folder = checkpoint.folder / re.sub(r"\W", "_", task)
    if any(name.endswith(".lora_A") for name in checkpoint.weights.tensors):
        return _stacked(checkpoint, task)
    if (folder / PEFT_CONFIG).is_file():
        return _peft(folder, task)
    if (checkpoint.folder / COMBINED_FOLDER / PEFT_CONFIG).is_file():
        return _combined(checkpoint.folder / COMBINED_FOLDER, task)
    raise BakeError(
        f"{checkpoint.folder} has no adapter of {task!r}: neither stacked nor in {folder.name}/ or "
        f"{COMBINED_FOLDER}/"
    )


def merged(weights: Weights, adapter: Adapter) -> Weights:
    """Return the weights with the adapter added.

    The word table stays as it is, so that all tasks share it: its update comes as two tensors of its own,
    TABLE_A and TABLE_B, for the graph to apply to the rows it looks up.
    """
    _check_complete(weights, adapter)
    changed: dict[str, Tensor] = {}
    for module, blocks in adapter.updates.items():
        base = weights[f"{module}.weight"]
        _check_shapes(adapter, module, base.shape)
        if module == WORD_TABLE:
            changed |= _table_tensors(adapter, blocks[0])
            continue
        read = partial(_merge, base, blocks, adapter.scaling)
        changed[f"{module}.weight"] = Tensor(f"{base.key}@{adapter.task}", base.shape, read)
    return weights.updated(changed)


def _check_complete(weights: Weights, adapter: Adapter) -> None:
    """Refuse an adapter that leaves a matrix of the encoder out: those of this family leave out none."""
    matrices = [
        name.removesuffix(".weight")
        for name, tensor in weights.tensors.items()
        if name.startswith(ADAPTED) and name.endswith(".weight") and len(tensor.shape) == 2
    ]
    missing = [module for module in matrices if module not in adapter.updates]
    if missing:
        raise BakeError(f"adapter {adapter.task} has nothing for {', '.join(missing[:3])}")
    shared = [module for module in adapter.updates if module.startswith(SHARED)]
    if shared:
        raise BakeError(f"adapter {adapter.task} has {shared[0]}, but the vision tower is one for all tasks")


def _check_shapes(adapter: Adapter, module: str, shape: tuple[int, ...]) -> None:
    blocks = adapter.updates[module]
    rows = sum(block.left.shape[0] for block in blocks)
    for block in blocks:
        if (rows, block.right.shape[1]) != shape:
            raise BakeError(
                f"adapter {adapter.task}: {module} does not have the shape {shape} of its weights"
            )
        if not block.left.shape[1] == block.right.shape[0] == adapter.rank:
            raise BakeError(
                f"adapter {adapter.task}: {module} has rank {block.left.shape[1]} x {block.right.shape[0]}, "
                f"its config says {adapter.rank}"
            )


def _merge(base: Tensor, blocks: tuple[Update, ...], scaling: float) -> Floats:
    update = np.concatenate([block.left.read() @ block.right.read() for block in blocks])
    return np.asarray(base.read() + np.float32(scaling) * update, dtype=np.float32)


def _table_tensors(adapter: Adapter, update: Update) -> dict[str, Tensor]:
    def scaled() -> Floats:
        product: Floats = np.float32(adapter.scaling) * update.right.read()
        return product

    return {
        TABLE_A: Tensor(f"{TABLE_A}@{adapter.task}", update.left.shape, update.left.read),
        TABLE_B: Tensor(f"{TABLE_B}@{adapter.task}", update.right.shape, scaled),
    }


def _stacked(checkpoint: Checkpoint, task: str) -> Adapter:
    """Cut a task's slices out of the tensors (tasks, ...) of the original layout."""
    config, weights = checkpoint.config, checkpoint.weights
    tasks = config.get("lora_adaptations")
    if not isinstance(tasks, list) or task not in tasks:
        raise BakeError(f"config.json has no {task!r} among its lora_adaptations {tasks!r}")
    modules = sorted(
        {name.rpartition(".")[0] for name in weights.tensors if name.endswith((".lora_A", ".lora_B"))}
    )
    updates = {}
    for module in modules:
        side_a, side_b = (weights[f"{module}.lora_{side}"] for side in "AB")
        if side_a.shape[0] != len(tasks) or side_b.shape[0] != len(tasks):
            raise BakeError(f"{module} has {side_a.shape[0]} adapters, config.json names {len(tasks)} tasks")
        one_a, one_b = (_slice(side, tasks.index(task)) for side in (side_a, side_b))
        # The two sides change places in tables.
        updates[module] = (Update(one_a, one_b) if _is_table(module) else Update(one_b, one_a),)
    return Adapter(task, *_rank_and_alpha(config, "lora_rank", "lora_alpha"), updates)


def _peft(folder: Path, task: str) -> Adapter:
    """Read an adapter folder as PEFT saves it."""
    config = _peft_config(folder)
    sides: dict[str, dict[str, Tensor]] = {}
    tables = set()
    for name, tensor in open_weights(folder / PEFT_WEIGHTS).items():
        found = PEFT_TENSOR.match(normalised(name))
        if not found:
            raise BakeError(f"{folder / PEFT_WEIGHTS} has {name!r}, which is not a part of a LoRA layer")
        sides.setdefault(found["module"], {})[found["side"]] = tensor
        if found["table"]:
            tables.add(found["module"])
    updates: dict[str, tuple[Update, ...]] = {}
    for module, pair in sorted(sides.items(), key=lambda item: _fused_place(item[0])):
        _check_pair(folder, module, pair)
        one_a, one_b = pair["A"], pair["B"]
        update = Update(_transposed(one_a), _transposed(one_b)) if module in tables else Update(one_b, one_a)
        target, _ = _fused_place(module)
        updates[target] = (*updates.get(target, ()), update)
    return Adapter(task, *_rank_and_alpha(config, "r", "lora_alpha"), updates)


def _combined(folder: Path, task: str) -> Adapter:
    """Read a task's tensors out of a file that has those of all. Source: custom_lora_module.py of v4."""
    config = _peft_config(folder)
    sides: dict[str, dict[str, Tensor]] = {}
    tasks = set()
    for name, tensor in open_weights(folder / PEFT_WEIGHTS).items():
        found = COMBINED_TENSOR.match(normalised(name))
        if not found:
            raise BakeError(
                f"{folder / PEFT_WEIGHTS} has {name!r}, which is not a part of a task's LoRA layer"
            )
        tasks.add(found["task"])
        if found["task"] == task:
            sides.setdefault(found["module"], {})[found["side"]] = tensor
    if task not in tasks:
        raise BakeError(f"{folder / PEFT_WEIGHTS} has no task {task!r}, only {', '.join(sorted(tasks))}")
    for module, pair in sides.items():
        _check_pair(folder, module, pair)
    updates = {module: (Update(pair["B"], pair["A"]),) for module, pair in sorted(sides.items())}
    return Adapter(task, *_rank_and_alpha(config, "r", "lora_alpha"), updates)


def _peft_config(folder: Path) -> dict[str, Any]:
    """Read the config of an adapter. Raises BakeError for one that is not plain LoRA."""
    config = read_json(folder / PEFT_CONFIG)
    unsupported = [name for name in PEFT_UNSUPPORTED if config.get(name)]
    if config.get("peft_type") != "LORA" or unsupported:
        reason = unsupported or config.get("peft_type")
        raise BakeError(f"{folder / PEFT_CONFIG} asks for {reason}: only plain LORA can be merged")
    return config


def _check_pair(folder: Path, module: str, pair: Mapping[str, Tensor]) -> None:
    if set(pair) != {"A", "B"}:
        raise BakeError(f"{folder / PEFT_WEIGHTS} has only side {', '.join(pair)} of {module}")


def _fused_place(module: str) -> tuple[str, int]:
    """Return the checkpoint's module that holds a PEFT module, and the place of its rows in it."""
    found = FUSED_PART.match(module)
    return (f"{found['layer']}.mixer.Wqkv", "qkv".index(found["part"])) if found else (module, 0)


def _is_table(module: str) -> bool:
    return module.startswith("embeddings.")


def _rank_and_alpha(config: Mapping[str, Any], rank: str, alpha: str) -> tuple[int, float]:
    try:
        found = int(config[rank]), float(config[alpha])
    except (KeyError, TypeError, ValueError) as error:
        raise BakeError(f"the adapter's config has no usable {rank} and {alpha}: {error!r}") from error
    if found[0] < 1:
        raise BakeError(f"the adapter's config has {rank} {found[0]}, must be positive")
    return found


def _slice(stacked: Tensor, index: int) -> Tensor:
    return Tensor(f"{stacked.key}[{index}]", stacked.shape[1:], lambda: stacked.read()[index])


def _transposed(tensor: Tensor) -> Tensor:
    return Tensor(f"{tensor.key}.T", tensor.shape[::-1], lambda: tensor.read().T)
