from __future__ import annotations

import numpy as np
import paddle
import pytest
from paddle import nn

from quant import QAT, QuantError


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1D(6), nn.ReLU(), nn.Dropout(0.5),
                         nn.Linear(6, 3))  # fmt: skip


def batches(n: int = 3) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [(rng.normal(size=(8, 4)) * (i + 1)).astype(np.float32) for i in range(n)]


def scales(net) -> list[float]:
    return [net[i]._act_quant.scale_numpy().item() for i in (0, 4)]


def maxima(net_float, data) -> list[list[float]]:
    """Largest |input| of both layers per batch, of the float network in evaluation, in NumPy."""
    w1, b1 = net_float[0].weight, net_float[0].bias
    rows = []
    for x in data:
        norm = net_float[1]
        h = x @ w1.numpy() + b1.numpy()
        h = (h - norm._mean.numpy()) / np.sqrt(norm._variance.numpy() + norm._epsilon)
        h = np.maximum(h * norm.weight.numpy() + norm.bias.numpy(), 0)
        rows.append([np.abs(x).max(), np.abs(h).max()])
    return rows


@pytest.mark.parametrize("kind", ["moving_average_abs_max", "abs_max"])
def test_scales_are_those_of_numpy_on_the_float_network(kind):
    net = network()
    net[1]._mean.set_value(np.linspace(-1, 1, 6).astype(np.float32))
    rows = maxima(net, batches())
    quanter = QAT({"activation_quantize_type": kind})
    assert quanter.calibrate(quanter.quantize(net), batches()) == 3
    expected = []
    for column in zip(*rows):
        state = accum = 0.0
        for value in column:
            state, accum = 0.9 * state + 1, 0.9 * accum + value
        expected.append(max(column) if kind == "abs_max" else accum / state)
    np.testing.assert_allclose(scales(net), expected, rtol=1e-4)


def test_nothing_but_the_scales_changes():
    net = QAT().quantize(network())
    state = {k: v.numpy().copy() for k, v in net.state_dict().items()}
    net.train()
    net[3].eval()
    modes = [layer.training for layer in net.sublayers()]
    QAT().calibrate(net, batches())
    assert [layer.training for layer in net.sublayers()] == modes
    for key, value in net.state_dict().items():
        if "_act_quant" not in key:
            np.testing.assert_array_equal(value.numpy(), state[key])
    assert all(p.grad is None for p in net.parameters())


def test_it_starts_afresh_each_time():
    net = QAT().quantize(network())
    QAT().calibrate(net, [x * 100 for x in batches()])
    QAT().calibrate(net, batches())
    once = QAT().quantize(network())
    once.set_state_dict({k: v for k, v in net.state_dict().items() if "_act_quant" not in k})
    QAT().calibrate(once, batches())
    np.testing.assert_allclose(scales(net), scales(once), rtol=1e-6)


def test_training_goes_on_from_what_calibration_found():
    net = QAT().quantize(network())
    QAT().calibrate(net, batches(1))
    first = np.abs(batches(1)[0]).max()
    net.train()
    x = batches(2)[1]
    net(paddle.to_tensor(x))
    expected = (0.9 * first + np.abs(x).max()) / 1.9
    np.testing.assert_allclose(scales(net)[0], expected, rtol=1e-5)


@pytest.mark.parametrize("kind", ["moving_average_abs_max", "abs_max"])
def test_evaluation_quantizes_again_afterwards(kind):
    net = network()
    net.eval()
    x = paddle.to_tensor(batches()[1])
    exact = net(x).numpy()
    QAT({"activation_quantize_type": kind}).quantize(net)
    QAT().calibrate(net, [batches()[1]] * 2)
    assert 0 < np.abs(net(x).numpy() - exact).max() < 0.05 * np.ptp(exact)


def test_evaluation_after_calibration_uses_the_largest_of_all_batches():
    net = QAT({"activation_quantize_type": "abs_max"}).quantize(network())
    largest, small = batches(3)[2], batches(3)[0]
    QAT().calibrate(net, [largest, small])
    net.eval()
    first = net(paddle.to_tensor(largest)).numpy()
    np.testing.assert_array_equal(net(paddle.to_tensor(largest)), first)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda x: x,
        lambda x: paddle.to_tensor(x),
        lambda x: (x, np.zeros(8)),
        lambda x: [paddle.to_tensor(x), paddle.zeros([8])],
    ],
)
def test_a_batch_is_an_array_a_tensor_or_a_tuple_that_starts_with_one(wrap):
    net = QAT().quantize(network())
    QAT().calibrate(net, (wrap(x) for x in batches(1)))
    np.testing.assert_allclose(scales(net)[0], np.abs(batches(1)[0]).max())


def test_a_loader_of_paddle_will_do():
    x = np.concatenate(batches())
    data = paddle.io.TensorDataset([paddle.to_tensor(x), paddle.arange(24)])
    net = QAT({"activation_quantize_type": "abs_max"}).quantize(network())
    assert QAT().calibrate(net, paddle.io.DataLoader(data, batch_size=10)) == 3
    np.testing.assert_allclose(scales(net)[0], np.abs(x).max())


def test_several_inputs_come_before_the_label_or_as_a_tuple_in_its_first_place():
    class Sum(nn.Layer):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 2), nn.Linear(3, 2)

        def forward(self, x, y):
            return self.a(x) + self.b(y)

    net = QAT().quantize(Sum())
    x, y = np.full([2, 4], 3, np.float32), np.full([2, 3], -5, np.float32)
    for batch in ((x, y), (x, y, "label"), ((x, y), "label")):
        QAT().calibrate(net, [[np.ones_like(x), np.ones_like(y)]])
        assert net.a._act_quant.scale_numpy() == 1 and net.b._act_quant.scale_numpy() == 1
        QAT().calibrate(net, [batch])
        assert net.a._act_quant.scale_numpy() == 3 and net.b._act_quant.scale_numpy() == 5


def test_no_batch_is_an_error():
    net = QAT().quantize(network())
    with pytest.raises(QuantError, match="no batch"):
        QAT().calibrate(net, [])
    with pytest.raises(QuantError, match="empty tuple"):
        QAT().calibrate(net, [()])


def test_a_float_network_is_an_error():
    with pytest.raises(QuantError, match=r"call quantize\(net\) first"):
        QAT().calibrate(network(), batches())


def test_an_error_on_the_way_leaves_the_network_usable():
    net = QAT().quantize(network())
    net.train()
    with pytest.raises(ValueError, match="(?s).*"):
        QAT().calibrate(net, [batches()[0], np.zeros([2, 99], np.float32)])
    assert net.training
    x = paddle.to_tensor(batches()[2])
    net.eval()
    net(x)
    before = scales(net)
    net(x * 50)
    assert scales(net) == before


def test_the_layer_that_sees_no_numbers_is_named_whatever_its_name_is():
    class Private(nn.Layer):
        def __init__(self):
            super().__init__()
            self._first = nn.Linear(4, 4)
            self.block = nn.Sequential(("_inner", nn.Linear(4, 4)))

        def forward(self, x):
            return self.block(self._first(x) * float("inf"))

    for net, told in ((Private(), "layer block._inner "), (nn.Linear(4, 4), "the network ")):
        quanter = QAT()
        quanter.quantize(net)
        bad = np.full([2, 4], np.nan if told == "the network " else 1.0, np.float32)
        with pytest.raises(QuantError, match=f"the input of {told}holds NaN or Inf"):
            quanter.calibrate(net, [bad])
