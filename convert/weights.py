"""Named tensors, read one at a time, and the graph constants made of them. Knows no file, no architecture."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from convert.graph import Constant, constant_in_parts
from service.errors import BakeError

FLOAT32 = np.dtype(np.float32)
VALUES_AT_ONCE = 1 << 24  # of a tensor that is read in parts, 64 MB

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Tensor:
    """A tensor that is read when asked for, as float32. Tensors of equal `key` hold equal values."""

    key: str
    shape: tuple[int, ...]
    read: Callable[[], Floats]
    read_rows: Callable[[int, int], Floats] | None = None  # where less than all of it can be read

    def rows(self, begin: int, end: int) -> Floats:
        """Read the rows from `begin` to before `end`, and no more than those where the file allows it."""
        return self.read_rows(begin, end) if self.read_rows else self.read()[begin:end]


@dataclass(frozen=True)
class Weights:
    """The tensors of a model by name; `origin` says in errors where they come from."""

    tensors: Mapping[str, Tensor]
    origin: str

    def __getitem__(self, name: str) -> Tensor:
        """Return a tensor. Raises BakeError when there is none of this name."""
        try:
            return self.tensors[name]
        except KeyError:
            raise BakeError(f"{self.origin} has no tensor {name!r}") from None

    def __contains__(self, name: str) -> bool:
        """Tell whether there is a tensor of this name."""
        return name in self.tensors

    def num_layers(self, prefix: str) -> int:
        """Return one more than the highest number that follows `prefix.` in a name."""
        numbers = (name.removeprefix(f"{prefix}.").partition(".")[0] for name in self.tensors)
        return 1 + max((int(number) for number in numbers if number.isdigit()), default=-1)

    def updated(self, tensors: Mapping[str, Tensor]) -> Weights:
        """Return the weights with some tensors added or put in place of others."""
        return Weights({**self.tensors, **tensors}, self.origin)

    def constant(self, name: str, shape: Sequence[int]) -> Constant:
        """Make a graph constant of a tensor as it is. Raises BakeError when it has another shape."""
        tensor = self._checked(name, shape)
        if tensor.read_rows is None:
            return Constant(tensor.key, tensor.shape, FLOAT32, tensor.read)
        step = max(1, VALUES_AT_ONCE // max(1, math.prod(tensor.shape[1:])))

        def parts() -> Iterator[Floats]:
            for begin in range(0, tensor.shape[0], step):
                yield tensor.rows(begin, min(begin + step, tensor.shape[0]))

        return constant_in_parts(tensor.key, tensor.shape, FLOAT32, parts)

    def joined(self, names: Sequence[str], shape: Sequence[int]) -> Constant:
        """Make one constant of linear layers side by side: (out, in) becomes the (in, sum of out) of MatMul.

        Biases (out) become one (sum of out). `shape` is what all have together, as (out, in) or (out).
        Raises BakeError when they have others.
        """
        num_outputs = shape[0] // len(names)
        tensors = [self._checked(name, (num_outputs, *shape[1:])) for name in names]

        def read() -> Floats:
            return np.ascontiguousarray(np.concatenate([tensor.read() for tensor in tensors]).T)

        key = "+".join(tensor.key for tensor in tensors) + ".T"
        return Constant(key, tuple(shape)[::-1], FLOAT32, read)

    def _checked(self, name: str, shape: Sequence[int]) -> Tensor:
        tensor = self[name]
        if tensor.shape != tuple(shape):
            raise BakeError(f"{self.origin}: {name} has shape {tensor.shape} instead of {tuple(shape)}")
        return tensor
