"""NaN and infinity: named where they begin, or left out without a trace."""

from __future__ import annotations

import re

import numpy as np
import paddle
import pytest
from paddle import nn

from engine import training
from engine.checkpoint import FP32, QAT
from engine.errors import EngineError
from engine.finite import (
    BufferCopies,
    first_nonfinite_gradient,
    first_nonfinite_layer,
    gradients_are_finite,
)
from engine.step import TrainStep
from engine.training import Stage, Trainer


class Overflowing(nn.Layer):
    """Its second block squares a large number until it is none."""

    def __init__(self, inside: bool) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.second = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
        self.inside = inside

    def forward(self, x):
        x = self.first(x)
        if self.inside:
            x = (x + 1e30) ** 2
        return self.second(x)


def filled(tensor, value) -> None:
    tensor.set_value(np.full(tensor.shape, value, "float32"))


SPOILT = {
    "weight": (lambda net, x: filled(net.first.bias, np.nan), "first.bias is not finite"),
    "input": (lambda net, x: filled(x, np.inf), "the images are not finite"),
    "layer": (lambda net, x: filled(net.first.weight, 3e38), "^first makes it of finite"),
    "between layers": (
        lambda net, x: setattr(net, "inside", True),
        "^the network's own forward makes it of finite values, before second$",
    ),
    "nothing": (lambda net, x: None, None),
}


@pytest.mark.parametrize("spoil,told", SPOILT.values(), ids=SPOILT.keys())
def test_the_place_where_it_begins_is_named(spoil, told):
    net, x = Overflowing(False), paddle.full([2, 4], 2.0)
    spoil(net, x)
    found = first_nonfinite_layer(net, x)
    assert found is None if told is None else re.search(told, found), found


def test_a_gradient_that_is_not_finite_is_named():
    net = Overflowing(False)
    x = paddle.zeros([2, 4])
    net.first.bias.set_value(np.zeros(4, "float32"))
    # sqrt has an infinite slope at 0.
    hook = net.first.register_forward_post_hook(lambda layer, inputs, output: paddle.sqrt(output))
    net(x).sum().backward()
    hook.remove()
    assert not bool(gradients_are_finite(net))
    assert first_nonfinite_gradient(net) == "the gradient of first.bias is not finite"
    net.clear_gradients()
    net(x + 1).sum().backward()
    assert bool(gradients_are_finite(net)) and first_nonfinite_gradient(net) is None


def test_large_gradients_are_finite_though_their_sum_is_not():
    net = nn.Linear(4, 1)
    net(paddle.ones([1, 4])).sum().backward()
    net.weight.grad.set_value(np.full([4, 1], 2e38, "float32"))
    assert bool(gradients_are_finite(net)) and first_nonfinite_gradient(net) is None


def test_a_pact_that_started_with_a_bad_batch_starts_again():
    from quant import QAT as Quanter

    quanter = Quanter({"activation_preprocess_type": "PACT", "pact_init": "calibrated"})
    net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    quanter.quantize(net)
    pact = net[0]._act_quant.preprocess
    copies = BufferCopies(net)
    net(paddle.full([2, 4], 3.0))
    assert pact.alpha.item() > 0
    copies.restore()
    assert pact.alpha.item() == 0
    net(paddle.full([2, 4], np.inf))  # says nothing about where to clip
    assert pact.alpha.item() == 0
    net(paddle.full([2, 4], 5.0))
    assert pact.alpha.item() > 0


def test_buffers_come_back():
    net = nn.Sequential(nn.BatchNorm1D(3))
    copies = BufferCopies(net)
    net(paddle.full([4, 3], np.nan))
    assert np.isnan(net[0]._mean.numpy()).all()
    copies.restore()
    np.testing.assert_array_equal(net[0]._mean.numpy(), np.zeros(3))


def run(session, net, stage=FP32, quanter=None) -> None:
    freeze = None if quanter is None else quanter.freeze
    Trainer(session, Stage(stage, 1, 0.05, "cosine_decay", freeze=freeze)).run(net, None)


@pytest.fixture
def spoilt_steps(monkeypatch):
    """Makes the images of some steps NaN, of which a data set has none."""

    def spoil(*steps: int) -> None:
        add = TrainStep.add
        calls = [0]

        def spoilt(self, images, labels, part):
            calls[0] += 1
            return add(self, images * (np.nan if calls[0] in steps else 1.0), labels, part)

        monkeypatch.setattr(training.TrainStep, "add", spoilt)

    return spoil


def test_a_loss_that_is_no_number_moves_no_weight(
    tmp_path, small_config, small_session, dropout_net, spoilt_steps
):
    spoilt_steps(2)
    net = dropout_net()
    with pytest.raises(EngineError, match=r"at step 2 of the fp32 stage: the images"):
        run(small_session(small_config()), net)
    assert all(np.isfinite(p.numpy()).all() for p in net.parameters())


@pytest.mark.parametrize("average", [0.0, 0.9])
def test_steps_that_may_be_left_out_leave_no_trace(
    average, tmp_path, small_config, small_session, dropout_net, spoilt_steps, read_rows, capsys
):
    from quant import QAT as Quanter

    spoilt_steps(1, 2)
    quanter = Quanter({"activation_quantize_type": "moving_average_abs_max"})
    net = quanter.quantize(dropout_net())
    before = {name: value.numpy() for name, value in net.state_dict().items()}
    session = small_session(
        small_config(max_nonfinite_steps=2, max_steps=2, log_period=1, ema_decay=average)
    )
    run(session, net, QAT, quanter)
    for name, value in net.state_dict().items():
        np.testing.assert_array_equal(value.numpy(), before[name], err_msg=name)
    assert session.progress.nonfinite_steps == 2
    warnings = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
    assert "at step 1 of the qat stage: the images are not finite" in warnings[0]
    assert "1 of 2" in warnings[0]
    assert "2 of 2 steps of the qat stage were left out" in warnings[-1]
    assert [row["split"] for row in read_rows(tmp_path)] == ["val"]


def test_the_count_is_in_the_log_and_ends_the_run(
    tmp_path, small_config, small_session, dropout_net, spoilt_steps, read_rows
):
    spoilt_steps(1, 3)
    session = small_session(small_config(max_nonfinite_steps=1, log_period=2))
    with pytest.raises(EngineError, match="step 3 .*--max_nonfinite_steps=1 were left out before"):
        run(session, dropout_net())
    (row,) = read_rows(tmp_path)
    assert row["nonfinite_steps"] == 1 and np.isfinite(row["loss"])
