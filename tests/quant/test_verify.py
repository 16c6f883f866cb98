from __future__ import annotations

import json

import numpy as np
import paddle
import pytest
from paddle import nn

from quant import QAT, QuantError, VerifyError, save_float_model

SPEC = [paddle.static.InputSpec([None, 3, 8, 8], "float32")]


def small() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2D(3, 16, 3), nn.BatchNorm2D(16), nn.ReLU(), nn.Conv2D(16, 16, 3), nn.ReLU(),
        nn.Flatten(), nn.Linear(16 * 4 * 4, 10),
    )  # fmt: skip


def batches(n: int = 4) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.normal(size=(16, 3, 8, 8)).astype(np.float32) for _ in range(n)]


@pytest.fixture
def exported(tmp_path):
    """A quanter, the network and the prefix of its file."""
    quanter = QAT()
    net = quanter.quantize(small())
    quanter.calibrate(net, batches())
    prefix = str(tmp_path / "net")
    quanter.save_quantized_model(net, prefix, SPEC)
    return quanter, net, prefix


def test_the_file_of_the_network_passes(exported):
    quanter, net, prefix = exported
    verdict = quanter.verify(net, prefix, batches())
    assert verdict.passed and verdict.failures == ()
    assert verdict.num_inputs == 64
    assert "verified" in str(verdict) and "FAILED" not in str(verdict)


def test_the_figures_are_those_of_numpy(exported):
    from quant import Predictor

    quanter, net, prefix = exported
    figures = quanter.verify(net, prefix, batches()).to_dict()
    assert json.loads(json.dumps(figures)) == figures
    net.eval()
    x = np.concatenate(batches())
    expected = net(paddle.to_tensor(x)).numpy()
    np.testing.assert_allclose(figures["output_range"], [np.ptp(expected)], rtol=1e-3)
    for engine in ("paddle", "onednn"):
        found = np.concatenate([Predictor(prefix, engine)(batch)[0] for batch in batches()])
        delta = np.abs(expected - found)
        row = figures["engines"][engine]
        slack = 2e-4 * np.ptp(expected)  # a batch of 64 may round one value the other way
        np.testing.assert_allclose(row["mean_abs"], delta.mean(), atol=slack)
        np.testing.assert_allclose(row["max_abs"], delta.max(), atol=20 * slack)
        same = np.mean(expected.argmax(-1) == found.argmax(-1))
        np.testing.assert_allclose(row["agreement"], same, atol=2 / 64)


def test_a_weight_that_changed_after_the_export_is_caught(exported):
    quanter, net, prefix = exported
    weight = net[3].weight.numpy().copy()
    weight[3] *= -1  # one channel of sixteen
    net[3].weight.set_value(weight)
    verdict = quanter.verify(net, prefix, batches())
    assert not verdict.passed
    assert "FAILED" in str(verdict) and "verified" not in str(verdict)
    assert any(line.startswith("paddle: output 0 differs") for line in verdict.failures)


def test_a_bias_that_changed_is_caught(exported):
    quanter, net, prefix = exported
    net[6].bias.set_value(net[6].bias + 0.05)
    assert not quanter.verify(net, prefix, batches()).passed


def test_a_scale_that_changed_is_caught(exported):
    quanter, net, prefix = exported
    scale = net[3]._act_quant.quantizer.scale
    scale.set_value(scale * 0.5)
    assert not quanter.verify(net, prefix, batches()).passed


def test_the_file_of_another_network_is_caught(exported, tmp_path):
    quanter, net, _ = exported
    other = quanter.quantize(small())
    quanter.calibrate(other, batches())
    quanter.save_quantized_model(other, str(tmp_path / "other"), SPEC)
    assert not quanter.verify(net, str(tmp_path / "other"), batches()).passed


def test_a_file_without_activation_quantization_is_caught(tmp_path):
    quanter = QAT({"activation_bits": 4})
    net = quanter.quantize(small())
    quanter.calibrate(net, batches())
    quanter.save_quantized_model(net, str(tmp_path / "net"), SPEC)
    assert quanter.verify(net, str(tmp_path / "net"), batches()).passed
    # The same weights in float32, as codes times scale would give them.
    plain = small()
    state = {k: v for k, v in net.state_dict().items() if "_act_quant" not in k}
    plain.set_state_dict(state)
    for index in (0, 3, 6):
        quantized = net[index]._weight_quant(net[index].weight)
        plain[index].weight.set_value(quantized.detach())
    save_float_model(plain, str(tmp_path / "plain"), SPEC)
    assert not quanter.verify(net, str(tmp_path / "plain"), batches()).passed


def test_a_file_with_another_number_of_classes_is_caught(exported, tmp_path):
    quanter, net, _ = exported
    other = nn.Sequential(*small()[:-1], nn.Linear(16 * 4 * 4, 7))
    save_float_model(other, str(tmp_path / "other"), SPEC)
    verdict = quanter.verify(net, str(tmp_path / "other"), batches())
    assert not verdict.passed
    assert "(64, 7)" in verdict.failures[0] and "(64, 10)" in verdict.failures[0]
    json.dumps(verdict.to_dict())


def test_a_file_that_gives_nan_is_caught(exported, tmp_path):
    quanter, net, _ = exported
    other = small()
    other[6].bias.set_value(np.full([10], np.nan, np.float32))
    save_float_model(other, str(tmp_path / "other"), SPEC)
    assert not quanter.verify(net, str(tmp_path / "other"), batches()).passed


@pytest.mark.int8_products
def test_a_file_that_takes_another_input_is_caught_with_one_line_per_engine(exported, tmp_path):
    quanter, net, _ = exported
    other = nn.Sequential(nn.Conv2D(5, 4, 3), nn.Flatten(), nn.Linear(144, 10))
    spec = [paddle.static.InputSpec([None, 5, 8, 8], "float32")]
    save_float_model(other, str(tmp_path / "other"), spec)
    verdict = quanter.verify(net, str(tmp_path / "other"), batches(1))
    assert not verdict.passed
    assert len(verdict.failures) == 2 and not any("\n" in line for line in verdict.failures)


def test_the_network_stays_as_it_is(exported):
    quanter, net, prefix = exported
    net.train()
    before = {key: value.numpy().copy() for key, value in net.state_dict().items()}
    quanter.verify(net, prefix, batches(1))
    assert net.training and all(layer.training for layer in net.sublayers())
    for key, value in net.state_dict().items():
        np.testing.assert_array_equal(value.numpy(), before[key])
    assert not any(layer._forward_post_hooks for layer in net.sublayers())


def test_a_missing_file_is_an_error(exported, tmp_path):
    quanter, net, _ = exported
    with pytest.raises(VerifyError, match=r"none\.pdmodel does not exist"):
        quanter.verify(net, str(tmp_path / "none"), batches(1))


def test_no_batch_is_an_error(exported):
    quanter, net, prefix = exported
    with pytest.raises(VerifyError, match="no batch"):
        quanter.verify(net, prefix, [])


def test_a_float_network_is_an_error(exported):
    with pytest.raises(QuantError, match=r"call quantize\(net\) first"):
        exported[0].verify(small(), exported[2], batches(1))
