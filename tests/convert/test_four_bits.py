"""4-bit blocks: how near they are, for plain errors and for those that activations show."""

from __future__ import annotations

import numpy as np
import pytest

from convert.calibrated import LinearInput
from convert.four_bits import BLOCK_SIZE, FourBits, quantize_four_bits

Floats = np.ndarray
NUM_OUTPUTS = 24


def unpacked(packed: np.ndarray) -> Floats:
    halves = np.stack([packed & 15, packed >> 4], axis=-1)
    return np.asarray(halves.reshape(*packed.shape[:-1], -1), dtype=np.float32)


def restored(made: FourBits, num_inputs: int) -> Floats:
    """Undo the quantization as the operator does; return (in, out)."""
    values = unpacked(made.values)  # (out, blocks, BLOCK_SIZE)
    zeros = unpacked(made.zeros)[:, : values.shape[1], None]
    blocks = (values - zeros) * made.scales[:, :, None]
    return np.asarray(blocks.reshape(len(values), -1)[:, :num_inputs].T)


def rounded_to_nearest(weight: Floats) -> Floats:
    """Quantize in the plain way: each block's whole range in 15 steps."""
    num_inputs, num_outputs = weight.shape
    filled = np.pad(weight, ((0, -num_inputs % BLOCK_SIZE), (0, 0))).reshape(-1, BLOCK_SIZE, num_outputs)
    lowest = np.minimum(filled.min(axis=1, keepdims=True), 0)
    scale = (np.maximum(filled.max(axis=1, keepdims=True), 0) - lowest) / 15
    zero = np.rint(-lowest / scale)
    steps = np.clip(np.rint(filled / scale) + zero, 0, 15)
    return np.asarray(((steps - zero) * scale).reshape(-1, num_outputs)[:num_inputs])


def weights(num_inputs: int, outliers: int = 0) -> Floats:
    draw = np.random.default_rng(num_inputs + outliers)
    weight = draw.normal(size=(num_inputs, NUM_OUTPUTS)).astype(np.float32)
    weight.reshape(-1)[draw.permutation(weight.size)[:outliers]] *= 12
    return weight


