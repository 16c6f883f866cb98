import numpy as np
import paddle
import pytest
from paddle import nn
from paddle.amp import amp_lists

from quant import QAT
from quant.full_precision import in_float32, without_autocast


def numpy_fake_quant(x, scale, r=127):
    scale = np.float32(scale)
    codes = np.clip(np.rint(x.astype(np.float32) * (np.float32(r) / scale)), -r, r)
    return (codes * scale / np.float32(r)).astype(np.float32)


def to_16_bits(x, dtype):
    """The float32 values that a float16 or bfloat16 tensor holds."""
    return paddle.to_tensor(x).astype(dtype).astype("float32").numpy()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("alpha", [None, 1.7])
def test_16_bit_inputs_are_quantized_in_float32(dtype, alpha):
    """As in a network under auto_cast: the layer before has left 16 bits, the weight is float32."""
    config = {} if alpha is None else {"activation_preprocess_type": "PACT"}
    net = QAT(config).quantize(nn.Sequential(nn.Linear(6, 5)))
    layer = net[0]
    if alpha is not None:
        layer._act_quant.preprocess.alpha.set_value(np.array([alpha], np.float32))
    values = np.random.default_rng(0).normal(size=(9, 6)).astype(np.float32) * 2
    x = paddle.to_tensor(values).astype(dtype)
    x.stop_gradient = False
    net.train()
    found, weight = layer.quantized_operands(x)

    seen = to_16_bits(values, dtype)
    clipped = seen if alpha is None else np.clip(seen, -np.float32(alpha), np.float32(alpha))
    scale = np.abs(clipped).max()
    assert layer._act_quant.quantizer.scale.item() == scale
    assert found.dtype == x.dtype
    expected = to_16_bits(numpy_fake_quant(clipped, scale), dtype)
    np.testing.assert_array_equal(found.astype("float32").numpy(), expected)

    w = layer.weight.numpy()
    per_channel = np.abs(w).max(axis=0, keepdims=True)
    assert weight.dtype == paddle.float32
    for column in range(5):
        expected = numpy_fake_quant(w[:, column], per_channel[0, column])
        np.testing.assert_allclose(weight.numpy()[:, column], expected, rtol=1e-6)

    (found.astype("float32").sum() + weight.sum()).backward()
    assert x.grad.dtype == x.dtype
    np.testing.assert_array_equal(layer.weight.grad.numpy(), np.ones_like(w))
    if alpha is not None:
        beyond = (seen > np.float32(alpha)).sum() - (seen < -np.float32(alpha)).sum()
        assert layer._act_quant.preprocess.alpha.grad.item() == beyond


def test_quantizer_state_stays_float32_behind_16_bit_inputs():
    net = QAT({"activation_preprocess_type": "PACT"}).quantize(nn.Sequential(nn.Linear(6, 5)))
    net.train()
    for _ in range(3):
        net[0].quantized_operands(paddle.randn([4, 6]).astype("bfloat16"))
    assert {str(value.dtype) for value in net.state_dict().values()} == {"paddle.float32"}


# Operators behind the fake quantizers, by Paddle's names for them.
ARITHMETIC = {
    *("abs", "max", "clip", "multiply", "elementwise_mul", "add", "elementwise_add", "subtract"),
    *("elementwise_sub", "divide", "elementwise_div", "where", "reciprocal", "relu", "minimum"),
    *("maximum", "scale", "greater_than", "assign", "cast"),
}


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_level_o1_casts_down_no_operator_of_a_fake_quantizer(dtype):
    assert not ARITHMETIC & set(amp_lists.white_list()[dtype]["O1"])
    assert "conv2d" in amp_lists.white_list()[dtype]["O1"]
    assert not {"batch_norm"} & set(amp_lists.white_list()[dtype]["O1"])


def test_autocast_is_off_inside_and_on_again_after(monkeypatch):
    entered = []
    real = paddle.amp.auto_cast

    def recording(**words):
        entered.append(words)
        return real(**words)

    monkeypatch.setattr(paddle.amp, "auto_cast", recording)
    net = QAT().quantize(nn.Sequential(nn.Linear(3, 2)))
    net(paddle.ones([1, 3]))
    assert entered == [{"enable": False}]


def test_a_static_graph_is_left_alone():
    paddle.enable_static()
    try:
        with without_autocast():
            pass
    finally:
        paddle.disable_static()


def test_float32_is_not_copied():
    x = paddle.ones([2])
    assert in_float32(lambda y: y, x) is x
    half = in_float32(lambda y: y * (1 / 3), x.astype("float16"))
    assert half.dtype == paddle.float16
    np.testing.assert_array_equal(half.numpy(), np.full(2, 1 / 3, np.float16))
