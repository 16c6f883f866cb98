from __future__ import annotations

import numpy as np
import paddle
import pytest
from paddle import nn

from quant import QAT, ConfigError, QuantError
from quant.functional import pact
from quant.pact import SMALLEST_ALPHA, Pact, floor_alphas
from quant.paddle_format import read_program


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


CALIBRATED = {"activation_preprocess_type": "PACT", "pact_init": "calibrated"}


def two_layers() -> nn.Sequential:
    return nn.Sequential(nn.Conv2D(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))


def images(seed: int, n: int = 16) -> np.ndarray:
    """Normal values with a few far outliers."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 2, 6, 6))
    x.reshape([-1])[:5] *= 20
    return x.astype(np.float32)


def alphas(net: nn.Layer, part: str = "_act_quant") -> list[float]:
    return [getattr(net[i], part).preprocess.alpha.item() for i in (0, 3)]


def mean_squared_error(x: np.ndarray, clip: float, r: int) -> float:
    return float(np.mean((np.clip(np.rint(x / clip * r), -r, r) * clip / r - x) ** 2))


@pytest.mark.parametrize("bits", [4, 8])
def test_a_calibrated_alpha_is_where_the_layers_input_is_best_clipped(bits):
    net = two_layers()
    batches = [images(seed) for seed in range(3)]
    first = np.concatenate(batches)
    net.eval()
    second = np.concatenate([net[:3](paddle.to_tensor(x)).numpy() for x in batches])
    quanter = QAT({**CALIBRATED, "activation_bits": bits})
    quanter.calibrate(quanter.quantize(net), batches)
    r = 2 ** (bits - 1) - 1
    for x, alpha in zip((first, second), alphas(net)):
        largest = np.abs(x).max()
        best = min(mean_squared_error(x, c, r) for c in np.linspace(largest / 500, largest, 500))
        assert 0.01 < alpha <= largest * (1 + 1e-6)
        assert mean_squared_error(x, alpha, r) <= 1.05 * best
    assert alphas(net)[0] < np.abs(first).max()


def test_the_reference_start_is_not_changed_by_calibration():
    quanter = QAT({"activation_preprocess_type": "PACT"})
    net = quanter.quantize(two_layers())
    quanter.calibrate(net, [images(0)])
    assert alphas(net) == [100.0, 100.0]


def test_a_calibrated_alpha_has_the_learning_rate_of_the_weights_and_its_own_decay():
    net = QAT(CALIBRATED).quantize(two_layers())
    alpha = net[0]._act_quant.preprocess.alpha
    assert alpha.optimize_attr["learning_rate"] == 1.0
    assert not alpha.stop_gradient
    assert sorted(two_layers().state_dict()) == sorted(
        name for name in net.state_dict() if "_quant." not in name
    )


@pytest.mark.parametrize("init", ["reference", "calibrated"])
@pytest.mark.parametrize("own, used", [(None, None), (0.0, 0.0), (0.02, 0.02)])
def test_decay_of_alpha_is_its_own_or_else_that_of_the_start(init, own, used):
    """One step without any gradient of a loss: alpha - lr * factor * decay * alpha."""
    quanter = QAT({**CALIBRATED, "pact_init": init, "pact_l2_decay": own})
    net = quanter.quantize(nn.Sequential(nn.Linear(4, 4)))
    x = np.linspace(-1, 1, 16, dtype=np.float32).reshape([4, 4])
    alpha = net[0]._act_quant.preprocess.alpha
    alpha.set_value(np.array([8.0], np.float32))
    net(paddle.to_tensor(x)).sum().backward()
    paddle.optimizer.Momentum(
        1e-3, 0.9, parameters=net.parameters(), weight_decay=paddle.regularizer.L2Decay(0.05)
    ).step()
    factor = {"reference": 1000.0, "calibrated": 1.0}[init]
    decay = {"reference": 0.05, "calibrated": 1e-4}[init] if used is None else used
    np.testing.assert_allclose(alpha.item(), 8.0 - 1e-3 * factor * decay * 8.0, rtol=1e-6)


def test_the_learning_rate_of_alpha_can_be_chosen():
    config = {"weight_preprocess_type": "PACT", "pact_lr_factor": 7}
    for init in ("reference", "calibrated"):
        net = QAT({**config, **CALIBRATED, "pact_init": init}).quantize(two_layers())
        for part in (net[0]._act_quant, net[3]._weight_quant):
            assert part.preprocess.alpha.optimize_attr["learning_rate"] == 7


@pytest.mark.parametrize(
    "config, words",
    [
        ({"pact_init": "calibratd"}, ["pact_init", "'calibratd'", "did you mean 'calibrated'"]),
        ({"pact_lr_factor": 0}, ["pact_lr_factor=0", "above 0"]),
        ({"pact_lr_factor": float("nan")}, ["pact_lr_factor=nan", "above 0"]),
        ({"pact_l2_decay": -1e-4}, ["pact_l2_decay=-0.0001", "0 or more"]),
        ({"pact_l2_decay": "1e-4"}, ["pact_l2_decay='1e-4'", "a number"]),
        ({"pact_l2_decay": True}, ["pact_l2_decay=True", "a number"]),
    ],
)
def test_a_wrong_key_of_pact_is_refused(config, words):
    with pytest.raises(ConfigError) as caught:
        QAT(config)
    assert all(word in str(caught.value) for word in words)


def ten_steps(net: nn.Layer) -> None:
    """As train.py does it: momentum SGD with an L2 penalty."""
    optimizer = paddle.optimizer.Momentum(
        0.01, 0.9, parameters=net.parameters(), weight_decay=paddle.regularizer.L2Decay(3e-5)
    )
    net.train()
    labels = paddle.to_tensor(np.arange(16) % 3)
    for seed in range(10):
        logits = net(paddle.to_tensor(images(seed)))
        paddle.nn.functional.cross_entropy(logits, labels).backward()
        optimizer.step()
        optimizer.clear_grad()


@pytest.mark.parametrize("init", ["reference", "calibrated"])
def test_alpha_moves_in_ten_steps_and_print_shows_it(init):
    quanter = QAT({**CALIBRATED, "pact_init": init})
    net = quanter.quantize(two_layers())
    quanter.calibrate(net, [images(s) for s in range(2)])
    before = alphas(net)
    ten_steps(net)
    for index, start, now in zip((0, 3), before, alphas(net)):
        assert abs(now - start) > 1e-5 * start
        assert f"Pact(alpha={now:.4g})" in str(net[index])
    if init == "reference":  # nothing reaches 100, so it is the penalty that moves alpha
        assert all(now < 100 for now in alphas(net))


def test_a_calibrated_alpha_moves_by_the_gradient_of_the_loss_alone():
    quanter = QAT({**CALIBRATED, "pact_l2_decay": 0, "activation_bits": 4})
    net = quanter.quantize(two_layers())
    quanter.calibrate(net, [images(0)])
    before = alphas(net)
    ten_steps(net)
    assert all(abs(now - start) > 1e-4 * start for start, now in zip(before, alphas(net)))


def test_before_it_is_set_alpha_clips_nothing_and_print_says_so():
    net = QAT(CALIBRATED).quantize(two_layers())
    assert "Pact(alpha=not set)" in str(net)
    layer = net[0]._act_quant.preprocess
    layer.eval()
    x = paddle.to_tensor(images(0))
    np.testing.assert_array_equal(layer(x).numpy(), x.numpy())


def test_without_calibration_the_first_training_batch_sets_alpha():
    net = QAT(CALIBRATED).quantize(two_layers())
    net.train()
    x = images(0)
    net(paddle.to_tensor(x))
    other = two_layers()
    other.set_state_dict({k: v for k, v in net.state_dict().items() if "_quant." not in k})
    QAT(CALIBRATED).quantize(other)
    QAT(CALIBRATED).calibrate(other, [x])
    # The first layer sees the same; the second sees what the quantized first one gives.
    np.testing.assert_allclose(alphas(net)[0], alphas(other)[0], rtol=1e-6)
    np.testing.assert_allclose(alphas(net)[1], alphas(other)[1], rtol=0.05)
    first = alphas(net)
    net(paddle.to_tensor(x * 50))
    assert alphas(net) == first


def test_a_batch_of_zeros_sets_no_alpha_and_the_next_one_does():
    net = QAT(CALIBRATED).quantize(nn.Sequential(nn.Linear(4, 2)))
    layer = net[0]._act_quant.preprocess
    layer.train()
    layer(paddle.zeros([3, 4]))
    assert layer.alpha.item() == 0
    layer(paddle.ones([3, 4]))
    np.testing.assert_allclose(layer.alpha.item(), 1.0, rtol=1e-3)


def test_the_alpha_of_a_weight_starts_at_its_largest_magnitude():
    config = {"weight_preprocess_type": "PACT", "pact_init": "calibrated"}
    net = two_layers()
    expected = [np.abs(net[i].weight.numpy()).max() for i in (0, 3)]
    quanter = QAT(config)
    quanter.quantize(net)
    quanter.calibrate(net, [images(0)])
    np.testing.assert_allclose(alphas(net, "_weight_quant"), expected, rtol=1e-6)
    assert net[0]._act_quant.preprocess is None


def test_a_checkpoint_carries_alpha_and_training_goes_on_from_it():
    quanter = QAT(CALIBRATED)
    net = quanter.quantize(two_layers())
    quanter.calibrate(net, [images(0)])
    ten_steps(net)
    other = QAT(CALIBRATED).quantize(two_layers())
    missing, unexpected = other.set_state_dict(net.state_dict())
    assert not missing and not unexpected
    other.train()
    other(paddle.to_tensor(images(1) * 100))
    assert alphas(other) == alphas(net)


def test_a_class_of_the_users_own_takes_the_place_of_pact():
    class Halve(nn.Layer):
        def forward(self, x):
            return x * 0.5

    quanter = QAT(CALIBRATED, act_preprocess=Halve)
    net = quanter.quantize(two_layers())
    quanter.calibrate(net, [images(0)])
    assert isinstance(net[0]._act_quant.preprocess, Halve)


def test_infinity_in_calibration_is_reported_with_the_layer_and_changes_nothing():
    quanter = QAT(CALIBRATED)
    net = quanter.quantize(two_layers())
    quanter.calibrate(net, [images(0)])
    before = alphas(net), net[0]._act_quant.scale_numpy().item()
    bad = images(1)
    bad[0, 0, 0, 0] = np.inf
    with pytest.raises(QuantError, match="layer 0: .*NaN or infinity"):
        quanter.calibrate(net, [images(2), bad])
    assert (alphas(net), net[0]._act_quant.scale_numpy().item()) == before


def test_frozen_alphas_stand_still_and_weights_go_on():
    quanter = QAT({**CALIBRATED, "weight_preprocess_type": "PACT"})
    net = quanter.quantize(two_layers())
    quanter.calibrate(net, [images(0)])
    ten_steps(net)
    quanter.freeze(net)
    before = alphas(net), alphas(net, "_weight_quant")
    weight = net[0].weight.numpy().copy()
    ten_steps(net)
    assert (alphas(net), alphas(net, "_weight_quant")) == before
    assert np.abs(net[0].weight.numpy() - weight).max() > 0


def export(quanter: QAT, net: nn.Layer, prefix: str) -> list[str]:
    """Exports, verifies, and returns the types of the file's operators."""
    net.eval()
    spec = [paddle.static.InputSpec([None, 2, 6, 6], "float32")]
    quanter.save_quantized_model(net, prefix, spec)
    verdict = quanter.verify(net, prefix, [images(seed) for seed in range(4)])
    assert verdict.passed, str(verdict)
    return [op.type for op in read_program(prefix).blocks[0].ops]


