"""deploy_target='onednn': which grid each tensor gets, and who shares a quantizer."""

from __future__ import annotations

import copy
import os
import re
import subprocess
import sys

import numpy as np
import paddle
import pytest
from paddle import nn
from paddle.nn import functional as F

from quant import QAT, ConfigError, Predictor, QuantError
from quant.grid import signed, unsigned
from quant.layers import InputRole

SPEC = [paddle.static.InputSpec([None, 3, 16, 16], "float32")]
TARGET = {"deploy_target": "onednn"}


def images(n: int = 8, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, 3, 16, 16)).astype(np.float32)


def calibrated(net: nn.Layer, **config) -> tuple[QAT, nn.Layer]:
    quanter = QAT({**TARGET, **config})
    quanter.quantize(net)
    quanter.calibrate(net, [images()])
    net.eval()
    return quanter, net


class Chains(nn.Layer):
    """Inputs of every kind: the image, after relu, after a concat, a gate, an average."""

    def __init__(self):
        super().__init__()
        self.image = nn.Conv2D(3, 8, 3, padding=1)
        self.after_relu = nn.Conv2D(8, 8, 3, padding=1)
        self.after_concat = nn.Conv2D(16, 8, 1)
        self.after_swish = nn.Conv2D(8, 8, 1)
        self.after_sigmoid = nn.Conv2D(8, 8, 1)
        self.after_mean = nn.Linear(8, 5)

    def forward(self, x):
        a = F.relu(self.image(x))
        b = F.relu(self.after_relu(F.max_pool2d(a, 2)))
        c = self.after_concat(paddle.concat([b, F.relu6(b * 2)], axis=1))
        d = F.sigmoid(self.after_swish(F.swish(c)))
        e = F.relu(self.after_sigmoid(d))
        return self.after_mean(e.mean([2, 3]))


def test_what_cannot_be_negative_is_unsigned():
    _, net = calibrated(Chains())
    grids = {name: layer._act_quant.grid for name, layer in net.named_children()}
    expected = {
        "image": signed(8),
        "after_relu": unsigned(8),
        "after_concat": signed(8),  # oneDNN's concat has signed integers
        "after_swish": signed(8),
        "after_sigmoid": unsigned(8),
        "after_mean": unsigned(8),
    }
    assert grids == expected
    assert "codes 0..255" in str(net.after_relu) and "codes -128..127" in str(net.image)


class Block(nn.Layer):
    """A residual block: relu(x + norm(conv(relu(norm(conv(x))))))."""

    def __init__(self, channels: int, down: bool = False):
        super().__init__()
        self.a, self.an = nn.Conv2D(channels, channels, 3, padding=1), nn.BatchNorm2D(channels)
        self.b, self.bn = nn.Conv2D(channels, channels, 3, padding=1), nn.BatchNorm2D(channels)
        self.down = nn.Conv2D(channels, channels, 1) if down else None

    def forward(self, x):
        y = self.bn(self.b(F.relu(self.an(self.a(x)))))
        return F.relu(y + (x if self.down is None else self.down(x)))


class Residual(nn.Layer):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2D(3, 8, 3, padding=1), nn.ReLU())
        self.one, self.two, self.three = Block(8), Block(8, down=True), Block(8)
        self.last = nn.Conv2D(8, 4, 1)

    def forward(self, x):
        return self.last(self.three(self.two(self.one(self.stem(x)))))


def test_a_residual_sum_reads_the_tensor_that_the_convolution_reads():
    _, net = calibrated(Residual())
    roles = {
        name: layer.input_role
        for name, layer in net.named_sublayers()
        if hasattr(layer, "quant_name")
    }
    given = {name for name, role in roles.items() if role is InputRole.GIVEN}
    # The input of one and of three; that of two is read by two convolutions and no sum.
    assert given == {"one.a", "three.a"}
    assert roles["two.a"] is InputRole.QUANTIZES and roles["two.down"] is InputRole.FOLLOWS
    assert net.two.down._act_quant is net.two.a._act_quant

    seen = {}
    net.one.register_forward_pre_hook(lambda layer, args: seen.update(x=args[0].numpy()))
    net(paddle.to_tensor(images()))
    scale = net.one.a._act_quant.scale_numpy()[0]
    codes = seen["x"] / scale * 255
    np.testing.assert_allclose(codes, np.rint(codes), atol=1e-3)
    assert codes.max() == pytest.approx(255, abs=1e-3) and len(np.unique(np.rint(codes))) > 64


