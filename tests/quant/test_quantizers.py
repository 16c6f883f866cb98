from __future__ import annotations

import warnings

import numpy as np
import paddle
import pytest

from quant.quantizers import (
    AbsMax,
    ActivationQuantizer,
    MovingAverageAbsMax,
    WeightAbsMax,
    WeightQuantizer,
)


def batches(n: int = 6) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [(rng.normal(size=(4, 3, 5)) * (1 + i % 3)).astype(np.float32) for i in range(n)]


def fake(x: np.ndarray, scale: float, bits: int = 8) -> np.ndarray:
    r = 2 ** (bits - 1) - 1
    return np.clip(np.rint(x.astype(np.float64) / scale * r), -r, r) * scale / r


@pytest.mark.parametrize("rate", [0.9, 0.5])
def test_the_moving_average_is_accum_over_state_from_zero(rate):
    quantizer = MovingAverageAbsMax(8, rate)
    state = accum = 0.0
    for x in batches():
        y = quantizer(paddle.to_tensor(x)).numpy()
        state = rate * state + 1
        accum = rate * accum + np.abs(x).max()
        np.testing.assert_allclose(quantizer.scale.numpy(), [accum / state], rtol=1e-5)
        step = accum / state / 127
        np.testing.assert_allclose(y, fake(x, accum / state), atol=step * 1.01)
        assert np.mean(np.abs(y - fake(x, accum / state)) > step * 0.1) < 0.02
    np.testing.assert_allclose(quantizer.state.numpy(), [state], rtol=1e-5)
    np.testing.assert_allclose(quantizer.accum.numpy(), [accum], rtol=1e-5)


def test_the_first_scale_is_the_first_maximum():
    quantizer = MovingAverageAbsMax(8, 0.9)
    y = quantizer(paddle.to_tensor([127.0, -3.0, 0.5]))
    assert quantizer.scale.numpy().tolist() == [127.0]
    assert y.numpy().tolist() == [127.0, -3.0, 0.0]


