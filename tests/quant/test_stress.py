"""Numbers and networks at the edge: what must still be exact, and what must be refused by name."""

from __future__ import annotations

import numpy as np
import paddle
import pytest
from paddle import nn
from paddle.nn import functional as F

from quant import QAT, ExportError, QuantError
from quant.functional import fake_quant
from quant.grid import symmetric


def images(count: int = 4, size: int = 8) -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.normal(size=(count, 3, size, size)).astype(np.float32)


def network() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2D(3, 8, 3, padding=1),
        nn.BatchNorm2D(8),
        nn.ReLU(),
        nn.Conv2D(8, 8, 3, padding=1, groups=8),
        nn.ReLU6(),
        nn.AdaptiveAvgPool2D(1),
        nn.Flatten(),
        nn.Linear(8, 4),
    )


def with_zero_channels() -> nn.Layer:
    net = network()
    for layer, index in ((net[0], 3), (net[3], 2)):
        weight = layer.weight.numpy()
        weight[index] = 0
        layer.weight.set_value(weight)
    weight = net[7].weight.numpy()
    weight[:, 1] = 0
    net[7].weight.set_value(weight)
    return net


def with_a_zero_layer() -> nn.Layer:
    net = network()
    net[3].weight.set_value(net[3].weight * 0)
    return net


class OneShared(nn.Layer):
    """All of it is one layer."""

    def __init__(self):
        super().__init__()
        self.only = nn.Conv2D(3, 3, 3, padding=1)

    def forward(self, x):
        for _ in range(4):
            x = F.relu(self.only(x))
        return x.mean([2, 3])


CASES = {
    "zero channels": (with_zero_channels, images()),
    "a zero layer": (with_a_zero_layer, images()),
    "one pixel": (network, images(size=1)),
    "a batch of one": (network, images(1)),
    "one pixel in all": (network, images(1, 1)),
    "constant images": (network, np.ones((4, 3, 8, 8), np.float32)),
    "black images": (network, np.zeros((4, 3, 8, 8), np.float32)),
    "one shared layer": (OneShared, images()),
}
TARGETS = ["generic", "onednn", "onnxruntime", "openvino"]


def trained(net: nn.Layer, x: np.ndarray, config: dict):
    """One step of training, with everything finite."""
    paddle.seed(0)
    quanter = QAT(config)
    spec = [paddle.static.InputSpec([None, *x.shape[1:]], "float32")]
    quanter.quantize(net, input_spec=spec)
    optimizer = paddle.optimizer.Momentum(1e-3, parameters=net.parameters())
    net.train()
    out = net(paddle.to_tensor(x))
    out.mean().backward()
    assert np.isfinite(out.numpy()).all()
    for name, parameter in net.named_parameters():
        if parameter.grad is not None:
            assert np.isfinite(parameter.grad.numpy()).all(), name
    optimizer.step()
    optimizer.clear_grad()
    quanter.calibrate(net, [x])
    net.eval()
    assert np.isfinite(net(paddle.to_tensor(x)).numpy()).all()
    return quanter, spec


def verdict_of(quanter, net, spec, x, tmp_path):
    if quanter.config.deploy_target in ("onnxruntime", "openvino"):
        pytest.importorskip(quanter.config.deploy_target)
        path = str(tmp_path / "net.onnx")
        quanter.export_onnx(net, path, spec)
    else:
        path = str(tmp_path / "net")
        quanter.save_quantized_model(net, path, spec)
    return quanter.verify(net, path, [x])


@pytest.mark.int8_products
@pytest.mark.parametrize(
    "pact", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["plain", "pact"]
)
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("make,x", CASES.values(), ids=CASES.keys())
def test_it_trains_and_the_file_is_the_network(make, x, target, pact, tmp_path):
    net = make()
    config = {"deploy_target": target, **({"activation_preprocess_type": "PACT"} if pact else {})}
    quanter, spec = trained(net, x, config)
    verdict = verdict_of(quanter, net, spec, x, tmp_path)
    assert verdict.passed, verdict.failures


@pytest.mark.parametrize("key", ["weight_bits", "activation_bits"])
@pytest.mark.parametrize("bits", range(2, 17))
def test_all_widths_train_and_up_to_eight_are_saved(bits, key, tmp_path):
    net, x = network(), images()
    quanter, spec = trained(net, x, {key: bits})
    if bits <= 8:
        verdict = verdict_of(quanter, net, spec, x, tmp_path)
        assert verdict.passed, verdict
        return
    with pytest.raises(ExportError, match=f"layer 0: {key}={bits} does not fit int8"):
        quanter.save_quantized_model(net, str(tmp_path / "net"), spec)


@pytest.mark.parametrize("bits", [2, 8, 16])
@pytest.mark.parametrize("size", [1e-30, 1e-20, 1.0, 1e20, 1e30])
def test_fake_quantization_of_very_small_and_very_large_numbers(size, bits):
    x = (np.random.default_rng(0).normal(size=1000) * size).astype(np.float32)
    scale = np.abs(x).max() / np.float32(2)
    found = fake_quant(
        paddle.to_tensor(x), paddle.to_tensor(np.array([scale])), symmetric(bits)
    ).numpy()
    r = 2 ** (bits - 1) - 1
    exact = np.clip(np.rint(x.astype(np.float64) / scale * r), -r, r) * scale / r
    # A value within float32's rounding of the middle between two steps may go either way.
    away = np.abs(found - exact) / (float(scale) / r)
    assert away.max() <= 1.001 and (away > 0.01).mean() < 0.01
    assert np.isfinite(found).all()


@pytest.mark.parametrize("factor", [1e-10, 1e10])
def test_weights_of_another_order_of_magnitude(factor, tmp_path):
    net, x = network(), images(64)
    net[0].weight.set_value(net[0].weight * factor)
    quanter, spec = trained(net, x, {})
    verdict = verdict_of(quanter, net, spec, x, tmp_path)
    assert verdict.passed, verdict


def test_inputs_below_what_float32_divides_by_are_not_passed_over(tmp_path):
    """1 / 1e-39 is infinite in float32: the engines return NaN, and the check says so."""
    net, x = network(), images() * np.float32(1e-38)
    quanter, spec = trained(net, x, {})
    verdict = verdict_of(quanter, net, spec, x, tmp_path)
    assert not verdict.passed and "output 0 differs from the network by nan" in verdict.failures[0]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("kind", ["abs_max", "moving_average_abs_max"])
def test_calibration_names_the_layer_that_sees_what_is_no_number(kind, bad):
    net, x = network(), images()
    quanter = QAT({"activation_quantize_type": kind})
    quanter.quantize(net)
    quanter.calibrate(net, [x])
    before = {name: value.numpy() for name, value in net.state_dict().items()}
    net[3].register_forward_pre_hook(lambda layer, inputs: (inputs[0] * bad,))
    with pytest.raises(QuantError, match="the input of layer 3 holds NaN or Inf"):
        quanter.calibrate(net, [x])
    for name, value in net.state_dict().items():
        np.testing.assert_array_equal(value.numpy(), before[name], err_msg=name)
