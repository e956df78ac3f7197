"""What calibration texts showed of the activations that enter linear layers. Knows no graph and no texts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]


# Compared by identity, so that it can be part of a cache's key.
@dataclass(frozen=True, eq=False)
class LinearInput:
    """The activations of one value, over all tokens of the calibration texts."""

    highest: Floats  # (size,), the largest absolute value of each channel
    squares: Floats  # (size,), the mean square of each channel
    rows: Floats  # (up to 256, size), a sample of them as they are

    def __post_init__(self) -> None:
        """Refuse arrays that do not belong together."""
        size = len(self.highest)
        if self.squares.shape != (size,) or self.rows.ndim != 2 or self.rows.shape[1] != size:
            raise ValueError(
                f"highest, squares and rows have shapes {self.highest.shape}, {self.squares.shape} and "
                f"{self.rows.shape}: they must agree on the number of channels"
            )

    def divided(self, factors: Floats) -> LinearInput:
        """Return the same of the value divided by factors (size,)."""
        return LinearInput(self.highest / factors, self.squares / factors**2, self.rows / factors)
