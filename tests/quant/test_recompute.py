"""A convolution that keeps its input as it was gives the bits of one that keeps the codes."""

from __future__ import annotations

import gc

import numpy as np
import paddle
import pytest
from paddle import nn
from paddle.nn import functional as F

from quant import QAT, compat, native, recompute, recomputing_inputs
from quant.functional import FakeQuantization, fake_quant
from quant.grid import symmetric, unsigned

# Paddle 2.6 has them in the library that is built on first use.
HAS_GRADIENTS = compat.has_conv2d_gradients() or native.runs_on(paddle.ones([1]))
needs_gradients = pytest.mark.skipif(
    not HAS_GRADIENTS, reason="there is no way to a convolution's gradient"
)


def array(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def leaf(value: np.ndarray) -> paddle.Tensor:
    return paddle.to_tensor(value, stop_gradient=False)


CONVOLUTIONS = {
    "3x3": (1, 1, 1, 1, "NCHW"),
    "strided": ([2, 1], [1, 0], 1, 1, "NCHW"),
    "dilated": (1, 2, [2, 2], 1, "NCHW"),
    "uneven padding": (2, [1, 0, 2, 1], 1, 1, "NCHW"),
    "same": (2, "SAME", 1, 1, "NCHW"),
    "valid": (1, "VALID", 1, 1, "NCHW"),
    "grouped": (1, 1, 1, 2, "NCHW"),
    "depthwise": (2, 1, 1, 4, "NCHW"),
    "channels last": (1, 1, 1, 1, "NHWC"),
    "padding in pairs": (1, [[0, 0], [0, 0], [1, 1], [2, 0]], 1, 1, "NCHW"),
}


@needs_gradients
@pytest.mark.parametrize("clips", [False, True])
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_values_and_gradients_are_the_same_bits(name, clips):
    settings = CONVOLUTIONS[name]
    groups, last = settings[3], settings[4] == "NHWC"
    image = array(2, 9, 8, 4) if last else array(2, 4, 9, 8)
    found = []
    for function in (recompute.conv2d, None):
        x, weight = leaf(image), leaf(array(8, 4 // groups, 3, 3, seed=1))
        alpha = leaf(np.float32([1.2])) if clips else None
        how = FakeQuantization(paddle.to_tensor(np.float32([1.1])), symmetric(8), alpha)
        y = x.exp() * 0.3  # not a leaf, as in a network
        if function is None:
            out = F.conv2d(fake_quant(y, *how), weight, None, *settings)
        else:
            out = function(y, how, weight, *settings)
        (out * paddle.to_tensor(array(*out.shape, seed=2))).sum().backward()
        leaves = [x, weight, *([alpha] if clips else [])]
        found.append([out.numpy(), *(tensor.grad.numpy() for tensor in leaves)])
    for ours, wanted in zip(*found):
        assert np.abs(wanted).max() > 0
        np.testing.assert_array_equal(ours, wanted)


class Net(nn.Layer):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2D(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2D(8)
        self.depthwise = nn.Conv2D(8, 8, 3, padding=1, groups=8, bias_attr=False)
        self.point = nn.Conv2D(8, 16, 1)
        self.again = nn.Conv2D(16, 16, 3, padding=1)
        self.fc = nn.Linear(16, 4)

    def forward(self, x):
        x = F.relu(self.norm(self.stem(x)))
        x = F.hardswish(self.point(F.relu6(self.depthwise(x))))
        x = self.again(F.relu(self.again(x))) + x
        return self.fc(x.mean([2, 3]))


def weights_after_training(config: dict, steps: int = 4) -> dict[str, np.ndarray]:
    paddle.seed(0)
    net = Net()
    QAT(config).quantize(net)
    optimizer = paddle.optimizer.Momentum(0.05, parameters=net.parameters())
    for step in range(steps):
        with recomputing_inputs():
            loss = net(paddle.to_tensor(array(4, 3, 12, 12, seed=step))).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.clear_grad()
    return {name: value.numpy() for name, value in net.state_dict().items()}


@needs_gradients
@pytest.mark.parametrize(
    "config",
    [
        {},
        {"activation_preprocess_type": "PACT", "pact_init": "calibrated"},
        {"weight_preprocess_type": "PACT", "activation_quantize_type": "abs_max"},
        {"deploy_target": "onednn"},
        {"deploy_target": "onnxruntime"},
    ],
    ids=str,
)
def test_a_network_trains_to_the_same_bits(config, monkeypatch):
    calls = []
    conv2d = recompute.conv2d
    monkeypatch.setattr(recompute, "conv2d", lambda *a: calls.append(1) or conv2d(*a))
    ours = weights_after_training(config)
    assert calls
    monkeypatch.setattr(recompute, "can_recompute", lambda x, weight: False)
    count = len(calls)
    wanted = weights_after_training(config)
    assert len(calls) == count
    for name, value in wanted.items():
        np.testing.assert_array_equal(ours[name], value, err_msg=name)


@needs_gradients
def test_a_change_in_place_is_refused_in_the_backward_pass():
    x = leaf(array(1, 4, 6, 6)) * 1.0
    how = FakeQuantization(paddle.to_tensor(np.float32([2.0])), unsigned(8))
    out = recompute.conv2d(x, how, leaf(array(4, 4, 3, 3)), 1, 1, 1, 1, "NCHW")
    x.add_(paddle.ones_like(x))
    with pytest.raises(Exception, match="changed in place"):
        out.sum().backward()


@needs_gradients
def test_what_needs_no_gradient_gets_none():
    image, weight = paddle.to_tensor(array(1, 4, 6, 6)), leaf(array(4, 4, 3, 3))
    how = FakeQuantization(paddle.to_tensor(np.float32([2.0])), symmetric(8))
    recompute.conv2d(image, how, weight, 1, 1, 1, 1, "NCHW").sum().backward()
    assert image.grad is None and weight.grad is not None
    x = leaf(array(1, 4, 6, 6))
    recompute.conv2d(x, how, weight.detach(), 1, 1, 1, 1, "NCHW").sum().backward()
    assert x.grad is not None


def test_only_a_loop_that_asks_for_it_gets_it(monkeypatch):
    net = Net()
    QAT({}).quantize(net)
    calls = []
    conv2d = recompute.conv2d
    monkeypatch.setattr(recompute, "conv2d", lambda *a: calls.append(1) or conv2d(*a))
    image = leaf(array(2, 3, 12, 12))
    (gradient,) = paddle.grad(net(image).sum(), [image])
    assert np.abs(gradient.numpy()).max() > 0 and not calls
    with recomputing_inputs():
        net(image).sum().backward()
        with paddle.no_grad():
            net(image)
    assert len(calls) == (5 if HAS_GRADIENTS else 0)
    assert image.grad is not None


@needs_gradients
def test_the_quantized_copy_is_not_kept():
    def held() -> int:
        gc.collect()
        return sum(
            value.numel().item()
            for value in gc.get_objects()
            if isinstance(value, paddle.Tensor) and value.shape == [2, 4, 32, 32]
        )

    how = FakeQuantization(paddle.to_tensor(np.float32([2.0])), symmetric(8))
    x, weight = leaf(array(2, 4, 32, 32)), leaf(array(8, 4, 3, 3))
    before = held()
    out = recompute.conv2d(x, how, weight, 1, 1, 1, 1, "NCHW")
    assert held() == before
    out.sum().backward()
