from __future__ import annotations

import numpy as np
import paddle
import pytest

from models.mobilenet_v3 import (
    LARGE,
    ROWS,
    SCALES,
    SMALL,
    MobileNetV3,
    SqueezeExcitation,
    make_divisible,
)


def trainable(net: paddle.nn.Layer) -> int:
    return sum(int(np.prod(p.shape)) for p in net.parameters() if not p.stop_gradient)


def counted(size: str, scale: float, classes: int) -> int:
    """Number of trainable values, added up from the published table."""

    def channels(n: float) -> int:
        # Nearest multiple of 8 (halves go up); one more where that loses over a tenth.
        near = max(8, int(np.floor(n / 8 + 0.5)) * 8)
        return near if near >= 0.9 * n else near + 8

    def conv_bn(inputs: int, outputs: int, kernel: int) -> int:
        return inputs * outputs * kernel**2 + 2 * outputs

    width = channels(16 * scale)
    total = conv_bn(3, width, 3)
    for kernel, expand, out, se, _, _ in {"large": LARGE, "small": SMALL}[size]:
        e, o = channels(expand * scale), channels(out * scale)
        total += conv_bn(width, e, 1) + conv_bn(1, e, kernel) + conv_bn(e, o, 1)
        if se:
            total += e * (e // 4) + e // 4 + (e // 4) * e + e
        width = o
    last = channels({"large": 960, "small": 576}[size] * scale)
    return total + conv_bn(width, last, 1) + last * 1280 + 1280 * classes + classes


def test_large_network_has_5_48_million_parameters():
    count = trainable(MobileNetV3("large", 1.0, 1000))
    assert count == counted("large", 1.0, 1000)
    assert round(count / 1e6, 2) == 5.48


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("size", ["large", "small"])
def test_parameter_count_follows_from_the_table(size, scale):
    assert trainable(MobileNetV3(size, scale, 11)) == counted(size, scale, 11)


def test_tables_have_the_published_number_of_units():
    assert (len(LARGE), len(SMALL)) == (15, 11)


@pytest.mark.parametrize(
    ("asked", "given"),
    [(16, 16), (5.6, 8), (8.4, 8), (25.2, 24), (12, 16), (11.9, 16), (90, 88), (18, 24), (50, 48)],
)
def test_channels_are_multiples_of_8_of_at_least_90_percent(asked, given):
    assert make_divisible(asked) == given
    assert given >= 0.9 * asked


def test_units_halve_the_image_where_the_table_says_so():
    net = MobileNetV3("large", 0.35, 3)
    net.eval()
    x = net.conv1(paddle.zeros([1, 3, 64, 64]))
    side = 32
    for unit, row in zip(net.units, LARGE):
        assert [int(n) for n in x.shape[2:]] == [side, side]
        x = unit(x)
        side //= row.stride
    assert [int(n) for n in x.shape[2:]] == [2, 2]


def test_units_add_their_input_only_where_shapes_allow():
    units = MobileNetV3("large", 1.0, 3).units
    added = [number for number, unit in enumerate(units, start=2) if unit.residual]
    assert added == [2, 4, 6, 7, 9, 10, 11, 13, 15, 16]


def test_residual_unit_returns_its_input_when_its_last_batch_norm_is_zero():
    unit = MobileNetV3("large", 1.0, 3).units[0]
    unit.eval()
    unit.linear.bn.weight.set_value(paddle.zeros_like(unit.linear.bn.weight))
    x = paddle.rand([1, 16, 5, 5])
    np.testing.assert_array_equal(unit(x).numpy(), x.numpy())


def test_squeeze_excitation_gates_with_a_hard_sigmoid_of_slope_0_2():
    paddle.seed(3)
    layer = SqueezeExcitation(8)
    x = paddle.randn([2, 8, 3, 3]) * 4
    w1, b1 = layer.conv1.weight.numpy()[:, :, 0, 0], layer.conv1.bias.numpy()
    w2, b2 = layer.conv2.weight.numpy()[:, :, 0, 0], layer.conv2.bias.numpy()
    hidden = np.maximum(x.numpy().mean(axis=(2, 3)) @ w1.T + b1, 0)
    gate = np.clip(0.2 * (hidden @ w2.T + b2) + 0.5, 0, 1)
    np.testing.assert_allclose(
        layer(x).numpy(), x.numpy() * gate[:, :, None, None], rtol=1e-5, atol=1e-6
    )


def test_last_convolution_has_neither_bias_nor_batch_norm():
    state = MobileNetV3("small", 0.35, 3).state_dict()
    assert [key for key in state if key.startswith("last_1x1_conv")] == ["last_1x1_conv.weight"]


def test_every_unit_has_an_expand_convolution():
    for size, rows in ROWS.items():
        state = MobileNetV3(size, 0.35, 3).state_dict()
        for number in range(2, len(rows) + 2):
            assert f"units.conv{number}.expand.conv.weight" in state


def test_gradient_reaches_every_trainable_parameter():
    net = MobileNetV3("small", 0.35, 3)
    net(paddle.rand([2, 3, 64, 64])).square().sum().backward()
    missing = [n for n, p in net.named_parameters() if not p.stop_gradient and p.grad is None]
    assert missing == []
