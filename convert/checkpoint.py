"""Checkpoints: a folder or a hub repository as named tensors, read one at a time. Knows no architecture.

Names are normalised: the prefix that some files carry before every encoder tensor is dropped, and tensors
behind a torch parametrization have the name they would have without it.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401  registers bfloat16 with numpy, which safetensors needs to read it
import numpy as np
from safetensors import SafetensorError, safe_open

from convert.torch_file import TorchTensor, open_torch_file
from convert.weights import Floats, Tensor, Weights
from service.errors import BakeError
from service.manifest import Source

AUTO_CLASSES = ("AutoModel", "AutoModelForSequenceClassification", "AutoTokenizer")
CONFIG_FILE = "config.json"
SAFETENSORS = ".safetensors"
WEIGHTS_FILES = ("model.safetensors", "pytorch_model.bin")  # the first that is there
WEIGHTS_INDEXES = tuple(f"{name}.index.json" for name in WEIGHTS_FILES)
NAME_PREFIXES = ("base_model.model.", "bert.", "roberta.", "model.", "language_model.")
# The plain name of a tensor behind a torch parametrization, of its own tensors, and of older spellings.
NAME_PARTS = (
    (".parametrizations.weight.original", ".weight"),
    (".parametrizations.weight.0.", "."),
    ("LayerNorm.gamma", "LayerNorm.weight"),  # as the first BERT checkpoints were written
    ("LayerNorm.beta", "LayerNorm.bias"),
)


class Checkpoint:
    """An open checkpoint: its config and its weights."""

    def __init__(self, folder: Path, head_files: Sequence[str] = ()) -> None:
        """Open the folder; tensors of a head file come as `<folder or stem>.<name>`.

        A missing head file is a warning.

        Raises BakeError when it is not a checkpoint in Hugging Face layout.
        """
        self.folder = folder
        self.config = self.read_json(CONFIG_FILE)
        self.weight_files = _weight_files(self)
        tensors: dict[str, Tensor] = {}
        for path in self.weight_files:
            tensors |= {normalised(name): tensor for name, tensor in open_weights(path).items()}
        for name in head_files:
            if not self.has_file(name):
                print(f"warning: {folder} has no {name}: what it adds is left out")
                continue
            path = folder / name
            self.weight_files.append(path)
            prefix = Path(name).parent.name or path.stem
            tensors |= {f"{prefix}.{name}": tensor for name, tensor in open_weights(path).items()}
        keyed = {name: replace(tensor, key=name) for name, tensor in tensors.items()}
        self.weights = Weights(keyed, f"the checkpoint in {folder}")

    def read_json(self, name: str) -> dict[str, Any]:
        """Read a JSON object of the checkpoint. Raises BakeError when it is missing or broken."""
        return read_json(self.folder / name)

    def has_file(self, name: str) -> bool:
        """Tell whether the checkpoint has a file of this name."""
        return (self.folder / name).is_file()


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object. Raises BakeError when it is missing or broken."""
    content = read_json_value(path)
    if not isinstance(content, dict):
        raise BakeError(f"{path} is not a JSON object")
    return content


def read_optional_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; empty where there is no file. Raises BakeError when it is broken."""
    return read_json(path) if path.is_file() else {}


def refuse_own_code(path: Path, config: Mapping[str, Any]) -> None:
    """Raise BakeError where a file's content names code of the checkpoint's own for what would be opened."""
    own = config.get("auto_map")
    if isinstance(own, Mapping) and (names := [name for name in AUTO_CLASSES if name in own]):
        kind = f", model_type {config['model_type']!r}" if "model_type" in config else ""
        raise BakeError(
            f"{path} names code of the checkpoint's own for {', '.join(names)} (auto_map{kind}): it would "
            "need trust_remote_code, which is never on"
        )


def read_json_value(path: Path) -> object:
    """Read a JSON file. Raises BakeError when it is missing or broken."""
    try:
        content: object = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BakeError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise BakeError(f"{path} is not valid JSON: {error}") from error
    return content


def open_weights(path: Path) -> dict[str, Tensor]:
    """Open a safetensors file or a torch state dict; bf16 and fp16 widen exactly. Raises BakeError."""
    if path.suffix == SAFETENSORS:
        return _open_safetensors(path)
    return {
        name: Tensor(name, stored.shape, partial(_read_torch, stored))
        for name, stored in open_torch_file(path).items()
    }


def _read_torch(stored: TorchTensor) -> Floats:
    widened: Floats = stored.read().astype(np.float32, copy=False)
    return widened


def _open_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        file: Any = safe_open(path, framework="numpy")
    except (OSError, SafetensorError) as error:
        raise BakeError(f"{path} cannot be read: {error}") from error

    def read(name: str) -> Floats:
        tensor: Floats = file.get_tensor(name).astype(np.float32, copy=False)
        return tensor

    def read_rows(name: str, begin: int, end: int) -> Floats:
        rows: Floats = file.get_slice(name)[begin:end].astype(np.float32, copy=False)
        return rows

    return {
        name: Tensor(
            name, tuple(file.get_slice(name).get_shape()), partial(read, name), partial(read_rows, name)
        )
        for name in list(file.keys())  # noqa: SIM118  no mapping
    }


def package_folder(package: str) -> Path | None:
    """Return the `model` folder of an installed package that ships a checkpoint, without importing it."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        return None
    folder = Path(spec.origin).parent / "model"
    return folder if (folder / CONFIG_FILE).is_file() else None


def download(source: Source, patterns: Sequence[str], *, offline: bool) -> Path:
    """Fetch the files of a hub repository that match a pattern into the hub cache; return the folder.

    Raises BakeError when the hub or the repository cannot be reached, or `offline` finds no cached copy.
    """
    import huggingface_hub

    try:
        folder = huggingface_hub.snapshot_download(
            source.id, revision=source.revision, allow_patterns=list(patterns), local_files_only=offline
        )
    except Exception as error:  # noqa: BLE001  the hub client lets its HTTP library's classes through
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        wanted = ", ".join(patterns)
        if offline:
            problem = "is not in the local cache of the hub (--offline)"
        else:
            problem = f"cannot be fetched from the hub ({reason}; HTTPS_PROXY and HF_ENDPOINT are followed)"
        raise BakeError(
            f"{source.id} {problem}; give a folder that holds its files with --source DIR ({wanted})"
        ) from error
    return Path(folder)


def _weight_files(checkpoint: Checkpoint) -> list[Path]:
    folder = checkpoint.folder
    for whole, index in zip(WEIGHTS_FILES, WEIGHTS_INDEXES, strict=True):
        if checkpoint.has_file(index):
            places = checkpoint.read_json(index).get("weight_map")
            if not isinstance(places, dict) or not places:
                raise BakeError(f"{folder / index} has no weight_map")
            return [folder / shard for shard in sorted({str(place) for place in places.values()})]
        if checkpoint.has_file(whole):
            return [folder / whole]
    raise BakeError(f"{folder} holds none of {', '.join((*WEIGHTS_FILES, *WEIGHTS_INDEXES))}")


def normalised(name: str) -> str:
    """Return a tensor's name without the prefixes and parametrizations that some files carry."""
    for prefix in NAME_PREFIXES:
        name = name.removeprefix(prefix)
    for part, plain in NAME_PARTS:
        name = name.replace(part, plain)
    return name
