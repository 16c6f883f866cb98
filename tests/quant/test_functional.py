from __future__ import annotations

import numpy as np
import paddle
import pytest

from quant import functional
from quant.grid import symmetric


def reference(x: np.ndarray, scale, bits: int) -> np.ndarray:
    """The formula in float64: q = clip(round(x / s * r), -r, r), y = q * s / r."""
    r = 2 ** (bits - 1) - 1
    scale = np.asarray(scale, np.float64)
    safe = np.where(scale > 0, scale, 1)
    codes = np.clip(np.rint(x.astype(np.float64) / safe * r), -r, r)
    return np.where(scale > 0, codes * safe / r, 0)


def close_to_a_tie(x: np.ndarray, scale, bits: int) -> np.ndarray:
    """Where float32 may round to the other side of a step."""
    position = x.astype(np.float64) / scale * (2 ** (bits - 1) - 1)
    return np.abs(position - np.floor(position) - 0.5) < 1e-6 * 2**bits


def run(x: np.ndarray, scale, bits: int) -> np.ndarray:
    scale = paddle.to_tensor(np.asarray(scale, np.float32))
    return functional.fake_quant(paddle.to_tensor(x), scale, symmetric(bits)).numpy()


@pytest.mark.parametrize("bits", range(2, 17))
def test_fake_quant_is_the_formula(bits):
    x = np.random.default_rng(bits).normal(size=(50, 40)).astype(np.float32)
    scale = np.float32(1.7)
    ours, expected = run(x, [scale], bits), reference(x, scale, bits)
    decided = ~close_to_a_tie(x, scale, bits)
    assert decided.mean() > 0.7
    np.testing.assert_allclose(ours[decided], expected[decided], rtol=1e-5, atol=1e-6)
    step = scale / (2 ** (bits - 1) - 1)
    assert np.abs(ours - expected).max() <= step * 1.01


@pytest.mark.parametrize("bits", range(2, 17))
def test_the_output_has_at_most_two_to_the_b_minus_one_values_and_saturates(bits):
    x = np.linspace(-3, 3, 2**12 + 1, dtype=np.float32)
    y = run(x, [2.0], bits)
    assert len(np.unique(y)) <= 2**bits - 1
    np.testing.assert_allclose([y.min(), y.max()], [-2, 2], rtol=1e-6)


def test_halves_go_to_the_even_code():
    # With s = 127 the codes of 8 bits are the values themselves, and x * r / s is exact.
    x = np.array([-3.5, -2.5, -1.5, -0.5, 0.5, 1.5, 2.5, 3.5, 126.5], np.float32)
    assert run(x, [127.0], 8).tolist() == [-4, -2, -2, 0, 0, 2, 2, 4, 126]


def test_rounding_by_addition_is_rint():
    x = np.random.default_rng(0).uniform(-40000, 40000, 10000).astype(np.float32)
    x[:1000] = np.rint(x[:1000]) + 0.5
    np.testing.assert_array_equal(functional.round_half_even(paddle.to_tensor(x)), np.rint(x))


@pytest.mark.parametrize("bits", [2, 8, 16])
def test_scale_zero_gives_zero_and_never_nan(bits):
    x = np.array([[-1.0, 0.0, 5.0], [0.5, 0.0, -2.0]], np.float32)
    assert (run(x, [0.0], bits) == 0).all()
    per_channel = run(x, [[1.0], [0.0]], bits)
    assert np.isfinite(per_channel).all()
    assert (per_channel[1] == 0).all() and per_channel[0, 0] == -1


def test_a_tiny_scale_gives_no_nan_or_inf():
    for scale in (1e-45, 1e-38, 1e-30, 1e-20):
        assert np.isfinite(run(np.array([-1.0, 0.0, scale, 1.0], np.float32), [scale], 8)).all()


@pytest.mark.parametrize("bits", [4, 8])
def test_values_are_those_of_paddles_own_op(bits):
    x = np.random.default_rng(1).normal(size=(6, 5, 3)).astype(np.float32)
    tensor = paddle.to_tensor(x)
    theirs, scale = paddle._legacy_C_ops.fake_quantize_dequantize_abs_max(
        tensor, paddle.zeros_like(tensor), paddle.zeros([1]), "bit_length", bits, "round_type", 0
    )
    ours = functional.fake_quant(tensor, functional.abs_max(tensor), symmetric(bits))
    np.testing.assert_array_equal(functional.abs_max(tensor), scale)
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("axis", [0, 1])
def test_channel_wise_values_are_those_of_paddles_own_op(axis):
    x = np.random.default_rng(2).normal(size=(4, 6, 3, 3)).astype(np.float32)
    tensor = paddle.to_tensor(x)
    theirs, scale = paddle._legacy_C_ops.fake_channel_wise_quantize_dequantize_abs_max(
        tensor,
        paddle.zeros_like(tensor),
        paddle.zeros([x.shape[axis]]),
        *("bit_length", 8, "round_type", 0, "quant_axis", axis),
    )
    ours = functional.fake_quant(tensor, functional.abs_max(tensor, axis), symmetric(8))
    np.testing.assert_array_equal(functional.abs_max(tensor, axis).numpy().ravel(), scale)
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


def test_the_gradient_for_x_is_the_identity_also_where_it_saturates():
    x = paddle.to_tensor(np.linspace(-3, 3, 41, dtype=np.float32), stop_gradient=False)
    scale = paddle.to_tensor([1.0], stop_gradient=False)
    weights = np.random.default_rng(3).normal(size=41).astype(np.float32)
    (functional.fake_quant(x, scale, symmetric(4)) * paddle.to_tensor(weights)).sum().backward()
    np.testing.assert_array_equal(x.grad, weights)
    assert scale.grad is None or (scale.grad.numpy() == 0).all()


def test_the_type_of_the_input_is_kept():
    x = paddle.to_tensor(np.array([-1.0, 0.3, 1.0])).astype("float64")
    y = functional.fake_quant(x, paddle.to_tensor([1.0]), symmetric(8))
    assert y.dtype == paddle.float64
    np.testing.assert_allclose(y, [-1, 38 / 127, 1], rtol=1e-6)


@pytest.mark.parametrize("bits", [2, 4, 8, 16])
def test_numpy_codes_are_the_codes_of_the_simulation(bits):
    x = np.random.default_rng(4).normal(size=(8, 30)).astype(np.float32)
    scale = np.abs(x).max(axis=1, keepdims=True)
    scale[3] = 0
    codes = functional.codes_numpy(x, scale, bits)
    assert codes.dtype == (np.int8 if bits <= 8 else np.int16)
    simulated = functional.quantize(paddle.to_tensor(x), paddle.to_tensor(scale), symmetric(bits))
    np.testing.assert_array_equal(codes.astype(np.float32), simulated)
    assert np.abs(codes).max() == 2 ** (bits - 1) - 1 and (codes[3] == 0).all()


@pytest.mark.parametrize("axis, shape", [(None, [1]), (0, [4, 1, 1]), (1, [1, 5, 1])])
def test_abs_max_is_that_of_numpy(axis, shape):
    x = np.random.default_rng(5).normal(size=(4, 5, 6)).astype(np.float32)
    found = functional.abs_max(paddle.to_tensor(x), axis)
    others = tuple(i for i in range(3) if i != axis)
    expected = np.abs(x).max() if axis is None else np.abs(x).max(axis=others)
    assert found.shape == shape
    np.testing.assert_array_equal(found.numpy().ravel(), np.ravel(expected))
