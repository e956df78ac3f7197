"""The modules of sentence-transformers that a checkpoint lists: a transformer, what pools, what follows.

Reads `modules.json` and the small JSON file of each module; knows no architecture, no tensor and no graph.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from convert.checkpoint import read_json, read_json_value, read_optional_json
from convert.recipe import Dense
from service.errors import BakeError
from service.manifest import Pooling

MODULES_FILE, SETTINGS_FILE = "modules.json", "config_sentence_transformers.json"
MODULE_FILE = "config.json"  # in the folder of a module
PACKAGE = "sentence_transformers."
EMBEDDER, CROSS_ENCODER = "SentenceTransformer", "CrossEncoder"  # as `model_type` has it; the first if unsaid
TRANSFORMER, POOLING, DENSE, NORMALIZE = "Transformer", "Pooling", "Dense", "Normalize"
ORDER = {TRANSFORMER: 0, POOLING: 1, DENSE: 2, NORMALIZE: 3}
FLAG = "pooling_mode_"
FLAGS = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_lasttoken": "lasttoken",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
}
MODES = {"mean": Pooling.MEAN, "cls": Pooling.CLS, "lasttoken": Pooling.LAST}
ROOT_MODE = "mean_sqrt_len_tokens"  # the mean, times a number that a length of 1 takes away again
VECTOR = "sentence_embedding"  # what pooling makes and the modules behind it change
ACTIVATIONS = {"Identity": None, "Tanh": "Tanh", "ReLU": "Relu", "Sigmoid": "Sigmoid"}
TRUSTED, DEFAULT_ACTIVATION = "torch.", "torch.nn.modules.activation.Tanh"
DENSE_FILES = ("model.safetensors", "pytorch_model.bin")  # the first that is there


@dataclass(frozen=True, kw_only=True)
class ModuleList:
    """The folders of the modules, as they are spelled; of a cross-encoder the transformer's alone."""

    transformer: str
    pooling: str | None
    dense: tuple[str, ...]
    is_cross_encoder: bool  # by its own word


def read(root: Path) -> ModuleList | None:
    """Read the list of modules; None where there is none. Raises BakeError for what cannot be served."""
    path = root / MODULES_FILE
    if not path.is_file():
        return None
    model_type = _model_type(root)
    entries = read_json_list(path)
    kinds = [_kind(path, entry) for entry in entries]
    folders: dict[str, list[str]] = {}
    for kind, entry in zip(kinds, entries, strict=True):
        folders.setdefault(kind, []).append(str(entry.get("path") or ""))
    if model_type == CROSS_ENCODER and kinds != [TRANSFORMER]:
        raise BakeError(
            f"{path} is of a cross-encoder of {', '.join(kinds)}: only one of a Transformer alone, "
            "which scores by its own classifier, can be served"
        )
    is_once = all(len(folders.get(kind, [""])) == 1 for kind in (TRANSFORMER, POOLING))
    is_plain = kinds == [TRANSFORMER]  # makes no vectors: for a classifier
    is_pooled = kinds[:2] == [TRANSFORMER, POOLING] and kinds == sorted(kinds, key=ORDER.__getitem__)
    if not is_once or not (is_plain or is_pooled):
        raise BakeError(
            f"{path} has {', '.join(kinds)}: only Transformer, Pooling, then Dense and Normalize "
            "can be served"
        )
    return ModuleList(
        transformer=folders[TRANSFORMER][0],
        pooling=folders.get(POOLING, [None])[0],
        dense=tuple(folders.get(DENSE, [])),
        is_cross_encoder=model_type == CROSS_ENCODER,
    )


def read_json_list(path: Path) -> list[dict[str, Any]]:
    """Read a JSON list of objects. Raises BakeError when it is broken."""
    content = read_json_value(path)
    if not isinstance(content, list) or not all(isinstance(entry, dict) for entry in content):
        raise BakeError(f"{path} is not a list of JSON objects")
    return content


def _model_type(root: Path) -> str:
    path = root / SETTINGS_FILE
    found = read_optional_json(path).get("model_type", EMBEDDER)
    if found not in (EMBEDDER, CROSS_ENCODER):
        raise BakeError(f"{path} has model_type {found!r}: only {EMBEDDER} and {CROSS_ENCODER} can be served")
    return str(found)


def _kind(path: Path, entry: Mapping[str, Any]) -> str:
    name = str(entry.get("type"))
    if not name.startswith(PACKAGE):
        raise BakeError(
            f"{path} has a module {name}, which is code of the checkpoint's own; no code from a "
            "checkpoint is ever run (trust_remote_code is off)"
        )
    kind = name.rpartition(".")[2]
    if kind not in ORDER:
        raise BakeError(f"{path} has a module {name}; only {', '.join(ORDER)} can be served")
    return kind


def pooling(folder: Path, *, is_last: bool) -> Pooling:
    """Read how a module pools; `is_last`: the length of what it makes does not matter. Raises BakeError."""
    path = folder / MODULE_FILE
    config = read_json(path)
    mode = config.get("pooling_mode")
    if mode is None:
        flags = [name for name, value in config.items() if name.startswith(FLAG) and value is True]
        modes = [FLAGS.get(name, name) for name in flags] or ["mean"]
    else:
        modes = list(mode) if isinstance(mode, list) else [mode]
    known = MODES | ({ROOT_MODE: Pooling.MEAN} if is_last else {})
    if len(modes) != 1 or modes[0] not in known:
        found = ", ".join(map(str, modes)) or "nothing"
        raise BakeError(f"{path} pools by {found}: one of {', '.join(known)} can be served, alone")
    return known[modes[0]]


def dense(root: Path, folders: tuple[str, ...]) -> tuple[Dense, ...]:
    """Read the dense modules. Raises BakeError for one that cannot be served."""
    made = tuple(_dense(root / folder) for folder in folders)
    if len({layer.folder for layer in made}) != len(made):
        raise BakeError(
            f"{root / MODULES_FILE} has Dense modules in {', '.join(folders)}: their folders must have names "
            "of their own"
        )
    return made


def dense_files(root: Path, folders: tuple[str, ...], beside: Path) -> tuple[str, ...]:
    """List the files of the dense modules, as they are found from the folder `beside`. Raises BakeError."""
    found = []
    for folder in folders:
        paths = [root.resolve() / folder / name for name in DENSE_FILES]
        path = next((path for path in paths if path.is_file()), None)
        if path is None:
            raise BakeError(f"{root / folder} holds none of {', '.join(DENSE_FILES)}")
        found.append(Path(os.path.relpath(path, beside.resolve())).as_posix())
    return tuple(found)


def _dense(folder: Path) -> Dense:
    path = folder / MODULE_FILE
    config = read_json(path)
    function = config.get("activation_function", DEFAULT_ACTIVATION)
    activation, size = str(function).rpartition(".")[2], config.get("out_features")
    is_known = str(function).startswith(TRUSTED) and activation in ACTIVATIONS
    if not is_known or not isinstance(size, int) or size < 1:
        raise BakeError(
            f"{path} has activation_function {function}, out_features {size!r}; known are "
            f"{', '.join(ACTIVATIONS)} of torch and a positive number"
        )
    source = config.get("module_input_name", VECTOR)
    target = config.get("module_output_name")
    if source != VECTOR or target not in (None, VECTOR):
        raise BakeError(
            f"{path} is of a layer from {source} to {target or source}: only one on the pooled vector "
            f"({VECTOR}) can be served"
        )
    return Dense(folder=folder.name, size=size, activation=ACTIVATIONS[activation])