@pytest.mark.parametrize("init", ["reference", "calibrated"])
def test_after_a_step_past_zero_alpha_is_floored_everywhere(init, tmp_path):
    quanter = QAT({**CALIBRATED, "pact_init": init})
    net = quanter.quantize(two_layers())
    quanter.calibrate(net, [images(0)])
    x = images(1)
    for index in (0, 3):
        net[index]._act_quant.preprocess.alpha.set_value(np.array([0.5], np.float32))
    net.train()
    loss = net(paddle.to_tensor(x)).sum() * 1e6
    loss.backward()
    pact_layer = net[0]._act_quant.preprocess
    sign = np.sign(pact_layer.alpha.grad.item())
    paddle.optimizer.SGD(1.0 * float(sign), parameters=[pact_layer.alpha]).step()
    assert pact_layer.alpha.item() < -1
    # Evaluation, report and export see the floor though no training forward came in between.
    net.eval()
    y = net[0]._act_quant(paddle.to_tensor(x)).numpy()
    np.testing.assert_allclose(np.abs(y).max(), SMALLEST_ALPHA, rtol=1e-6)
    assert net[0]._act_quant.scale_numpy().tolist() == [np.float32(SMALLEST_ALPHA)]
    rows = quanter.report(net, [x])
    assert rows[0]["activation_scale"] == np.float32(SMALLEST_ALPHA)
    export(quanter, net, str(tmp_path / "net"))
    # In training the floor clips as well, and the gradient still reaches the parameter.
    net.train()
    pact_layer.alpha.clear_grad()
    y = pact_layer(paddle.to_tensor(x))
    rounding = np.finfo(np.float32).eps * np.abs(x).max()  # of x - relu(x - alpha)
    np.testing.assert_allclose(np.abs(y.numpy()).max(), SMALLEST_ALPHA, atol=rounding)
    y.abs().sum().backward()
    np.testing.assert_allclose(pact_layer.alpha.grad.item(), (np.abs(x) > SMALLEST_ALPHA).sum())
    floor_alphas(net)
    assert pact_layer.alpha.item() == np.float32(SMALLEST_ALPHA)


