"""What sentence-transformers writes beside a model: how it pools, what it puts before texts, where it cuts.

Reads the small JSON files alone; knows no architecture, no tensor and no graph.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from convert.checkpoint import read_json, read_json_value
from convert.recipe import Dense
from service.errors import BakeError
from service.manifest import Pooling, Task

MODULES_FILE, PROMPTS_FILE = "modules.json", "config_sentence_transformers.json"
SENTENCE_FILE, TOKENIZER_CONFIG = "sentence_bert_config.json", "tokenizer_config.json"
PACKAGE = "sentence_transformers."
TRANSFORMER, POOLING, DENSE, NORMALIZE = "Transformer", "Pooling", "Dense", "Normalize"
ORDER = {TRANSFORMER: 0, POOLING: 1, DENSE: 2, NORMALIZE: 3}
FLAGS = {
    "pooling_mode_mean_tokens": Pooling.MEAN,
    "pooling_mode_cls_token": Pooling.CLS,
    "pooling_mode_lasttoken": Pooling.LAST,
}
NAMES = {"mean": Pooling.MEAN, "cls": Pooling.CLS, "lasttoken": Pooling.LAST}  # as newer versions write it
ACTIVATIONS = {"Identity": None, "Tanh": "Tanh", "ReLU": "Relu", "Sigmoid": "Sigmoid"}
DENSE_FILES = ("model.safetensors", "pytorch_model.bin")  # the first that is there
UNLIMITED = 1 << 30  # tokens; a tokenizer without a limit writes 1e30


@dataclass(frozen=True, kw_only=True)
class SentenceFiles:
    """How a checkpoint is used, by its own files."""

    folder: Path  # of the weights, the config and the tokenizer
    pooling: Pooling
    has_modules: bool  # False: nothing says how token states become a vector
    max_tokens: int
    lowercases: bool = False
    dense: tuple[Dense, ...] = ()
    tasks: tuple[Task, ...] = ()
    default_task: str | None = None

    @property
    def head_files(self) -> tuple[str, ...]:
        """List the files of the dense layers, within the folder."""
        return tuple(
            next(name for name in _dense_files(layer.folder) if (self.folder / name).is_file())
            for layer in self.dense
        )


def read_plain(folder: Path) -> SentenceFiles:
    """Read what a model that makes no vectors has of these files: a limit, and the case of its letters."""
    found = _optional(folder / SENTENCE_FILE)
    return SentenceFiles(
        folder=folder,
        pooling=Pooling.CLS,
        has_modules=False,
        max_tokens=_max_tokens(folder, found),
        lowercases=bool(found.get("do_lower_case")),
    )


def read(root: Path) -> SentenceFiles:
    """Read the files of a checkpoint. Raises BakeError for what cannot be served."""
    modules = _modules(root)
    folder = root / modules.get(TRANSFORMER, [""])[0]
    pooling_folder = modules.get(POOLING, [None])[0]
    pooling = Pooling.MEAN if pooling_folder is None else _pooling(root / pooling_folder / "config.json")
    dense = tuple(_dense(root, name) for name in modules.get(DENSE, []))
    if dense and folder.resolve() != root.resolve():
        raise BakeError(
            f"{root / MODULES_FILE} has the transformer in {folder.name} and a Dense module: dense layers "
            "are read only beside a transformer in the checkpoint's own folder"
        )
    tasks, default = _prompts(root)
    found = _optional(folder / SENTENCE_FILE)
    if pooling_folder is not None and any(task.prefix for task in tasks):
        _check_prompts_count(root / pooling_folder / "config.json")
    return SentenceFiles(
        folder=folder,
        pooling=pooling,
        has_modules=bool(modules),
        max_tokens=_max_tokens(folder, found),
        lowercases=bool(found.get("do_lower_case")),
        dense=dense,
        tasks=tasks,
        default_task=default,
    )


def _modules(root: Path) -> dict[str, list[str]]:
    """Return the folders of the modules by kind; none where the checkpoint does not list any."""
    path = root / MODULES_FILE
    if not path.is_file():
        return {}
    entries = read_json_list(path)
    kinds: list[str] = []
    folders: dict[str, list[str]] = {}
    for entry in entries:
        name = str(entry.get("type"))
        if not name.startswith(PACKAGE):
            raise BakeError(
                f"{path} has a module {name}, which is code of the checkpoint's own; no code from a "
                "checkpoint is ever run (trust_remote_code is off)"
            )
        kind = name.rpartition(".")[2]
        if kind not in ORDER:
            raise BakeError(f"{path} has a module {name}; only {', '.join(ORDER)} can be served")
        kinds.append(kind)
        folders.setdefault(kind, []).append(str(entry.get("path") or ""))
    is_once = all(len(folders.get(kind, [""])) == 1 for kind in (TRANSFORMER, POOLING))
    if kinds[:2] != [TRANSFORMER, POOLING] or not is_once or kinds != sorted(kinds, key=ORDER.__getitem__):
        raise BakeError(
            f"{path} has {', '.join(kinds)}: only Transformer, Pooling, then Dense and Normalize "
            "can be served"
        )
    return folders


def read_json_list(path: Path) -> list[dict[str, Any]]:
    """Read a JSON list of objects. Raises BakeError when it is broken."""
    content = read_json_value(path)
    if not isinstance(content, list) or not all(isinstance(entry, dict) for entry in content):
        raise BakeError(f"{path} is not a list of JSON objects")
    return content


def _pooling(path: Path) -> Pooling:
    config = read_json(path)
    mode = config.get("pooling_mode")
    modes = [mode] if isinstance(mode, str) else list(mode or [])
    modes += [name for name, value in config.items() if name.startswith("pooling_mode_") and value is True]
    known = {**FLAGS, **NAMES}
    if len(modes) != 1 or modes[0] not in known:
        found = ", ".join(map(str, modes)) or "nothing"
        raise BakeError(f"{path} pools by {found}: one of {', '.join(NAMES)} can be served, alone")
    return known[modes[0]]


def _check_prompts_count(path: Path) -> None:
    if read_json(path).get("include_prompt") is False:
        raise BakeError(
            f"{path} has include_prompt false: a mean without the tokens of a prompt is not served"
        )


def _dense(root: Path, folder: str) -> Dense:
    config = read_json(root / folder / "config.json")
    activation = str(config.get("activation_function", "torch.nn.modules.activation.Tanh")).rpartition(".")[2]
    size = config.get("out_features")
    if activation not in ACTIVATIONS or not isinstance(size, int) or size < 1:
        raise BakeError(f"{root / folder / 'config.json'} has activation_function {activation}, out_features "
                        f"{size!r}; known are {', '.join(ACTIVATIONS)} and a positive number")  # fmt: skip
    if not any((root / name).is_file() for name in _dense_files(folder)):
        raise BakeError(f"{root / folder} holds none of {', '.join(DENSE_FILES)}")
    return Dense(folder=folder, size=size, activation=ACTIVATIONS[activation])


def _dense_files(folder: str) -> list[str]:
    return [f"{folder}/{name}" for name in DENSE_FILES]


def _prompts(root: Path) -> tuple[tuple[Task, ...], str | None]:
    """Turn prompts into tasks; return them and the one that requests without a task get."""
    config = _optional(root / PROMPTS_FILE)
    prompts, default = config.get("prompts") or {}, config.get("default_prompt_name")
    if not isinstance(prompts, Mapping) or not all(isinstance(text, str) for text in prompts.values()):
        raise BakeError(f"{root / PROMPTS_FILE} has prompts {prompts!r}, must be texts by name")
    if default is not None and default not in prompts:
        raise BakeError(
            f"{root / PROMPTS_FILE} has default_prompt_name {default!r}, which is no prompt of it"
        )
    if not any(prompts.values()):
        return (), None  # empty ones are written for every model
    return tuple(Task(name=str(name), prefix=text) for name, text in prompts.items()), default


def _max_tokens(folder: Path, sentence_config: Mapping[str, Any]) -> int:
    """Take the limit that sentence-transformers would: its own, else the tokenizer's."""
    for path, limit in (
        (SENTENCE_FILE, sentence_config.get("max_seq_length")),
        (TOKENIZER_CONFIG, _optional(folder / TOKENIZER_CONFIG).get("model_max_length")),
    ):
        if limit is None:
            continue
        if isinstance(limit, bool) or not isinstance(limit, int | float) or not limit >= 1:
            raise BakeError(f"{folder / path} has a limit of {limit!r} tokens, must be a positive integer")
        return int(min(limit, UNLIMITED))
    return UNLIMITED


def _optional(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}
