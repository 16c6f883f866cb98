"""BatchNorm folded into int8 codes, scale and bias: the file equals the network, layer by layer."""

from __future__ import annotations

import numpy as np
import paddle
import pytest
from paddle import nn

from quant import QAT, ExportError, Predictor
from quant.paddle_format import read_constants, read_program


def random(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def fill_norm(norm, seed: int = 3) -> None:
    """gamma of both signs and exactly zero in channel 1; statistics of many sizes."""
    rng = np.random.default_rng(seed)
    n = norm.weight.shape[0]
    gamma = rng.normal(size=n)
    gamma[0], gamma[1 % n] = -abs(gamma[0]) - 0.1, 0.0
    norm.weight.set_value(gamma.astype(np.float32))
    norm.bias.set_value(rng.normal(size=n).astype(np.float32))
    norm._mean.set_value(rng.normal(size=n).astype(np.float32))
    norm._variance.set_value((10.0 ** rng.uniform(-3, 2, size=n)).astype(np.float32))


def zero_channel(layer, axis: int, channel: int = 2) -> None:
    weight = layer.weight.numpy().copy()
    np.moveaxis(weight, axis, 0)[channel] = 0
    layer.weight.set_value(weight)


def exported(net, x: np.ndarray, prefix: str, config=None):
    """The network's values in evaluation and those of the file on plain CPU; and the prefix."""
    quanter = QAT(config)
    quanter.quantize(net)
    quanter.calibrate(net, [x])
    net.eval()
    expected = net(paddle.to_tensor(x)).numpy()
    spec = [paddle.static.InputSpec([None, *x.shape[1:]], "float32")]
    receipt = quanter.save_quantized_model(net, prefix, spec)
    assert receipt.weights and len(receipt.int8_weights) == len(receipt.weights)
    return expected, Predictor(prefix)(x)[0]


def assert_equal(expected: np.ndarray, found: np.ndarray, share: float = 1e-5) -> None:
    assert np.isfinite(found).all() and np.ptp(expected) > 0
    assert found.shape == expected.shape
    assert np.abs(expected - found).max() <= share * np.ptp(expected)


CONVOLUTIONS = {
    "plain": {},
    "bias": {"bias_attr": None},
    "depthwise": {"groups": 6},
    "grouped": {"groups": 2},
    "dilated": {"dilation": 2, "padding": "SAME"},
    "strided": {"stride": 2, "padding": [0, 1, 2, 1], "bias_attr": None},
    "reflect": {"padding": 1, "padding_mode": "reflect"},
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
@pytest.mark.parametrize("weights", ["abs_max", "channel_wise_abs_max"])
def test_convolution_and_batch_norm_fold_exactly(name, weights, tmp_path):
    options = {"bias_attr": False, **CONVOLUTIONS[name]}
    net = nn.Sequential(nn.Conv2D(6, 6, 3, **options), nn.BatchNorm2D(6))
    zero_channel(net[0], axis=0)
    fill_norm(net[1])
    config = {"weight_quantize_type": weights}
    assert_equal(*exported(net, random(8, 6, 9, 9), str(tmp_path / "net"), config))


def test_channels_last_folds_exactly(tmp_path):
    conv = nn.Conv2D(6, 6, 3, bias_attr=False, data_format="NHWC")
    net = nn.Sequential(conv, nn.BatchNorm2D(6, data_format="NHWC"))
    zero_channel(net[0], axis=0)
    fill_norm(net[1])
    assert_equal(*exported(net, random(8, 9, 9, 6), str(tmp_path / "net")))


@pytest.mark.parametrize("bias", [None, False])
def test_linear_and_batch_norm_fold_exactly(bias, tmp_path):
    net = nn.Sequential(nn.Linear(9, 6, bias_attr=bias), nn.BatchNorm1D(6))
    zero_channel(net[0], axis=1)
    fill_norm(net[1])
    assert_equal(*exported(net, random(32, 9), str(tmp_path / "net")))


@pytest.mark.parametrize("shape", [(9,), (7, 9), (3, 5, 9)])
def test_a_linear_layer_on_any_rank_is_exact(shape, tmp_path):
    net = nn.Sequential(nn.Linear(9, 6))
    zero_channel(net[0], axis=1)
    net[0].bias.set_value(random(6, seed=2))
    assert_equal(*exported(net, random(8, *shape), str(tmp_path / "net")))


@pytest.mark.parametrize("bits", [2, 4, 7])
def test_fewer_bits_are_exact_too(bits, tmp_path):
    net = nn.Sequential(nn.Conv2D(6, 6, 3, bias_attr=False), nn.BatchNorm2D(6))
    fill_norm(net[1])
    config = {"weight_bits": bits, "activation_bits": bits}
    assert_equal(*exported(net, random(8, 6, 9, 9), str(tmp_path / "net"), config))


def test_values_beyond_the_scale_saturate_alike(tmp_path):
    net = nn.Sequential(nn.Conv2D(6, 6, 3))
    quanter = QAT()
    quanter.quantize(net)
    quanter.calibrate(net, [random(8, 6, 9, 9)])
    net.eval()
    x = random(8, 6, 9, 9, seed=1) * 10
    spec = [paddle.static.InputSpec([None, 6, 9, 9], "float32")]
    quanter.save_quantized_model(net, str(tmp_path / "net"), spec)
    assert_equal(net(paddle.to_tensor(x)).numpy(), Predictor(str(tmp_path / "net"))(x)[0])


def test_the_older_batch_norm_class_folds_too(tmp_path):
    net = nn.Sequential(nn.Conv2D(6, 6, 3, bias_attr=False), nn.BatchNorm(6))
    fill_norm(net[1])
    assert_equal(*exported(net, random(8, 6, 9, 9), str(tmp_path / "net")))


def test_a_folded_batch_norm_leaves_integer_codes_with_flipped_signs(tmp_path):
    net = nn.Sequential(nn.Conv2D(6, 6, 3, bias_attr=False), nn.BatchNorm2D(6))
    zero_channel(net[0], axis=0)
    fill_norm(net[1])
    weight = net[0].weight.numpy()
    exported(net, random(8, 6, 9, 9), str(tmp_path / "net"))
    codes = next(v for v in read_constants(str(tmp_path / "net")).values() if v.dtype == np.int8)
    scale = np.abs(weight).max(axis=(1, 2, 3), keepdims=True)
    plain = np.rint(weight / np.where(scale > 0, scale, 1) * 127)
    gamma = net[1].weight.numpy()
    for channel in range(6):
        expected = plain[channel] * np.sign(gamma[channel])
        assert np.abs(codes[channel] - expected).max() <= (0 if gamma[channel] == 0 else 1)
        assert np.mean(codes[channel] != expected) < 0.02
    assert gamma[0] < 0 and (codes[2] == 0).all() and (codes[1] == 0).all()


def test_a_shared_convolution_folds_into_each_of_its_batch_norms(tmp_path):
    class Twice(nn.Layer):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2D(6, 6, 3, bias_attr=False)
            self.norms = nn.LayerList([nn.BatchNorm2D(6), nn.BatchNorm2D(6)])

        def forward(self, x):
            return self.norms[0](self.conv(x)) + self.norms[1](self.conv(x))

    net = Twice()
    fill_norm(net.norms[0], seed=4)
    fill_norm(net.norms[1], seed=5)
    assert_equal(*exported(net, random(8, 6, 9, 9), str(tmp_path / "net")))


def test_a_batch_norm_is_not_folded_where_the_convolution_is_read_elsewhere(tmp_path):
    class Both(nn.Layer):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2D(6, 6, 3)
            self.norm = nn.BatchNorm2D(6)

        def forward(self, x):
            y = self.conv(x)
            return self.norm(y) + paddle.nn.functional.relu(y)

    net = Both()
    fill_norm(net.norm)
    assert_equal(*exported(net, random(8, 6, 9, 9), str(tmp_path / "net")))


def test_a_batch_norm_before_the_convolution_stays_what_it_is(tmp_path):
    # One step of the input's quantizer may go the other way, since the BatchNorm before it is
    # another float kernel in the file; so this is about the mean, not the largest difference.
    net = nn.Sequential(nn.BatchNorm2D(6), nn.Conv2D(6, 6, 3))
    fill_norm(net[0])
    expected, found = exported(net, random(8, 6, 9, 9), str(tmp_path / "net"))
    assert np.abs(expected - found).mean() <= 1e-4 * np.ptp(expected)


@pytest.mark.parametrize("shape", [[6, 1, 1], [1, 6, 1, 1]])
def test_a_constant_added_per_channel_is_exact(shape, tmp_path):
    class Shifted(nn.Layer):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2D(6, 6, 3, bias_attr=False)
            self.norm = nn.BatchNorm2D(6)
            self.shift = self.create_parameter(shape)
            self.shift.set_value(random(*shape, seed=8))

        def forward(self, x):
            return self.norm(self.conv(x) + self.shift)

    net = Shifted()
    fill_norm(net.norm)
    assert_equal(*exported(net, random(8, 6, 9, 9), str(tmp_path / "net")))


def test_a_constant_added_along_another_axis_is_not_taken_for_a_bias(tmp_path):
    class Shifted(nn.Layer):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2D(6, 6, 3, bias_attr=False)
            self.shift = self.create_parameter([6])
            self.shift.set_value(random(6, seed=8))

        def forward(self, x):
            return self.conv(x) + self.shift  # broadcast along the width, which is 6 too

    assert_equal(*exported(Shifted(), random(8, 6, 8, 8), str(tmp_path / "net")))


def test_pact_leaves_no_operator_behind(tmp_path):
    x = random(8, 6, 9, 9)
    kinds = []
    for name, config in (
        ("plain", {}),
        ("pact", {"activation_preprocess_type": "PACT", "weight_preprocess_type": "PACT"}),
    ):
        net = nn.Sequential(nn.Conv2D(6, 6, 3), nn.ReLU(), nn.Conv2D(6, 6, 3))
        quanter = QAT(config)
        quanter.quantize(net)
        net.train()
        net(paddle.to_tensor(x))
        if config:
            for conv in (net[0], net[2]):
                conv._act_quant.preprocess.alpha.set_value(paddle.to_tensor([0.7]))
                conv._weight_quant.preprocess.alpha.set_value(paddle.to_tensor([0.1]))
        net.eval()
        spec = [paddle.static.InputSpec([None, 6, 9, 9], "float32")]
        quanter.save_quantized_model(net, str(tmp_path / name), spec)
        found = Predictor(str(tmp_path / name))(x)[0]
        expected = net(paddle.to_tensor(x)).numpy()
        assert np.abs(expected - found).mean() <= 1e-3 * np.ptp(expected)
        program = read_program(str(tmp_path / name))
        kinds.append([op.type for op in program.blocks[0].ops if op.type != "clip"])
    assert kinds[0] == kinds[1]


def test_nan_in_a_weight_cannot_be_exported(tmp_path):
    net = nn.Sequential(nn.Conv2D(6, 6, 3))
    weight = net[0].weight.numpy().copy()
    weight[0, 0, 0, 0] = np.nan
    net[0].weight.set_value(weight)
    with pytest.raises(ExportError, match="layer 0.*NaN"):
        exported(net, random(8, 6, 9, 9), str(tmp_path / "net"))


@pytest.mark.parametrize("before", ["nothing", "relu", "hardtanh"])
@pytest.mark.parametrize("scale", [127.0, 8.006578, 1.4507087])
def test_halves_between_two_codes_go_to_the_even_one(before, scale, tmp_path):
    first = {"nothing": [], "relu": [nn.ReLU()], "hardtanh": [nn.Hardtanh(-200.0, 200.0)]}[before]
    conv = nn.Conv2D(1, 1, 1, bias_attr=False)
    conv.weight.set_value(np.ones([1, 1, 1, 1], np.float32))
    net = nn.Sequential(*first, conv)
    quanter = QAT()
    quanter.quantize(net)
    quanter.calibrate(net, [np.full([1, 1, 1, 1], scale, np.float32)])
    net.eval()
    low = 0 if before == "relu" else -126
    halves = ((np.arange(low, 126) + 0.5) * np.float64(scale) / 127).astype(np.float32)
    x = halves.reshape([-1, 1, 1, 1])
    spec = [paddle.static.InputSpec([None, 1, 1, 1], "float32")]
    quanter.save_quantized_model(net, str(tmp_path / "net"), spec)
    expected = net(paddle.to_tensor(x)).numpy()
    if scale == 127.0:
        np.testing.assert_array_equal(expected, np.rint(x))
    assert_equal(expected, Predictor(str(tmp_path / "net"))(x)[0])


class ReadInABranchAndOutside(nn.Layer):
    """Two layers with equal scales and weights read x, the first of them in a branch only."""

    def __init__(self):
        super().__init__()
        self.inside = nn.Conv2D(3, 4, 3, bias_attr=False)
        self.outside = nn.Conv2D(3, 4, 3, bias_attr=False)
        self.outside.weight.set_value(self.inside.weight.numpy())

    def forward(self, x):
        if x.mean() > 100.0:
            y = self.inside(x)
        else:
            y = self.inside(x) * 2
        return y + self.outside(x)


def test_what_a_branch_quantizes_is_not_read_outside_it(tmp_path):
    x = random(8, 3, 9, 9)
    quanter = QAT()
    net = quanter.quantize(ReadInABranchAndOutside())
    quanter.calibrate(net, [x])
    net.eval()
    spec = [paddle.static.InputSpec([None, 3, 9, 9], "float32")]
    quanter.save_quantized_model(net, str(tmp_path / "net"), spec)
    expected = net(paddle.to_tensor(x)).numpy()
    assert_equal(expected, Predictor(str(tmp_path / "net"))(x)[0])
