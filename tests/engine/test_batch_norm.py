import numpy as np
import paddle
import pytest
from paddle import nn

from engine.batch_norm import reestimate
from quant import QAT


class TwoNorms(nn.Layer):
    def __init__(self):
        super().__init__()
        self.first = nn.BatchNorm2D(3)
        self.drop = nn.Dropout(0.5)
        self.second = nn.BatchNorm2D(3)

    def forward(self, x):
        return self.second(self.drop(self.first(x)) ** 2)


def batches(count, size=4):
    generator = np.random.default_rng(5)
    return [generator.normal(2, 3, size=(size, 3, 6, 6)).astype(np.float32) for _ in range(count)]


def as_lists(arrays):
    return [[paddle.to_tensor(a), None] for a in arrays]


def test_statistics_become_the_plain_means_over_the_batches():
    net = TwoNorms()
    net.first._mean.set_value(np.full(3, 1e6, np.float32))
    data = batches(5)
    assert reestimate(net, as_lists(data)) == 5
    means, variances = ([f(x, axis=(0, 2, 3)) for x in data] for f in (np.mean, np.var))
    np.testing.assert_allclose(net.first._mean.numpy(), np.mean(means, axis=0), rtol=1e-5)
    np.testing.assert_allclose(net.first._variance.numpy(), np.mean(variances, axis=0), rtol=1e-5)
    # What the second sees was normalized with the batch, and nothing was dropped.
    seen = []
    for x, mean, variance in zip(data, means, variances):
        shape = (1, 3, 1, 1)
        seen.append((x - mean.reshape(shape)) ** 2 / (variance.reshape(shape) + 1e-5))
    expected = np.mean([x.mean(axis=(0, 2, 3)) for x in seen], axis=0)
    np.testing.assert_allclose(net.second._mean.numpy(), expected, rtol=1e-4)


def test_everything_else_stays_as_it_was(dropout_net):
    quanter = QAT()
    net = quanter.quantize(dropout_net())
    data = [np.random.default_rng(i).normal(size=(4, 1, 28, 28)) for i in range(3)]
    quanter.calibrate(net, data)
    quanter.freeze(net)
    net.train()
    before = {name: value.numpy() for name, value in net.state_dict().items()}
    modes = [layer.training for layer in net.sublayers()]
    attributes = (net.body[1]._momentum, net.body[1]._use_global_stats)
    assert reestimate(net, as_lists([d.astype(np.float32) for d in data])) == 3
    assert [layer.training for layer in net.sublayers()] == modes
    assert (net.body[1]._momentum, net.body[1]._use_global_stats) == attributes == (0.9, True)
    changed = {
        name
        for name, value in net.state_dict().items()
        if not np.array_equal(value.numpy(), before[name])
    }
    assert changed == {"body.1._mean", "body.1._variance"}


@pytest.mark.parametrize("net", [nn.Linear(3, 3), TwoNorms()])
def test_nothing_to_measure_changes_nothing(net):
    before = {name: value.numpy() for name, value in net.state_dict().items()}
    given = as_lists(batches(2)) if isinstance(net, nn.Linear) else []
    assert reestimate(net, given) == 0
    for name, value in net.state_dict().items():
        np.testing.assert_array_equal(value.numpy(), before[name])
