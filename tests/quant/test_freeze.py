from __future__ import annotations

import numpy as np
import paddle
import pytest
from paddle import nn

from quant import QAT, QuantError


def trained(config=None) -> nn.Layer:
    net = nn.Sequential(
        nn.Conv2D(3, 4, 1), nn.BatchNorm2D(4), nn.ReLU(), nn.Conv2D(4, 4, 1), nn.BatchNorm2D(4),
        nn.Flatten(), nn.Linear(16, 8), nn.BatchNorm1D(8), nn.Linear(8, 2),
    )  # fmt: skip
    QAT(config).quantize(net)
    step(net, 0)
    return net


def image(seed: int) -> paddle.Tensor:
    x = np.random.default_rng(seed).normal(size=(8, 3, 2, 2)) * (1 + seed)
    return paddle.to_tensor(x.astype(np.float32))


def step(net, seed: int) -> None:
    optimizer = paddle.optimizer.SGD(0.01, parameters=net.parameters())
    net.train()
    net(image(seed)).square().mean().backward()
    optimizer.step()
    optimizer.clear_grad()


def statistics(net) -> dict[str, np.ndarray]:
    return {
        name: value.numpy().copy()
        for name, value in net.state_dict().items()
        if "_quant." in name or name.endswith(("_mean", "_variance"))
    }


@pytest.mark.parametrize("kind", ["moving_average_abs_max", "abs_max"])
def test_scales_and_statistics_stand_still_through_train_and_eval(kind):
    net = trained({"activation_quantize_type": kind})
    moved = statistics(net)
    step(net, 1)
    assert any(not np.array_equal(moved[k], v) for k, v in statistics(net).items() if "scale" in k)
    assert any(not np.array_equal(moved[k], v) for k, v in statistics(net).items() if "_mean" in k)
    QAT().freeze(net)
    before = statistics(net)
    for seed in (2, 3):
        step(net, seed)
        net.eval()
        net(image(9))
        net.train()
    after = statistics(net)
    assert after.keys() == before.keys()
    for name in before:
        np.testing.assert_array_equal(after[name], before[name], err_msg=name)


def test_weights_gamma_and_beta_still_learn():
    net = trained()
    QAT().freeze(net)
    before = {name: p.numpy().copy() for name, p in net.named_parameters()}
    step(net, 1)
    for name, parameter in net.named_parameters():
        if parameter.stop_gradient:  # the statistics of BatchNorm
            continue
        assert np.abs(parameter.numpy() - before[name]).max() > 0, name


@pytest.mark.parametrize("kind", ["moving_average_abs_max", "abs_max"])
def test_training_computes_what_evaluation_computes(kind):
    net = trained({"activation_quantize_type": kind})
    QAT().freeze(net)
    net.train()
    in_training = net(image(4)).numpy()
    net.eval()
    np.testing.assert_allclose(in_training, net(image(4)), rtol=1e-5, atol=1e-6)


def test_moving_average_weight_scales_stand_still_too():
    net = trained({"weight_quantize_type": "moving_average_abs_max"})
    QAT().freeze(net)
    before = net[0]._weight_quant.quantizer.scale.item()
    net[0].weight.set_value(net[0].weight * 3)
    step(net, 1)
    assert net[0]._weight_quant.quantizer.scale.item() == before


def test_a_frozen_network_can_be_exported_and_verified(tmp_path):
    net = trained()
    quanter = QAT()
    quanter.freeze(net)
    step(net, 1)
    spec = [paddle.static.InputSpec([None, 3, 2, 2], "float32")]
    quanter.save_quantized_model(net, str(tmp_path / "net"), spec)
    assert quanter.verify(net, str(tmp_path / "net"), [image(5), image(6)]).passed


def test_a_float_network_is_an_error():
    with pytest.raises(QuantError, match=r"call quantize\(net\) first"):
        QAT().freeze(nn.Linear(2, 2))
