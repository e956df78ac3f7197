"""The cos and sin tables of rotary positions, as the references compute them. Knows no graph."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from convert.graph import Constant
from convert.weights import FLOAT32, Floats
from service.errors import BakeError

FUNCTIONS = {"cos": np.cos, "sin": np.sin}


def table(kind: str, base: float, num_positions: int, head_size: int) -> Constant:
    """Make the (positions, head / 2) table of `cos` or `sin`, in float32 throughout as the reference does.

    Source: transformers, modeling_rope_utils: angle = position * base ** (-2j / head).
    """
    half = head_size // 2

    def read() -> Floats:
        exponents = np.arange(half, dtype=np.float32) * np.float32(2 / head_size)
        frequencies = 1 / np.power(np.float32(base), exponents)
        angles = np.arange(num_positions, dtype=np.float32)[:, None] * frequencies
        values: Floats = FUNCTIONS[kind](angles)
        return values

    return Constant(f"rotary.{kind}.{base}", (num_positions, half), FLOAT32, read)


def base(config: Mapping[str, object]) -> float:
    """Take the base of the angles from a config.json: its own key, or where transformers 5 writes it.

    Raises KeyError where it has neither, ValueError for one that is no number, BakeError for two that differ.
    """
    parameters = config.get("rope_parameters")
    places = (config, parameters) if isinstance(parameters, Mapping) else (config,)
    found = {float(str(place["rope_theta"])) for place in places if "rope_theta" in place}
    if not found:
        raise KeyError("rope_theta")
    if len(found) > 1:
        raise BakeError(f"config.json has two bases of rotary positions (rope_theta): {sorted(found)}")
    return found.pop()
