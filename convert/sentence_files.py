"""What sentence-transformers writes beside a model: how it pools, what it puts before texts, where it cuts.

Reads the small JSON files alone; knows no architecture, no tensor and no graph.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from convert import module_list
from convert.checkpoint import read_json, read_optional_json
from convert.module_list import MODULES_FILE, SETTINGS_FILE, ModuleList
from convert.recipe import Dense
from service.errors import BakeError
from service.manifest import Pooling, Task

# The first that holds anything is read, in this order, whatever the transformer is.
SENTENCE_FILES = tuple(
    f"sentence_{kind}_config.json"
    for kind in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)
TOKENIZER_CONFIG = "tokenizer_config.json"
CAUSAL = "ForCausalLM"
EMPTY_PROMPTS = ("query", "document")  # there for every model, without text where the checkpoint has none
UNLIMITED = 1 << 30  # tokens; a tokenizer without a limit writes 1e30


@dataclass(frozen=True, kw_only=True)
class SentenceFiles:
    """How a checkpoint is used, by its own files."""

    folder: Path  # of the weights, the config and the tokenizer
    pooling: Pooling
    max_tokens: int
    lowercases: bool = False
    dense: tuple[Dense, ...] = ()
    head_files: tuple[str, ...] = ()  # of the dense layers, as they are found from the folder
    tasks: tuple[Task, ...] = ()
    default_task: str | None = None
    dimensions: int = 0  # of the vectors, cut from whole ones; 0: whole
    note: str | None = None  # what nothing says, and what was taken instead


def read_cross_encoder(root: Path, listed: ModuleList | None) -> SentenceFiles:
    """Read what a model that scores pairs has of these files. Raises BakeError for what cannot be served."""
    if listed is None or not listed.is_cross_encoder:
        return _plain(root / listed.transformer if listed else root, Pooling.CLS)
    tasks, default = _prompts(root)
    prefix = next((task.prefix for task in tasks if task.name == default), "")
    if prefix:
        raise BakeError(
            f"{root / SETTINGS_FILE} has default_prompt_name {default!r}: a cross-encoder whose pairs get a "
            f"prompt ({prefix!r}) cannot be served"
        )
    return _limited(root / listed.transformer, Pooling.CLS)


def read(root: Path, listed: ModuleList | None, config: Mapping[str, Any]) -> SentenceFiles:
    """Read how a model makes vectors. Raises BakeError for what cannot be served."""
    if listed is None:
        pooling, words = _unsaid(config)
        note = f"it has no {MODULES_FILE}: pooled by {words}, as sentence-transformers does"
        return replace(_plain(root, pooling), note=note)
    if listed.pooling is None:
        raise BakeError(f"{root / MODULES_FILE} has a Transformer alone: without Pooling it makes no vectors")
    pooling = module_list.pooling(root / listed.pooling, is_last=not listed.dense)
    tasks, default = _prompts(root)
    if any(task.prefix for task in tasks):
        _check_prompts_count(root / listed.pooling / module_list.MODULE_FILE)
    folder = root / listed.transformer
    return replace(
        _limited(folder, pooling),
        dense=module_list.dense(root, listed.dense),
        head_files=module_list.dense_files(root, listed.dense, folder),
        tasks=tasks,
        default_task=default,
        dimensions=_truncate_dim(root),
    )


def _unsaid(config: Mapping[str, Any]) -> tuple[Pooling, str]:
    """Return how a model without modules is pooled, and the same in words."""
    classes = [str(name) for name in config.get("architectures") or ()]
    if classes and classes[0].endswith(CAUSAL) and config.get("is_causal", True):
        return Pooling.LAST, "the last token"
    return Pooling.MEAN, "mean"


def _plain(folder: Path, pooling: Pooling) -> SentenceFiles:
    """Read the limit where sentence-transformers opens none of its own files."""
    return SentenceFiles(
        folder=folder, pooling=pooling, max_tokens=_max_tokens(folder, TOKENIZER_CONFIG, None)
    )


def _limited(folder: Path, pooling: Pooling) -> SentenceFiles:
    """Read the limit and the case of the letters."""
    name, found = _sentence_config(folder)
    return SentenceFiles(
        folder=folder,
        pooling=pooling,
        max_tokens=_max_tokens(folder, name, found.get("max_seq_length")),
        lowercases=bool(found.get("do_lower_case")),
    )


def _sentence_config(folder: Path) -> tuple[str, dict[str, Any]]:
    for name in SENTENCE_FILES:
        if found := read_optional_json(folder / name):
            return name, found
    return SENTENCE_FILES[0], {}


def _check_prompts_count(path: Path) -> None:
    if read_json(path).get("include_prompt") is False:
        raise BakeError(
            f"{path} has include_prompt false: a mean without the tokens of a prompt is not served"
        )


def _prompts(root: Path) -> tuple[tuple[Task, ...], str | None]:
    """Turn prompts into tasks; return them and the one that requests without a task get."""
    config = read_optional_json(root / SETTINGS_FILE)
    prompts, default = config.get("prompts") or {}, config.get("default_prompt_name")
    if not isinstance(prompts, Mapping) or not all(isinstance(text, str) for text in prompts.values()):
        raise BakeError(f"{root / SETTINGS_FILE} has prompts {prompts!r}, must be texts by name")
    if default is not None and default not in (*prompts, *EMPTY_PROMPTS):
        raise BakeError(
            f"{root / SETTINGS_FILE} has default_prompt_name {default!r}, which is no prompt of it"
        )
    if not any(prompts.values()):
        return (), None  # empty ones are written for every model
    tasks = tuple(Task(name=str(name), prefix=text) for name, text in prompts.items())
    return tasks, default if default in prompts else None


def _truncate_dim(root: Path) -> int:
    found = read_optional_json(root / SETTINGS_FILE).get("truncate_dim")
    if found is None:
        return 0
    if isinstance(found, bool) or not isinstance(found, int) or found < 1:
        raise BakeError(f"{root / SETTINGS_FILE} has truncate_dim {found!r}, must be a positive integer")
    return found


def _max_tokens(folder: Path, name: str, own: object) -> int:
    """Take the limit that sentence-transformers would: its own, of the file `name`, else the tokenizer's."""
    for path, limit in (
        (name, own),
        (TOKENIZER_CONFIG, read_optional_json(folder / TOKENIZER_CONFIG).get("model_max_length")),
    ):
        if limit is None:
            continue
        if isinstance(limit, bool) or not isinstance(limit, int | float) or not limit >= 1:
            raise BakeError(f"{folder / path} has a limit of {limit!r} tokens, must be a positive integer")
        return int(min(limit, UNLIMITED))
    return UNLIMITED
