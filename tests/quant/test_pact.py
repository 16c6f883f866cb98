from __future__ import annotations

import numpy as np
import paddle
import pytest
from paddle import nn

from quant import QAT
from quant.functional import pact
from quant.pact import Pact


def formula(x: np.ndarray, alpha: float) -> np.ndarray:
    """y = x - relu(x - alpha) + relu(-alpha - x) in float64."""
    return x - np.maximum(x - alpha, 0) + np.maximum(-alpha - x, 0)


@pytest.fixture
def values() -> np.ndarray:
    # No value lies within 0.01 of a bound, so that finite differences see one branch only.
    x = np.random.default_rng(0).normal(size=500) * 2
    return x[np.abs(np.abs(x) - 1.5) > 0.01]


def test_it_clips_on_both_sides(values):
    y = pact(paddle.to_tensor(values.astype(np.float32)), paddle.to_tensor([1.5])).numpy()
    np.testing.assert_allclose(y, np.clip(values, -1.5, 1.5), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(y, formula(values, 1.5), rtol=1e-5, atol=1e-6)


def test_gradients_are_the_finite_differences_of_the_formula(values):
    weights = np.random.default_rng(1).normal(size=values.shape)
    layer = Pact(alpha=1.5)
    x = paddle.to_tensor(values.astype(np.float32), stop_gradient=False)
    (layer(x) * paddle.to_tensor(weights.astype(np.float32))).sum().backward()
    h = 1e-4
    for_x = weights * (formula(values + h, 1.5) - formula(values - h, 1.5)) / (2 * h)
    np.testing.assert_allclose(x.grad, for_x, rtol=1e-4, atol=1e-6)
    above, below = (weights * formula(values, 1.5 + d) for d in (h, -h))
    for_alpha = (above - below).sum() / (2 * h)
    np.testing.assert_allclose(layer.alpha.grad.numpy(), [for_alpha], rtol=1e-4)


def test_alpha_starts_at_100_and_learns_a_thousand_times_faster():
    net = nn.Sequential(nn.Conv2D(3, 4, 3), nn.Flatten(), nn.Linear(4, 2))
    float_parameters = {id(p) for p in net.parameters()}
    QAT({"activation_preprocess_type": "PACT", "weight_preprocess_type": "PACT"}).quantize(net)
    alphas = [p for p in net.parameters() if id(p) not in float_parameters]
    assert len(alphas) == 4
    for alpha in alphas:
        assert alpha.numpy().tolist() == [100.0]
        assert alpha.optimize_attr["learning_rate"] == 1000.0
        assert not alpha.stop_gradient


def test_one_step_of_sgd_moves_alpha_a_thousand_times_as_far():
    net = nn.Sequential(nn.Linear(6, 4))
    QAT({"activation_preprocess_type": "PACT"}).quantize(net)
    alpha = net[0]._act_quant.preprocess.alpha
    alpha.set_value(paddle.to_tensor([0.5]))
    x = paddle.to_tensor(np.random.default_rng(2).normal(size=(8, 6)).astype(np.float32))
    net(x).sum().backward()
    before, gradient = alpha.item(), alpha.grad.item()
    assert abs(gradient) > 1e-3
    paddle.optimizer.SGD(1e-6, parameters=net.parameters()).step()
    np.testing.assert_allclose(alpha.item() - before, -1e-6 * 1000 * gradient, rtol=1e-3)


def test_a_quantized_activation_stays_within_alpha():
    net = nn.Sequential(nn.Linear(6, 6, bias_attr=False))
    QAT({"activation_preprocess_type": "PACT"}).quantize(net)
    quantizer = net[0]._act_quant
    x = np.linspace(-4, 4, 60, dtype=np.float32).reshape([10, 6])
    quantizer.train()
    quantizer(paddle.to_tensor(x))  # the moving average has seen 4.0 ...
    quantizer.preprocess.alpha.set_value(paddle.to_tensor([0.75]))
    quantizer.eval()
    y = quantizer(paddle.to_tensor(x)).numpy()  # ... and alpha is 0.75 now
    np.testing.assert_allclose([y.min(), y.max()], [-0.75, 0.75], rtol=1e-6)
    np.testing.assert_allclose(
        y, np.rint(np.clip(x, -0.75, 0.75) / 0.75 * 127) * 0.75 / 127, atol=0.75 / 127 * 1e-3
    )
    assert quantizer.scale_numpy().tolist() == [0.75]


def test_the_gradient_reaches_alpha_through_quantizer_and_convolution():
    net = nn.Sequential(nn.Conv2D(2, 3, 3))
    QAT({"activation_preprocess_type": "PACT", "weight_preprocess_type": "PACT"}).quantize(net)
    layer = net[0]
    for part, alpha in ((layer._act_quant, 0.5), (layer._weight_quant, 0.1)):
        part.preprocess.alpha.set_value(paddle.to_tensor([alpha]))
    x = np.random.default_rng(3).normal(size=(2, 2, 6, 6)).astype(np.float32)
    net(paddle.to_tensor(x)).sum().backward()
    # d(sum y)/d alpha_x: the float convolution's gradient for its input, where x is clipped.
    weight = layer._weight_quant(layer.weight).detach()
    clipped = paddle.to_tensor(np.clip(x, -0.5, 0.5), stop_gradient=False)
    paddle.nn.functional.conv2d(clipped, weight).sum().backward()
    sign = np.where(x > 0.5, 1.0, np.where(x < -0.5, -1.0, 0.0))
    expected = (clipped.grad.numpy() * sign).sum()
    np.testing.assert_allclose(
        layer._act_quant.preprocess.alpha.grad.numpy(), [expected], rtol=1e-4
    )
    assert abs(layer._weight_quant.preprocess.alpha.grad.item()) > 0