def test_an_alpha_that_is_not_set_is_not_floored():
    net = QAT(CALIBRATED).quantize(two_layers())
    floor_alphas(net)
    assert alphas(net) == [0.0, 0.0]


@pytest.mark.parametrize("factor", [0.3, 3.0])
def test_the_file_is_the_network_with_alpha_below_and_above_the_range(factor, tmp_path):
    """No operator of PACT is left: a plain network's file has the very same operators."""
    plain = QAT()
    net = plain.quantize(two_layers())
    plain.calibrate(net, [images(seed) for seed in range(4)])
    wanted = export(plain, net, str(tmp_path / "plain"))
    config = {**CALIBRATED, "weight_preprocess_type": "PACT"}
    quanter = QAT(config)
    net = quanter.quantize(two_layers())
    quanter.calibrate(net, [images(seed) for seed in range(4)])
    for index in (0, 3):
        for part in (net[index]._act_quant, net[index]._weight_quant):
            alpha = part.preprocess.alpha
            alpha.set_value(alpha * factor)
    found = export(quanter, net, str(tmp_path / "pact"))
    assert found == wanted
    observed = net[0]._act_quant.quantizer.scale_numpy()
    used, alpha = net[0]._act_quant.scale_numpy(), alphas(net)[0]
    np.testing.assert_allclose(used, [min(observed.item(), alpha)], rtol=1e-6)


def test_processes_that_see_other_data_agree_on_the_largest_alpha(monkeypatch):
    """Stands in for a job: what other ranks found is 1.5 times our own."""
    asked = []

    def largest(value):
        asked.append(value.item())
        return value * 1.5

    alone = QAT(CALIBRATED)
    net = alone.quantize(two_layers())
    alone.calibrate(net, [images(0)])
    found = alphas(net)
    monkeypatch.setattr("quant.pact.distributed.max_over_ranks", largest)
    alone.calibrate(net, [images(0)])
    np.testing.assert_allclose(alphas(net), [1.5 * alpha for alpha in found], rtol=1e-6)
    # One question per PACT in the order of the layers, so that ranks never wait for each other.
    np.testing.assert_allclose(asked[-2:], found, rtol=1e-6)
