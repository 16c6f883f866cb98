"""Two activations after one kernel: oneDNN's passes fuse both and forget the first."""

from __future__ import annotations

import numpy as np
import paddle
import pytest
from paddle import nn
from paddle.nn import functional as F

from quant import QAT, Predictor, save_float_model

pytestmark = pytest.mark.int8_products

SPEC = [paddle.static.InputSpec([None, 3, 8, 8], "float32")]
ACTIVATIONS = {
    "relu": F.relu,
    "relu6": F.relu6,
    "leaky_relu": F.leaky_relu,
    "sigmoid": F.sigmoid,
    "hardsigmoid": F.hardsigmoid,
    "hardswish": F.hardswish,
    "silu": F.silu,
    "tanh": F.tanh,
    "gelu": F.gelu,
    "abs": paddle.abs,
}


class Rows(nn.Layer):
    """One activation, then each of them, after convolutions of their own."""

    def __init__(self, first):
        super().__init__()
        self.convs = nn.LayerList([nn.Conv2D(3, 8, 3) for _ in ACTIVATIONS])
        self.lasts = nn.LayerList([nn.Conv2D(8, 4, 1) for _ in ACTIVATIONS])
        self.first = first

    def forward(self, x):
        rows = zip(self.convs, ACTIVATIONS.values(), self.lasts)
        return [last(second(self.first(conv(x)))) for conv, second, last in rows]


@pytest.mark.parametrize("target", ["generic", "onednn"])
@pytest.mark.parametrize("first", ACTIVATIONS)
def test_every_pair_is_computed(first, target, tmp_path):
    x = np.random.default_rng(0).normal(size=(16, 3, 8, 8)).astype(np.float32)
    paddle.seed(2)
    net = Rows(ACTIVATIONS[first])
    quanter = QAT({"deploy_target": target})
    quanter.quantize(net, input_spec=SPEC)
    quanter.calibrate(net, [x])
    net.eval()
    quanter.save_quantized_model(net, str(tmp_path / "net"), SPEC)
    verdict = quanter.verify(net, str(tmp_path / "net"), [x])
    shares = {
        second: row.mean_abs / span
        for second, row, span in zip(ACTIVATIONS, verdict.engines["onednn"], verdict.output_range)
    }
    assert {second for second, share in shares.items() if share > 2e-3} == set()


@pytest.mark.parametrize("first", ["relu", "hardsigmoid"])
def test_a_float_file_computes_every_pair_too(first, tmp_path):
    x = np.random.default_rng(0).normal(size=(4, 3, 8, 8)).astype(np.float32)
    paddle.seed(2)
    net = Rows(ACTIVATIONS[first])
    net.eval()
    save_float_model(net, str(tmp_path / "net"), SPEC)
    found = Predictor(str(tmp_path / "net"), "onednn")([x])
    for value, expected in zip(found, net(paddle.to_tensor(x))):
        np.testing.assert_allclose(value, expected.numpy(), atol=1e-5)
