"""What calibration saw of the value that enters a linear layer. Data only."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class LinearInput:
    """The channels of a value over the calibration texts, and a sample of its rows."""

    highest: Floats  # (size,), largest magnitude of each channel
    squares: Floats  # (size,), mean square of each channel
    rows: Floats  # (sampled rows, size)

    def divided(self, factors: Floats) -> LinearInput:
        """Return the same of the value divided by factors (size,)."""
        return LinearInput(self.highest / factors, self.squares / factors**2, self.rows / factors)