class Branch(nn.Layer):
    """Two layers read one tensor, the first of them in a branch that is not always taken."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2D(3, 8, 3, padding=1)
        self.sometimes, self.always = nn.Conv2D(8, 8, 1), nn.Conv2D(8, 8, 1)

    def forward(self, x):
        x = F.relu(self.stem(x))
        y = x * 1.0
        if x.mean() > 1e6:
            y = self.sometimes(x)
        return self.always(x) + y


def test_what_a_branch_reads_has_a_quantizer_of_its_own():
    _, net = calibrated(Branch())
    assert net.always._act_quant is not net.sometimes._act_quant
    assert net.always.input_role is InputRole.QUANTIZES and net.always._act_quant.has_scale()


def reference(net: Residual, x: np.ndarray) -> np.ndarray:
    """Block `one` with a linear tail, in NumPy: quantized where oneDNN has integers."""

    def quantized(value, layer, low, high):
        scale = np.float64(layer._act_quant.scale_numpy()[0])
        return np.clip(np.rint(value * high / scale), low, high) * scale / high

    def convolved(value, layer):
        weight = layer.weight.numpy().astype(np.float64)
        top = np.abs(weight).max(axis=(1, 2, 3), keepdims=True)
        weight = np.rint(weight / top * 127) * top / 127
        pad = weight.shape[-1] // 2
        value = np.pad(value, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
        windows = np.lib.stride_tricks.sliding_window_view(value, weight.shape[2:], axis=(2, 3))
        out = np.einsum("nchwij,ocij->nohw", windows, weight)
        return out + layer.bias.numpy().reshape([1, -1, 1, 1])

    def normed(value, norm):
        gain = norm.weight.numpy() / np.sqrt(norm._variance.numpy() + norm._epsilon)
        shift = norm.bias.numpy() - norm._mean.numpy() * gain
        return value * gain.reshape([1, -1, 1, 1]) + shift.reshape([1, -1, 1, 1])

    stem, one = net.stem[0], net.one
    x = np.maximum(convolved(quantized(x.astype(np.float64), stem, -128, 127), stem), 0)
    x = quantized(x, one.a, 0, 255)
    y = np.maximum(normed(convolved(x, one.a), one.an), 0)
    y = normed(convolved(quantized(y, one.b, 0, 255), one.b), one.bn)
    return np.maximum(y + x, 0)


@pytest.mark.int8_products
def test_the_block_is_the_numpy_reference_and_so_is_the_file_on_onednn(tmp_path):
    quanter, net = calibrated(Residual())
    got = {}
    hook = net.one.register_forward_post_hook(lambda layer, args, out: got.update(one=out.numpy()))
    x = images(4, seed=3)
    logits = net(paddle.to_tensor(x)).numpy()
    hook.remove()
    expected = reference(net, x)
    # One value of a thousand may round the other way in float32.
    off = np.abs(got["one"] - expected) > 1e-4 * np.ptp(expected)
    assert off.mean() < 2e-2 and np.abs(got["one"] - expected).mean() < 1e-4 * np.ptp(expected)
    quanter.save_quantized_model(net, str(tmp_path / "net"), SPEC)
    found = Predictor(str(tmp_path / "net"), "onednn")(x)[0]
    assert np.abs(found - logits).mean() < 1e-3 * np.ptp(logits)


WEIGHTS = {
    "per-tensor": {"weight_quantize_type": "abs_max"},
    "moving": {"weight_quantize_type": "moving_average_abs_max"},
    "4-bits": {"weight_bits": 4},
    "2-bits": {"weight_bits": 2},
    "pact": {"weight_preprocess_type": "PACT", "activation_preprocess_type": "PACT"},
    "abs_max-activations": {"activation_quantize_type": "abs_max"},
}


@pytest.mark.int8_products
@pytest.mark.parametrize("config", WEIGHTS.values(), ids=WEIGHTS)
def test_every_kind_of_weight_is_what_onednn_makes_of_it(config, tmp_path):
    """Its kernels have 8 bits and a scale per output channel, so the simulation has them too."""
    quanter, net = calibrated(Residual(), **config)
    weight = net.one.a._weight_quant(net.one.a.weight).numpy()
    top = np.abs(weight).max(axis=(1, 2, 3), keepdims=True)
    codes = weight / top * 127
    np.testing.assert_allclose(codes, np.rint(codes), atol=1e-3)
    if "weight_bits" in config:
        assert len(np.unique(np.rint(codes))) <= 2 ** config["weight_bits"] - 1
    quanter.save_quantized_model(net, str(tmp_path / "net"), SPEC)
    x = images(16, seed=4)
    found, expected = Predictor(str(tmp_path / "net"), "onednn")(x)[0], net(paddle.to_tensor(x))
    assert np.abs(found - expected.numpy()).mean() < 5e-4 * np.ptp(expected.numpy())
    assert quanter.verify(net, str(tmp_path / "net"), [x]).passed


VERBOSE = """
import sys, zlib
import numpy as np
from quant import Predictor
Predictor(sys.argv[1], "onednn")(np.load(sys.argv[2]))
"""


def test_onednn_runs_every_convolution_on_integers_and_adds_residuals_inside(tmp_path):
    quanter, net = calibrated(Residual())
    quanter.save_quantized_model(net, str(tmp_path / "net"), SPEC)
    np.save(tmp_path / "x.npy", images())
    run = subprocess.run(
        [sys.executable, "-c", VERBOSE, str(tmp_path / "net"), str(tmp_path / "x.npy")],
        env={**os.environ, "ONEDNN_VERBOSE": "1", "PYTHONPATH": os.getcwd()},
        capture_output=True,
        text=True,
        check=True,
    )
    kernels = [
        line for line in run.stdout.splitlines() if ",exec," in line and ",convolution," in line
    ]
    assert len(kernels) == 9
    assert all(re.search("src[:_][us]8.* wei[:_]s8", line) for line in kernels)
    # Those of `one` and `three`; `two` adds two convolutions, in float.
    assert sum("sum" in line for line in kernels) == 2
    assert sum(bool(re.search("dst[:_]u8", line)) for line in kernels) == 6


def test_the_first_call_places_as_a_spec_does():
    quanter = QAT(TARGET)
    first, second = quanter.quantize(Residual()), quanter.quantize(Residual(), input_spec=SPEC)
    layers = [layer for layer in first.sublayers() if hasattr(layer, "quant_name")]
    assert not any(layer.is_placed for layer in layers)
    first.train()
    first(paddle.to_tensor(images()))
    assert all(layer.is_placed for layer in layers)
    for a, b in zip(first.sublayers(), second.sublayers()):
        if hasattr(a, "quant_name"):
            assert a.input_role is b.input_role and a._act_quant.grid == b._act_quant.grid


def test_the_keys_are_those_of_the_plain_simulation_and_a_checkpoint_comes_back():
    _, net = calibrated(Residual())
    plain = QAT().quantize(Residual())
    assert list(net.state_dict()) == list(plain.state_dict())
    other = QAT(TARGET).quantize(Residual())
    other.set_state_dict(net.state_dict())  # before it has ever been called
    other.eval()
    x = paddle.to_tensor(images(2, seed=9))
    np.testing.assert_array_equal(other(x).numpy(), net(x).numpy())


def test_a_copy_of_a_placed_network_has_quantizers_of_its_own():
    _, net = calibrated(Residual())
    twin = copy.deepcopy(net)
    x = paddle.to_tensor(images(2))
    before = net(x).numpy()
    np.testing.assert_array_equal(twin(x).numpy(), before)
    scale = twin.one.a._act_quant.quantizer.scale
    scale.set_value(scale * 0.25)
    assert not np.array_equal(twin(x).numpy(), before)
    np.testing.assert_array_equal(net(x).numpy(), before)


def test_training_moves_the_shared_scale_once_per_step():
    net = QAT(TARGET).quantize(Residual(), input_spec=SPEC)
    net.train()
    for step in range(3):
        net(paddle.to_tensor(images(seed=step))).mean().backward()
    rho = 0.9
    for layer in (net.one.a, net.two.a):
        assert layer._act_quant.quantizer.state.item() == pytest.approx(1 + rho + rho**2)
    assert net.one.a.weight.grad is not None and net.stem[0].weight.grad is not None


def test_the_report_holds_a_layer_whose_input_comes_quantized():
    quanter, net = calibrated(Residual())
    rows = {row["name"]: row for row in quanter.report(net, [images()])}
    plain = QAT()
    generic = plain.quantize(Residual())
    generic.set_state_dict(net.state_dict())
    generic.eval()
    before = {row["name"]: row for row in plain.report(generic, [images()])}
    assert rows["two.down"]["activation_shared_with"] == "two.a"
    assert rows["two.a"]["activation_shared_with"] is None
    assert rows["one.a"]["activation_codes"] == [0, 255]
    assert before["one.a"]["activation_codes"] == [-127, 127]
    for name in ("one.a", "two.down", "three.a"):
        # 255 steps in place of 127: 6 dB.
        assert rows[name]["input_sqnr"] == pytest.approx(before[name]["input_sqnr"] + 6.02, abs=0.7)


@pytest.mark.int8_products
def test_plain_cpu_is_shown_and_not_judged(tmp_path):
    quanter, net = calibrated(Chains())
    quanter.save_quantized_model(net, str(tmp_path / "net"), SPEC)
    verdict = quanter.verify(net, str(tmp_path / "net"), [images(seed=5)])
    assert verdict.passed and "shown, not judged" in str(verdict)
    assert verdict.to_dict()["engines"]["paddle"]["mean_abs"] > 0
    net.after_relu.bias.set_value(net.after_relu.bias + 0.5)
    assert not quanter.verify(net, str(tmp_path / "net"), [images(seed=5)]).passed


def test_a_first_call_that_tells_no_shapes_asks_for_a_spec():
    net = QAT(TARGET).quantize(Residual())
    with pytest.raises(QuantError, match="pass input_spec to quantize"):
        net(x=paddle.to_tensor(images()))


def test_fewer_activation_bits_than_the_engine_has_are_an_error():
    with pytest.raises(ConfigError, match="activation_bits=4.*'onednn'.*8-bit"):
        QAT({**TARGET, "activation_bits": 4})
