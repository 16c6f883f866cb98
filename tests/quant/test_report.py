from __future__ import annotations

import math

import numpy as np
import paddle
import pytest
from paddle import nn

from quant import QAT, QuantError, format_report


def fake(x: np.ndarray, scale) -> np.ndarray:
    return np.clip(np.rint(x / scale * 127), -127, 127) * scale / 127


def decibels(exact: np.ndarray, found: np.ndarray) -> float:
    exact = exact.astype(np.float64)
    return 10 * np.log10((exact**2).sum() / ((exact - found) ** 2).sum())


def batches() -> list[np.ndarray]:
    return [np.random.default_rng(i).normal(size=(16, 5)).astype(np.float32) for i in range(3)]


def test_rows_are_those_of_numpy():
    net = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 4))
    w1, b1, w2, b2 = (p.numpy().astype(np.float64) for p in net.parameters())
    quanter = QAT({"activation_quantize_type": "abs_max"})
    quanter.quantize(net)
    quanter.calibrate(net, batches())
    rows = quanter.report(net, batches())
    assert [row["name"] for row in rows] == ["0", "2"]
    x = np.concatenate(batches()).astype(np.float64)
    for row, w, b in ((rows[0], w1, b1), (rows[1], w2, b2)):
        scale_w, scale_x = np.abs(w).max(axis=0), np.abs(x).max()
        wq, xq = fake(w, scale_w), fake(x, scale_x)
        assert row["type"] == "Linear"
        assert (row["weight_bits"], row["activation_bits"]) == (8, 8)
        np.testing.assert_allclose(row["weight_scale"], scale_w, rtol=1e-6)
        np.testing.assert_allclose(row["activation_scale"], scale_x, rtol=1e-5)
        np.testing.assert_allclose(row["weight_sqnr"], decibels(w, wq), atol=0.05)
        np.testing.assert_allclose(row["input_sqnr"], decibels(x, xq), atol=0.05)
        np.testing.assert_allclose(row["output_sqnr"], decibels(x @ w + b, xq @ wq + b), atol=0.05)
        x = np.maximum(x @ w + b, 0)  # a row shows what its layer alone loses


def test_fewer_bits_show_as_fewer_decibels():
    figures = {}
    for bits in (4, 8):
        paddle.seed(0)
        net = nn.Sequential(nn.Conv2D(3, 4, 3))
        quanter = QAT({"weight_bits": bits, "activation_bits": bits})
        quanter.quantize(net)
        data = [np.random.default_rng(0).normal(size=(8, 3, 9, 9)).astype(np.float32)]
        quanter.calibrate(net, data)
        row = quanter.report(net, data)[0]
        assert row["type"] == "Conv2D" and row["weight_bits"] == row["activation_bits"] == bits
        assert len(row["weight_scale"]) == 4
        figures[bits] = row
    for key in ("weight_sqnr", "input_sqnr", "output_sqnr"):
        assert 15 < figures[8][key] - figures[4][key] < 33  # 6.02 dB a bit: 24


def test_one_weight_scale_where_there_is_one_for_the_tensor():
    net = nn.Sequential(nn.Linear(5, 6))
    quanter = QAT({"weight_quantize_type": "abs_max"})
    quanter.calibrate(quanter.quantize(net), batches())
    scale = quanter.report(net, batches())[0]["weight_scale"]
    np.testing.assert_allclose(scale, [np.abs(net[0].weight.numpy()).max()], rtol=1e-6)


def test_the_network_stays_as_it_is():
    net = nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1D(6), nn.Linear(6, 4))
    quanter = QAT()
    quanter.calibrate(quanter.quantize(net), batches())
    net.train()
    before = {k: v.numpy().copy() for k, v in net.state_dict().items()}
    quanter.report(net, [x * 9 for x in batches()])
    assert net.training and net[1].training
    for key, value in net.state_dict().items():
        np.testing.assert_array_equal(value.numpy(), before[key])
    assert not net[0]._forward_post_hooks


def test_a_layer_that_did_not_run_has_no_figures():
    class Unused(nn.Layer):
        def __init__(self):
            super().__init__()
            self.used, self.idle = nn.Linear(5, 4), nn.Linear(5, 4)

        def forward(self, x):
            return self.used(x)

    net = Unused()
    quanter = QAT()
    quanter.calibrate(quanter.quantize(net), batches())
    used, idle = quanter.report(net, batches())
    assert math.isfinite(used["output_sqnr"])
    assert math.isnan(idle["input_sqnr"]) and math.isnan(idle["output_sqnr"])


def test_the_table_has_a_line_per_layer():
    net = nn.Sequential(nn.Linear(5, 6), nn.Linear(6, 4))
    quanter = QAT({"weight_bits": 4})
    quanter.calibrate(quanter.quantize(net), batches())
    rows = quanter.report(net, batches())
    lines = format_report(rows).splitlines()
    assert len(lines) == 3
    assert lines[1].split()[:3] == ["0", "Linear", "4/8"]
    assert lines[2].split()[-1] == f"{rows[1]['output_sqnr']:.2f}"


def test_no_batch_is_an_error():
    net = QAT().quantize(nn.Linear(5, 6))
    with pytest.raises(QuantError, match="no batch"):
        QAT().report(net, [])
