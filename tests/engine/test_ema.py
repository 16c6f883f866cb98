import numpy as np
import paddle
import pytest

from engine.checkpoint import CheckpointFolder, Progress, load_latest, load_network_state
from engine.ema import AveragedWeights, LastWeights, follow
from engine.optimizer import build_optimizer
from engine.schedule import build_schedule
from quant import QAT


def values(net):
    return {name: value.numpy().copy() for name, value in net.state_dict().items()}


def change(net, seed):
    """Other weights, and other statistics and scales by a pass in training mode."""
    generator = np.random.default_rng(seed)
    for parameter in net.parameters():
        parameter.set_value(generator.normal(size=parameter.shape).astype(np.float32))
    net.train()
    net(paddle.to_tensor(generator.normal(size=(4, 1, 28, 28)).astype(np.float32)))


@pytest.fixture
def quantized(dropout_net):
    net = QAT({"activation_preprocess_type": "PACT"}).quantize(dropout_net())
    change(net, 0)
    return net


def test_the_average_follows_the_formula_with_its_ramp(quantized):
    average = AveragedWeights(quantized, decay=0.3)
    expected = values(quantized)
    moving = [n for n in expected if "_act_quant.quantizer" not in n]
    assert any(n.endswith("alpha") for n in moving) and any(n.endswith("_mean") for n in moving)
    for t in range(5):  # the ramp ends at t = 3: (1 + 3) / (10 + 3) > 0.3
        change(quantized, t + 1)
        average.update(t)
        d = min(0.3, (1 + t) / (10 + t))
        now = values(quantized)
        for name in expected:
            mixed = d * expected[name].astype(np.float64) + (1 - d) * now[name]
            expected[name] = mixed if name in moving else now[name]
    for name, value in values(average.net).items():
        np.testing.assert_allclose(value, expected[name], rtol=1e-5, atol=1e-6, err_msg=name)
        same = np.array_equal(value, values(quantized)[name])
        assert same != (name in moving), name


def test_averaging_leaves_the_trained_network_as_it_is_and_has_no_gradient(quantized):
    trained = {name for name, p in quantized.named_parameters() if not p.stop_gradient}
    before = values(quantized)
    average = AveragedWeights(quantized, decay=0.9)
    average.update(3)
    for name, value in values(quantized).items():
        np.testing.assert_array_equal(value, before[name], err_msg=name)
    assert all(p.stop_gradient for p in average.net.parameters())
    after = {name for name, p in quantized.named_parameters() if not p.stop_gradient}
    assert after == trained and any(name.endswith("alpha") for name in trained)


def test_without_a_decay_the_network_itself_is_evaluated(dropout_net):
    net = dropout_net()
    weights = follow(net, 0.0)
    assert type(weights) is LastWeights and weights.net is net and not weights.state()
    assert isinstance(follow(net, 0.5), AveragedWeights)


def test_a_checkpoint_brings_the_average_back_and_keeps_it_apart(tmp_path, quantized, dropout_net):
    average = AveragedWeights(quantized, decay=0.9)
    change(quantized, 7)
    average.update(0)
    optimizer = build_optimizer(quantized, build_schedule("cosine_decay", 0.1, 4, 2, []), 0.9, 0.0)
    folder = CheckpointFolder(tmp_path)
    folder.save_latest(quantized, optimizer, Progress(), average.state())
    latest = load_latest(folder.latest_path)
    other = QAT({"activation_preprocess_type": "PACT"}).quantize(dropout_net(seed=9))
    again = follow(other, 0.9)
    again.restore(latest)
    for name, value in values(average.net).items():
        np.testing.assert_array_equal(values(again.net)[name], value, err_msg=name)
    assert set(latest.weights) == set(latest.average) == set(quantized.state_dict())
    for name, value in load_network_state(folder.latest_path).items():
        np.testing.assert_array_equal(value, values(quantized)[name], err_msg=name)


def test_a_layer_that_is_used_twice_is_averaged_like_any_other():
    class Tied(paddle.nn.Layer):
        def __init__(self):
            super().__init__()
            self.first = paddle.nn.Linear(3, 3)
            self.second = self.first

    net = Tied()
    weights = follow(net, 0.9)
    start = net.first.weight.numpy().copy()
    net.first.weight.set_value(start + 10.0)
    weights.update(0)  # decay (1 + 0) / (10 + 0)
    np.testing.assert_allclose(weights.net.second.weight.numpy(), start + 9.0, rtol=1e-6)
    assert weights.net.first.weight is weights.net.second.weight