def test_the_moving_average_is_that_of_paddles_op_given_the_same_start():
    quantizer = MovingAverageAbsMax(8, 0.9)
    state, accum, scale = paddle.zeros([1]), paddle.zeros([1]), paddle.zeros([1])
    for x in batches():
        tensor = paddle.to_tensor(x)
        attributes = ("moving_rate", 0.9, "bit_length", 8, "is_test", False, "round_type", 0)
        op = paddle._legacy_C_ops.fake_quantize_dequantize_moving_average_abs_max
        out = paddle.zeros_like(tensor)
        theirs = op(tensor, scale, accum, state, out, scale, state, accum, *attributes)[0]
        # Paddle's op saturates at -128, which is no code of the symmetric grid.
        theirs = np.maximum(theirs.numpy(), -scale.numpy())
        np.testing.assert_allclose(quantizer(tensor), theirs, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(quantizer.scale, scale, rtol=1e-6)


@pytest.mark.parametrize("make", [lambda: MovingAverageAbsMax(8, 0.9), lambda: AbsMax(8)])
def test_evaluation_keeps_the_scale(make):
    quantizer = make()
    quantizer(paddle.to_tensor([1.0, -2.0]))
    quantizer.eval()
    y = quantizer(paddle.to_tensor([100.0, -0.5]))
    assert quantizer.scale.numpy().tolist() == [2.0]
    np.testing.assert_allclose(y, [2.0, -32 * 2 / 127], rtol=1e-6)


def test_abs_max_of_an_activation_is_the_batch_in_training_and_the_largest_in_evaluation():
    quantizer = AbsMax(8)
    for x in batches():
        largest = np.abs(x).max()
        y = quantizer(paddle.to_tensor(x)).numpy()
        np.testing.assert_allclose(y, fake(x, largest), atol=largest / 127 * 1.01)
        np.testing.assert_allclose(np.abs(y).max(), largest, rtol=1e-6)
    quantizer.eval()
    kept = max(np.abs(x).max() for x in batches())
    np.testing.assert_allclose(quantizer.scale.numpy(), [kept])
    assert ActivationQuantizer(quantizer).scale_numpy().tolist() == [np.float32(kept)]
    y = quantizer(paddle.to_tensor([1000.0])).numpy()
    np.testing.assert_allclose(y, [kept], rtol=1e-6)


@pytest.mark.parametrize("make", [lambda: MovingAverageAbsMax(8, 0.9), lambda: AbsMax(8)])
def test_an_all_zero_tensor_gives_zeros_and_counts_as_seen(make):
    quantizer = make()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not quantizer.has_scale()
        y = quantizer(paddle.zeros([2, 3]))
    assert (y.numpy() == 0).all()
    assert quantizer.has_scale()


@pytest.mark.parametrize("make", [lambda: MovingAverageAbsMax(8, 0.9), lambda: AbsMax(8)])
def test_evaluation_before_any_data_warns(make):
    quantizer = make()
    quantizer.eval()
    with pytest.warns(UserWarning, match="before it saw any data.*calibrate"):
        quantizer(paddle.ones([2]))


@pytest.mark.parametrize("make", [lambda: MovingAverageAbsMax(8, 0.9), lambda: AbsMax(8)])
def test_a_state_dict_carries_the_statistics(make):
    first, second = make(), make()
    for x in batches(3):
        first(paddle.to_tensor(x))
    second.set_state_dict(first.state_dict())
    assert second.has_scale()
    x = paddle.to_tensor(batches(4)[3])
    np.testing.assert_array_equal(first(x), second(x))
    np.testing.assert_array_equal(first.scale, second.scale)


@pytest.mark.parametrize("axis", [None, 0, 1])
@pytest.mark.parametrize("bits", [3, 8, 12])
def test_a_weight_is_quantized_with_its_own_scale_at_each_step(axis, bits):
    quantizer = WeightAbsMax(bits, axis)
    for seed in range(2):
        w = np.random.default_rng(seed).normal(size=(4, 3, 2, 2)).astype(np.float32)
        others = tuple(i for i in range(4) if i != axis)
        scale = np.abs(w).max() if axis is None else np.abs(w).max(axis=others, keepdims=True)
        y, expected = quantizer(paddle.to_tensor(w)).numpy(), fake(w, scale, bits)
        r = 2 ** (bits - 1) - 1
        assert np.mean(np.abs(y - expected) > 1e-5) < 0.02
        assert (np.abs(y - expected) <= scale / r * 1.01).all()


def test_a_weight_channel_of_zeros_gives_zeros():
    w = np.ones([3, 2], np.float32)
    w[:, 1] = 0
    y = WeightAbsMax(8, 1)(paddle.to_tensor(w)).numpy()
    np.testing.assert_array_equal(y, w)


@pytest.mark.parametrize("axis, kind", [(0, "conv"), (1, "linear")])
@pytest.mark.parametrize("bits", [4, 8])
def test_codes_times_scale_is_the_simulated_weight(axis, kind, bits):
    shape = (4, 3, 2, 2) if kind == "conv" else (3, 4)
    w = paddle.to_tensor(np.random.default_rng(1).normal(size=shape).astype(np.float32))
    builtins = [WeightAbsMax(bits, axis), WeightAbsMax(bits, None), MovingAverageAbsMax(bits, 0.9)]
    for builtin in builtins:
        quantizer = WeightQuantizer(builtin, axis)
        simulated = quantizer(w).numpy()
        codes, scale = quantizer.codes_and_scales(w)
        assert codes.dtype == np.int8 and scale.shape == (4,)
        spread = [1] * len(shape)
        spread[axis] = 4
        r = 2 ** (bits - 1) - 1
        assert np.abs(codes).max() == r
        np.testing.assert_allclose(codes * scale.reshape(spread) / r, simulated, rtol=1e-5)


def test_repr_tells_type_and_bits():
    assert "moving_average_abs_max, bits=4, moving_rate=0.5" in repr(MovingAverageAbsMax(4, 0.5))
    assert "abs_max, bits=6" in repr(AbsMax(6))
    assert "channel_wise_abs_max, bits=8, axis=1" in repr(WeightAbsMax(8, 1))