def activations(num_inputs: int, num_tokens: int = 4000) -> Floats:
    """Draw correlated channels of unequal size with a mean, as layers have them."""
    draw = np.random.default_rng(num_inputs)
    mixed = draw.normal(size=(num_tokens, num_inputs // 2)) @ draw.normal(size=(num_inputs // 2, num_inputs))
    sizes = np.exp(draw.normal(size=num_inputs))
    return ((mixed + draw.normal(size=num_inputs) * 3) * sizes).astype(np.float32)


def seen(tokens: Floats, num_rows: int = 256) -> LinearInput:
    squares = np.square(tokens, dtype=np.float64).mean(axis=0).astype(np.float32)
    return LinearInput(highest=np.abs(tokens).max(axis=0), squares=squares, rows=tokens[:num_rows])


@pytest.mark.parametrize("outliers", [0, 30])
@pytest.mark.parametrize("num_inputs", [BLOCK_SIZE, 3 * BLOCK_SIZE, 150, 20])
def test_no_block_is_worse_than_rounded_to_nearest(num_inputs: int, outliers: int) -> None:
    weight = weights(num_inputs, outliers)
    made = quantize_four_bits(weight)
    assert made.values.shape == (NUM_OUTPUTS, -(-num_inputs // BLOCK_SIZE), BLOCK_SIZE // 2)
    assert made.zeros.shape == (NUM_OUTPUTS, -(-made.values.shape[1] // 2))
    for begin in range(0, num_inputs, BLOCK_SIZE):
        block = slice(begin, begin + BLOCK_SIZE)
        ours, plain = (
            np.square(near[block] - weight[block]).sum(axis=0)
            for near in (restored(made, num_inputs), rounded_to_nearest(weight))
        )
        assert (ours <= plain * 1.0001).all()
        assert ours.sum() < plain.sum()


@pytest.mark.parametrize("num_inputs", [256, 300])
@pytest.mark.parametrize("outliers", [0, 30])
def test_known_activations_take_much_of_the_error_off_the_output_for_others(
    num_inputs: int, outliers: int
) -> None:
    weight, tokens = weights(num_inputs, outliers), activations(num_inputs)
    made = quantize_four_bits(weight, seen(tokens[:2000]))
    ours, plain, blind = (
        np.square(tokens[2000:] @ (near - weight)).sum()
        for near in (
            restored(made, num_inputs),
            rounded_to_nearest(weight),
            restored(quantize_four_bits(weight), num_inputs),
        )
    )
    assert ours < 0.5 * plain
    assert ours < 0.6 * blind


def test_the_feedback_is_that_of_the_cholesky_factor() -> None:
    """GPTQ as published, with the same second moments, comes to the same values."""
    num_inputs = BLOCK_SIZE
    weight, inputs = weights(num_inputs), seen(activations(num_inputs))
    made = quantize_four_bits(weight, inputs)
    rows = inputs.rows.astype(np.float64)
    moments = 0.8 * rows.T @ rows / len(rows)
    moments += np.diag(0.2 * inputs.squares.astype(np.float64) + 0.01 * inputs.squares.mean())
    factor = np.linalg.cholesky(np.linalg.inv(moments)).T
    left = weight.astype(np.float64)
    zeros = unpacked(made.zeros)[:, 0]
    scales = made.scales[:, 0]
    expected = np.empty_like(weight)
    for channel in range(num_inputs):
        steps = np.clip(np.rint(left[channel] / scales) + zeros, 0, 15)
        expected[channel] = (steps - zeros) * scales
        error = (left[channel] - expected[channel]) / factor[channel, channel]
        left[channel + 1 :] -= factor[channel, channel + 1 :, None] * error
    # A value near the middle of two steps may fall the other way, and others after it.
    same = np.isclose(restored(made, num_inputs), expected, rtol=1e-4, atol=1e-6)
    assert same.mean() > 0.97


def test_squares_alone_weigh_the_errors() -> None:
    weight, tokens = weights(BLOCK_SIZE), activations(BLOCK_SIZE)
    known = seen(tokens, num_rows=0)
    by_squares, blind = (
        (np.square(restored(made, BLOCK_SIZE) - weight) * known.squares[:, None]).sum()
        for made in (quantize_four_bits(weight, known), quantize_four_bits(weight))
    )
    assert by_squares < blind


def test_zeros_stay_zeros_beside_others() -> None:
    weight = weights(2 * BLOCK_SIZE)
    weight[:, 3] = 0
    weight[:BLOCK_SIZE, 5] = 0
    near = restored(quantize_four_bits(weight), 2 * BLOCK_SIZE)
    assert not near[:, 3].any()
    assert not near[:BLOCK_SIZE, 5].any()
    assert near[BLOCK_SIZE:, 5].any()


@pytest.mark.parametrize("dead", [slice(0, 7), slice(None)])
def test_channels_that_were_never_on_do_no_harm(dead: slice) -> None:
    weight, tokens = weights(150), activations(150)
    tokens[:, dead] = 0
    made = quantize_four_bits(weight, seen(tokens))
    assert np.isfinite(made.scales).all()
    assert np.abs(restored(made, 150) - weight).max() < 3


@pytest.mark.parametrize("sign", [1, -1])
def test_blocks_far_from_zero_keep_zero_within_reach(sign: int) -> None:
    weight = (sign * (5 + weights(BLOCK_SIZE) * 0.1)).astype(np.float32)
    near = restored(quantize_four_bits(weight), BLOCK_SIZE)
    assert np.abs(near - weight).max() < 0.5


def test_more_columns_than_go_at_once() -> None:
    weight = np.random.default_rng(0).normal(size=(70, 1100)).astype(np.float32)
    whole = quantize_four_bits(weight)
    begun = quantize_four_bits(weight[:, 1024:])
    assert np.array_equal(whole.values[1024:], begun.values)
    assert np.array_equal(whole.scales[1024:], begun.scales)
    assert np.array_equal(whole.zeros[1024:], begun.zeros)


def test_activations_of_another_size_are_refused() -> None:
    tokens = activations(64)
    with pytest.raises(ValueError, match="channels"):
        LinearInput(highest=np.ones(3, np.float32), squares=np.ones(64, np.float32), rows=tokens[:2])
