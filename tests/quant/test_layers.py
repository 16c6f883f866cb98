from __future__ import annotations

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest
from paddle import nn

from quant import QAT


def fake(x: np.ndarray, axis=None, bits: int = 8) -> np.ndarray:
    """abs_max fake quantization of an array in NumPy float32."""
    others = tuple(i for i in range(x.ndim) if i != axis)
    scale = np.abs(x).max() if axis is None else np.abs(x).max(axis=others, keepdims=True)
    r = np.float32(2 ** (bits - 1) - 1)
    # The order of the int8 kernels, so that no value near a step rounds to the other side.
    codes = np.clip(np.rint(x * (r * (np.float32(1) / scale))), -r, r)
    return (codes * scale / r).astype(np.float32)


def random(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


CONVOLUTIONS = {
    "plain": {},
    "one_by_one": {"kernel_size": 1},
    "grouped": {"groups": 2},
    "depthwise": {"groups": 4},
    "dilated": {"dilation": 2, "padding": 2},
    "strided": {"stride": (2, 1), "padding": 1},
    "rectangular": {"kernel_size": (1, 3), "padding": (0, 1)},
    "same": {"padding": "SAME"},
    "same_strided": {"padding": "SAME", "stride": 2},
    "valid": {"padding": "VALID"},
    "padding_of_four": {"padding": [1, 0, 2, 1]},
    "padding_of_pairs": {"padding": [[0, 0], [0, 0], [1, 2], [0, 1]]},
    "channels_last": {"data_format": "NHWC", "padding": 1},
    "channels_last_grouped": {"data_format": "NHWC", "groups": 2, "padding": [2, 1]},
    "no_bias": {"bias_attr": False},
    "reflect": {"padding": 1, "padding_mode": "reflect"},
    "replicate": {"padding": 2, "padding_mode": "replicate"},
    "circular": {"padding": 2, "padding_mode": "circular"},
    "reflect_dilated": {"padding": 2, "dilation": 2, "padding_mode": "reflect"},
    "circular_channels_last": {"padding": 1, "padding_mode": "circular", "data_format": "NHWC"},
}


def conv_and_input(name: str):
    options = {"kernel_size": 3, **CONVOLUTIONS[name]}
    x = random(2, 4, 9, 8)
    if options.get("data_format") == "NHWC":
        x = np.ascontiguousarray(x.transpose(0, 2, 3, 1))
    return nn.Conv2D(4, 6 if options.get("groups", 1) < 4 else 8, **options), x


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_a_convolution_is_the_float_one_of_its_fake_quantized_operands(name):
    conv, x = conv_and_input(name)
    reference, reference_x = conv_and_input(name)
    reference.weight.set_value(fake(conv.weight.numpy(), axis=0))
    if conv.bias is not None:
        reference.bias.set_value(conv.bias)
    a = paddle.to_tensor(fake(reference_x), stop_gradient=False)
    expected = reference(a)
    upstream = paddle.to_tensor(random(*expected.shape, seed=1))
    (expected * upstream).sum().backward()

    QAT().quantize(conv)
    b = paddle.to_tensor(x, stop_gradient=False)
    found = conv(b)
    (found * upstream).sum().backward()
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert np.abs(found.numpy() - nn.Conv2D.forward(reference, b).numpy()).max() > 1e-4
    # Straight-through: the gradients are those of the float convolution at the quantized point.
    np.testing.assert_allclose(b.grad, a.grad, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(conv.weight.grad, reference.weight.grad, rtol=1e-4, atol=1e-4)
    if conv.bias is not None:
        np.testing.assert_allclose(conv.bias.grad, reference.bias.grad, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", [(5, 6), (2, 7, 6), (2, 3, 4, 6)])
@pytest.mark.parametrize("bias", [None, False])
def test_a_linear_layer_is_the_float_one_of_its_fake_quantized_operands(shape, bias):
    layer = nn.Linear(6, 3, bias_attr=bias)
    x = random(*shape)
    xq, wq = fake(x), fake(layer.weight.numpy(), axis=1)
    offset = 0 if layer.bias is None else layer.bias.numpy()
    QAT().quantize(layer)
    b = paddle.to_tensor(x, stop_gradient=False)
    y = layer(b)
    np.testing.assert_allclose(y, xq @ wq + offset, rtol=1e-4, atol=1e-5)
    upstream = random(*y.shape, seed=1)
    (y * paddle.to_tensor(upstream)).sum().backward()
    np.testing.assert_allclose(b.grad, upstream @ wq.T, rtol=1e-4, atol=1e-5)
    rows, grads = xq.reshape([-1, 6]), upstream.reshape([-1, 3])
    np.testing.assert_allclose(layer.weight.grad, rows.T @ grads, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["abs_max", "moving_average_abs_max"])
@pytest.mark.parametrize("bits", [4, 8])
def test_one_scale_for_a_whole_weight(kind, bits):
    layer = nn.Linear(6, 3, bias_attr=False)
    w, x = layer.weight.numpy(), random(5, 6)
    config = {"weight_quantize_type": kind, "weight_bits": bits, "activation_bits": bits}
    QAT(config).quantize(layer)
    expected = fake(x, bits=bits) @ fake(w, bits=bits)
    np.testing.assert_allclose(layer(paddle.to_tensor(x)), expected, rtol=1e-4, atol=1e-5)


def test_a_weight_is_quantized_with_the_scale_of_the_present_step():
    layer = nn.Linear(6, 3, bias_attr=False)
    QAT().quantize(layer)
    x = random(5, 6)
    layer(paddle.to_tensor(x))
    grown = layer.weight.numpy() * 3
    layer.weight.set_value(grown)
    found = layer(paddle.to_tensor(x)).numpy()
    np.testing.assert_allclose(found, fake(x) @ fake(grown, axis=1), rtol=1e-4, atol=1e-5)


def test_weights_learn_through_the_quantizer():
    paddle.seed(0)
    net = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 1))
    QAT().quantize(net)
    x = random(64, 6)
    target = paddle.to_tensor(x[:, :1] - x[:, 1:2])
    optimizer = paddle.optimizer.Momentum(0.05, parameters=net.parameters())
    losses = []
    for _ in range(60):
        loss = F.mse_loss(net(paddle.to_tensor(x)), target)
        loss.backward()
        optimizer.step()
        optimizer.clear_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.1 * losses[0]


def test_print_tells_how_each_layer_is_quantized():
    net = nn.Sequential(nn.Conv2D(3, 4, 3), nn.Flatten(), nn.Linear(4, 2))
    config = {"weight_bits": 4, "activation_bits": 6, "activation_preprocess_type": "PACT"}
    QAT({**config, "activation_quantize_type": "abs_max"}).quantize(net)
    text = repr(net)
    assert "QuantizedConv2D(3, 4" in text and "QuantizedLinear(in_features=4" in text
    assert text.count("channel_wise_abs_max, bits=4") == 2
    assert text.count("AbsMax(abs_max, bits=6)") == 2
    assert text.count("Pact(alpha=100") == 2
