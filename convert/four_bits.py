"""Linear layers to 4 bits, each error made good by the weights still to be rounded. Knows no graph.

The columns of a layer are independent. What counts is not how near a column's weights are but how near the
layer's output is, for the activations that real texts give: the sum over tokens of the squared output error.
With rows r of activations (one vector r_k over the sampled tokens for each input channel k) and a diagonal d,
it is |sum_k r_k e_k|^2 + sum_k d_k e_k^2 for the errors e. Channels are rounded in their order; before one is
rounded, its weight moves to where it best makes good the errors made so far, on condition that the channels
behind it do the same. This is what GPTQ (arXiv:2210.17323) computes from the Cholesky factor of the
channels' second moments; few sampled rows and a diagonal need no matrix of channels x channels at all, and
with no rows it is a plain search of scales and zero points.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from convert.calibrated import LinearInput

# Weights of a column that share a scale and a zero point. At 64 and more, ONNX Runtime's kernel for 8-bit
# activations takes rows in pairs and an odd last one in another order: the answer for a text would depend on
# its batch. Smaller by 1/9, 64 also has a quarter more error, and too much of it without calibration.
BLOCK_SIZE = 32
HIGHEST = 15
# Ranges tried per block, as shares of the one that holds every value: clipping the outermost can cost less
# than rounding all the others more coarsely.
RANGE_SHARES = (1.0, 0.95, 0.9, 0.85, 0.8, 0.72)
# How much of the second moments is the diagonal, which all tokens gave; the rest are products of channels in
# the sampled rows, which are too few to be trusted alone.
DIAGONAL_SHARE = 0.2
DAMPING = 0.01  # of the mean second moment, added to all: no channel is worth nothing
COLUMNS_AT_ONCE = 512  # bounds the memory and fits the cache; fixed, so that results are equal on all hosts
SMALLEST_SCALE = 1e-30

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True)
class FourBits:
    """A layer (in, out) in 4 bits as MatMulNBits reads it: weight ~ (value - zero) * scale."""

    values: Bytes  # (out, blocks, BLOCK_SIZE / 2), two to a byte, the first in the low half
    scales: Floats  # (out, blocks)
    zeros: Bytes  # (out, half the blocks), two to a byte


@dataclass(frozen=True)
class _Feedback:
    """How errors are weighed and made good, for channels filled up to whole blocks."""

    rows: Floats  # (rows, channels), scaled
    gains: Floats  # (rows, channels): what a channel's weight moves by, per error that the rows show
    importance: Floats  # (channels,), of an error that the channels behind it will make good as they can


def quantize_four_bits(weight: Floats, inputs: LinearInput | None = None) -> FourBits:
    """Quantize (in, out) to unsigned 4 bit with a scale and a zero point per block of a column."""
    feedback = _feedback(len(weight), inputs)
    num_outputs, num_blocks = weight.shape[1], len(feedback.importance) // BLOCK_SIZE
    values = np.empty((num_outputs, num_blocks, BLOCK_SIZE // 2), dtype=np.uint8)
    scales = np.empty((num_outputs, num_blocks), dtype=np.float32)
    zeros = np.empty((num_outputs, -(-num_blocks // 2)), dtype=np.uint8)

    def fill(begin: int) -> None:
        part = slice(begin, begin + COLUMNS_AT_ONCE)
        blocks = list(_rounded_blocks(weight[:, part], feedback))
        for index, (steps, block_scales, _) in enumerate(blocks):
            values[part, index] = _packed(steps.T)
            scales[part, index] = block_scales
        zeros[part] = _packed(np.stack([block_zeros for _, _, block_zeros in blocks], axis=1))

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(fill, range(0, num_outputs, COLUMNS_AT_ONCE)))
    return FourBits(values, scales, zeros)


def _feedback(num_channels: int, inputs: LinearInput | None) -> _Feedback:
    if inputs is None:
        rows = np.zeros((0, num_channels))
        diagonal = np.ones(num_channels)
    else:
        rows = inputs.rows.astype(np.float64) * np.sqrt((1 - DIAGONAL_SHARE) / max(1, len(inputs.rows)))
        squares = inputs.squares.astype(np.float64)
        diagonal = DIAGONAL_SHARE * squares + DAMPING * (squares.mean() or 1.0)
    gains, importance = _gains(rows, diagonal)
    filling = (0, -num_channels % BLOCK_SIZE)
    return _Feedback(
        rows=np.pad(rows, ((0, 0), filling)).astype(np.float32),
        gains=np.pad(gains, ((0, 0), filling)).astype(np.float32),
        importance=np.pad(importance / importance.mean(), filling).astype(np.float32),
    )


def _gains(rows: Doubles, diagonal: Doubles) -> tuple[Doubles, Doubles]:
    """Return gains (rows, channels) and importance (channels), found from the last channel to the first.

    Block by block, so that nearly all of it is products of matrices.
    """
    gains = np.zeros_like(rows)
    importance = diagonal.copy()
    unseen = np.eye(len(rows))  # the part of the rows' errors that the channels behind cannot make good
    for begin in reversed(range(0, rows.shape[1], BLOCK_SIZE)):
        block = rows[:, begin : begin + BLOCK_SIZE]
        left = unseen @ block  # of each channel, once those behind it are taken into account
        products = block.T @ left
        for channel in reversed(range(block.shape[1])):
            place = begin + channel
            importance[place] += products[channel, channel]
            gains[:, place] = left[:, channel] / importance[place]
            shares = products[channel, :channel]
            left[:, :channel] -= gains[:, place, None] * shares
            products[:channel, :channel] -= shares[:, None] * (shares / importance[place])
        unseen -= gains[:, begin : begin + BLOCK_SIZE] @ left.T
    return gains, importance


def _rounded_blocks(weight: Floats, feedback: _Feedback) -> Iterator[tuple[Floats, Floats, Floats]]:
    """Round columns (in, out) block by block: yield steps (BLOCK_SIZE, out), scales and zero points (out)."""
    num_outputs = weight.shape[1]
    shown = np.zeros((len(feedback.rows), num_outputs), dtype=np.float32)  # the errors so far, in the rows
    for begin in range(0, len(feedback.importance), BLOCK_SIZE):
        block = slice(begin, begin + BLOCK_SIZE)
        rows, gains = feedback.rows[:, block], feedback.gains[:, block]
        exact = np.zeros((BLOCK_SIZE, num_outputs), dtype=np.float32)
        exact[: len(weight) - begin] = weight[block]
        wanted = exact + gains.T @ shown
        scales, zeros = _best_range(wanted, feedback.importance[block])
        within = rows.T @ gains  # what an error of one channel of the block moves another by
        steps = np.empty_like(exact)
        errors = np.empty_like(exact)
        for channel in range(BLOCK_SIZE):
            steps[channel] = np.clip(np.rint(wanted[channel] / scales) + zeros, 0, HIGHEST)
            errors[channel] = exact[channel] - (steps[channel] - zeros) * scales
            wanted[channel + 1 :] += within[channel, channel + 1 :, None] * errors[channel]
        shown += rows @ errors
        yield steps, scales, zeros


def _best_range(block: Floats, importance: Floats) -> tuple[Floats, Floats]:
    """Find for each column of a block (BLOCK_SIZE, out) the scale and zero point of least weighed error."""
    lowest, highest = np.minimum(block.min(axis=0), 0), np.maximum(block.max(axis=0), 0)
    widest = np.maximum((highest - lowest) / HIGHEST, SMALLEST_SCALE)
    weighed = block * importance[:, None]
    best = np.full_like(widest, -1)
    scales, zeros = widest.copy(), np.zeros_like(widest)
    for share in RANGE_SHARES:
        tried = widest * np.float32(share)
        tried_zeros = np.clip(np.rint(HIGHEST / 2 - (lowest + highest) / 2 / tried), 0, HIGHEST)
        steps = np.rint(block * (1 / tried))
        np.clip(steps, -tried_zeros, HIGHEST - tried_zeros, out=steps)
        along = np.einsum("ko,ko->o", weighed, steps)
        length = np.einsum("ko,ko,k->o", steps, steps, importance)
        # With the least-squares scale along / length, these steps leave |block|^2 - along^2 / length.
        usable = (length > 0) & (along > 0)
        length = np.where(usable, length, 1)
        gained = np.where(usable, along * along / length, 0)
        better = gained > best
        best = np.where(better, gained, best)
        scales = np.where(better, np.where(usable, along / length, tried), scales)
        zeros = np.where(better, tried_zeros, zeros)
    return np.maximum(scales, SMALLEST_SCALE), zeros


def _packed(steps: Floats) -> Bytes:
    """Pack (out, count) values of 4 bits two to a byte, the first in the low half."""
    filled = np.pad(steps, ((0, 0), (0, steps.shape[1] % 2))).astype(np.uint8)
    return filled[:, 0::2] + filled[:, 1::2] * np.uint8(16)
