"""Checkpoints: a folder or a hub repository as named tensors, read one at a time. Knows no architecture.

Names are normalised: the prefix that some files carry before every encoder tensor is dropped.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401  registers bfloat16 with numpy, which safetensors needs to read it
import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open

from convert.graph import Constant
from service.errors import BakeError

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
WEIGHTS_INDEX = "model.safetensors.index.json"
NAME_PREFIXES = ("bert.",)
HUB_PATTERNS = ("*.json", "*.safetensors", "1_Pooling/*")  # what a bake reads; no code, no other format
FLOAT32 = np.dtype(np.float32)

Floats = npt.NDArray[np.float32]


class Checkpoint:
    """An open checkpoint: its config and lazily read tensors."""

    def __init__(self, folder: Path) -> None:
        """Open the folder. Raises BakeError when it is not a checkpoint in Hugging Face layout."""
        self.folder = folder
        self.config = self.read_json(CONFIG_FILE)
        self.weight_files = _weight_files(self)
        self._tensors: dict[str, tuple[Any, str]] = {}  # name -> open file, name in the file
        for path in self.weight_files:
            try:
                file = safe_open(path, framework="numpy")
            except (OSError, SafetensorError) as error:
                raise BakeError(f"{path} cannot be read: {error}") from error
            self._tensors |= {_normalised(name): (file, name) for name in _names(file)}

    def read_json(self, name: str) -> dict[str, Any]:
        """Read a JSON object of the checkpoint. Raises BakeError when it is missing or broken."""
        try:
            content = json.loads((self.folder / name).read_text(encoding="utf-8"))
        except OSError as error:
            raise BakeError(f"{self.folder / name} cannot be read: {error.strerror}") from error
        except ValueError as error:
            raise BakeError(f"{self.folder / name} is not valid JSON: {error}") from error
        if not isinstance(content, dict):
            raise BakeError(f"{self.folder / name} is not a JSON object")
        return content

    def has_file(self, name: str) -> bool:
        """Tell whether the checkpoint has a file of this name."""
        return (self.folder / name).is_file()

    def has_tensors(self, prefix: str) -> bool:
        """Tell whether any tensor's name begins so."""
        return any(name.startswith(prefix) for name in self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape without reading it. Raises BakeError when there is no such tensor."""
        file, stored_name = self._find(name)
        return tuple(file.get_slice(stored_name).get_shape())

    def read(self, name: str) -> Floats:
        """Read a tensor as float32 (bf16 and fp16 widen exactly)."""
        file, stored_name = self._find(name)
        tensor: Floats = file.get_tensor(stored_name).astype(np.float32, copy=False)
        return tensor

    def constant(self, name: str, *, transposed: bool = False) -> Constant:
        """Make a graph constant of a tensor; `transposed` turns (out, in) into the (in, out) of MatMul."""
        if not transposed:
            return Constant(name, self.shape(name), FLOAT32, lambda: self.read(name))
        return self.joined([name])

    def joined(self, names: Sequence[str]) -> Constant:
        """Make one constant of several linear layers: weights (in, sum of out), biases (sum of out)."""
        shapes = [self.shape(name) for name in names]
        num_outputs = sum(shape[0] for shape in shapes)

        def read() -> Floats:
            return np.ascontiguousarray(np.concatenate([self.read(name) for name in names]).T)

        return Constant("+".join(names) + ".T", (*shapes[0][1:], num_outputs), FLOAT32, read)

    def _find(self, name: str) -> tuple[Any, str]:
        try:
            return self._tensors[name]
        except KeyError:
            raise BakeError(f"the checkpoint in {self.folder} has no tensor {name!r}") from None


def package_folder(package: str) -> Path | None:
    """Return the `model` folder of an installed package that ships a checkpoint, without importing it."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        return None
    folder = Path(spec.origin).parent / "model"
    return folder if (folder / CONFIG_FILE).is_file() else None


def download(repository: str, revision: str | None, *, offline: bool) -> Path:
    """Fetch a hub repository's checkpoint files into the hub cache; return the folder.

    Raises BakeError when the hub or the repository cannot be reached, or `offline` finds no cached copy.
    """
    import huggingface_hub

    try:
        folder = huggingface_hub.snapshot_download(
            repository, revision=revision, allow_patterns=list(HUB_PATTERNS), local_files_only=offline
        )
    except Exception as error:  # noqa: BLE001  the hub client lets its HTTP library's classes through
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise BakeError(
            f"{repository} cannot be fetched from the hub ({reason}); give a local copy with --source DIR"
        ) from error
    return Path(folder)


def _weight_files(checkpoint: Checkpoint) -> list[Path]:
    folder = checkpoint.folder
    if checkpoint.has_file(WEIGHTS_INDEX):
        places = checkpoint.read_json(WEIGHTS_INDEX).get("weight_map")
        if not isinstance(places, dict) or not places:
            raise BakeError(f"{folder / WEIGHTS_INDEX} has no weight_map")
        shards = set(places.values())
        return [folder / str(shard) for shard in sorted(shards)]
    if checkpoint.has_file(WEIGHTS_FILE):
        return [folder / WEIGHTS_FILE]
    raise BakeError(f"{folder} holds neither {WEIGHTS_FILE} nor {WEIGHTS_INDEX}")


def _names(file: Any) -> list[str]:
    return list(file.keys())


def _normalised(name: str) -> str:
    for prefix in NAME_PREFIXES:
        if name.startswith(prefix):
            return name[len(prefix) :]
    return name
