"""Float arrays to 8 bits and the scales that undo it. Each function takes one array and knows no graph."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt

BLOCK_SIZE = 32  # values that share a scale in 8-bit blocks
INT8_MAX = 127
UINT8_ZERO, UINT8_MAX = 128, 255
STEPS_BELOW_ZERO = 24  # of 255, for rows that never go below a value near zero
# Scales tried per block, as shares of the one that reaches its largest value: clipping that value can
# cost less than rounding all the others more coarsely.
SCALE_SHARES = (1.0, 0.9975, 0.995, 0.9925, 0.99)
VALUES_AT_ONCE = 1 << 18  # values quantized in one step: bounds the memory and fits the cache
SMALLEST_SCALE = 1e-30  # keeps an all-zero row or column from dividing by zero

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]


def quantize_columns(weight: Floats) -> tuple[npt.NDArray[np.int8], Floats]:
    """Quantize (in, out) to signed 8 bit with one scale per column: weight ~ values * scales."""
    scales = np.maximum(np.abs(weight).max(axis=0) / INT8_MAX, SMALLEST_SCALE).astype(np.float32)
    return np.rint(weight / scales).astype(np.int8), scales


def quantize_rows(rows: Floats, lowest: float | None = None) -> Floats:
    """Round rows (n, size) to 8 bit by one scale each, as a graph does at run time, and back.

    Rows that never go below `lowest` have few steps below zero.
    """
    if lowest is None:
        scales = np.maximum(np.abs(rows).max(axis=1, keepdims=True) / INT8_MAX, SMALLEST_SCALE)
    else:
        steps_above = UINT8_MAX - STEPS_BELOW_ZERO
        highest = rows.max(axis=1, keepdims=True)
        scales = np.maximum(highest / steps_above, np.float32(-lowest / STEPS_BELOW_ZERO))
    rounded: Floats = np.rint(rows / scales) * scales
    return rounded


def quantize_blocks(rows: Floats, block_size: int = BLOCK_SIZE) -> tuple[Bytes, Floats]:
    """Quantize (rows, size) to unsigned 8 bit around 128 with one scale per block of a row.

    Each block takes, of a few scales, the one with the least squared error. The last block is filled up:
    values (rows, blocks * block_size), scales (rows, blocks).
    """
    num_blocks = -(-rows.shape[1] // block_size)
    values = np.empty((len(rows), num_blocks * block_size), dtype=np.uint8)
    scales = np.empty((len(rows), num_blocks), dtype=np.float32)
    step = max(1, VALUES_AT_ONCE // values.shape[1])

    def fill(begin: int) -> None:
        part = slice(begin, begin + step)
        values[part], scales[part] = _best_blocks(rows[part], block_size)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(fill, range(0, len(rows), step)))
    return values, scales


def _best_blocks(rows: Floats, block_size: int) -> tuple[Bytes, Floats]:
    padded = np.pad(rows, ((0, 0), (0, -rows.shape[1] % block_size)))
    blocks = padded.reshape(len(rows), -1, block_size)
    widest = np.abs(blocks).max(axis=2) / INT8_MAX
    tried = [_rounded(blocks, widest * share) for share in SCALE_SHARES]
    best = np.argmin([errors for _, _, errors in tried], axis=0)  # (rows, blocks)
    values = np.choose(best[:, :, None], [values for values, _, _ in tried])
    scales = np.choose(best, [scales for _, scales, _ in tried])
    return values.reshape(len(rows), -1), scales


def _rounded(blocks: Floats, scales: Floats) -> tuple[Bytes, Floats, Floats]:
    """Round (rows, blocks, block_size) by scales (rows, blocks); return values, scales and squared errors."""
    usable = np.maximum(scales, SMALLEST_SCALE).astype(np.float32)[:, :, None]
    steps = np.clip(np.rint(blocks / usable), -UINT8_ZERO, INT8_MAX)
    errors = np.square(steps * usable - blocks).sum(axis=2)
    return (steps + UINT8_ZERO).astype(np.uint8), usable[:, :, 0], errors
