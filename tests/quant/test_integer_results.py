"""deploy_target='onnxruntime': what a convolution returns is quantized too, and by what."""

from __future__ import annotations

import copy

import numpy as np
import paddle
import pytest
from paddle import nn
from paddle.nn import functional as F

from quant import QAT
from quant.grid import signed, unsigned
from quant.layers import InputRole

SPEC = [paddle.static.InputSpec([None, 3, 16, 16], "float32")]
TARGET = {"deploy_target": "onnxruntime"}


def images(n: int = 8, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, 3, 16, 16)).astype(np.float32)


def placed(net: nn.Layer, **config) -> tuple[QAT, nn.Layer]:
    quanter = QAT({**TARGET, **config})
    quanter.quantize(net, input_spec=SPEC)
    quanter.calibrate(net, [images()])
    net.eval()
    return quanter, net


def with_results(net: nn.Layer) -> dict:
    """Names of the layers whose result is quantized by itself, with the grid."""
    return {
        name: layer.result_quantizer._act_quant.grid
        for name, layer in net.named_sublayers()
        if getattr(layer, "result_quantizer", None) is not None
    }


class Kinds(nn.Layer):
    """Convolutions followed by what a kernel takes in, and by what it does not."""

    def __init__(self):
        super().__init__()
        self.fused, self.norm = nn.Conv2D(3, 8, 3, padding=1), nn.BatchNorm2D(8)
        self.swished, self.swish_norm = nn.Conv2D(8, 8, 1), nn.BatchNorm2D(8)
        self.pooled, self.relu = nn.Conv2D(8, 8, 1), nn.ReLU()
        self.functional = nn.Conv2D(8, 8, 1)
        self.head = nn.Conv2D(8, 4, 1)
        self.fc = nn.Linear(4, 5)

    def forward(self, x):
        x = F.relu(self.norm(self.fused(x)))  # read by a quantizer alone
        x = F.hardswish(self.swish_norm(self.swished(x)))
        x = F.sigmoid(self.relu(self.pooled(x)))
        x = F.avg_pool2d(F.relu(self.functional(x)), 2)
        return self.fc(self.head(x).mean([2, 3]))


def test_results_that_no_quantizer_reads_get_one():
    _, net = placed(Kinds())
    assert with_results(net) == {
        "swished": signed(8),
        "pooled": unsigned(8),  # with the relu inside, which a layer returns
        "functional": signed(8),  # no layer returns what comes after F.relu
        "head": signed(8),
    }
    scale = net.pooled.result_quantizer._act_quant.scale_numpy()[0]
    seen = {}
    net.relu.register_forward_post_hook(lambda layer, args, out: seen.update(y=out.numpy()))
    net(paddle.to_tensor(images()))
    codes = seen["y"] / scale * 255
    np.testing.assert_allclose(codes, np.rint(codes), atol=1e-3)
    assert codes.max() == pytest.approx(255, abs=1e-3) and codes.min() == 0


class Bottleneck(nn.Layer):
    """As in MobileNetV2: the sum has no relu, and the next block and sum read it."""

    def __init__(self, channels: int = 8):
        super().__init__()
        self.up, self.norm1 = nn.Conv2D(channels, 16, 1), nn.BatchNorm2D(16)
        self.down, self.norm2 = nn.Conv2D(16, channels, 1), nn.BatchNorm2D(channels)

    def forward(self, x):
        return x + self.norm2(self.down(F.relu6(self.norm1(self.up(x)))))


class Chain(nn.Layer):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2D(3, 8, 3, padding=1), nn.BatchNorm2D(8))
        self.blocks = nn.Sequential(Bottleneck(), Bottleneck(), Bottleneck())
        self.last = nn.Conv2D(8, 4, 1)

    def forward(self, x):
        return self.last(self.blocks(self.stem(x)))


def test_a_sum_and_both_its_sides_are_integers():
    _, net = placed(Chain())
    given = {n for n, x in net.named_sublayers() if getattr(x, "input_role", 0) is InputRole.GIVEN}
    # The result of the stem, and the sums that a later sum reads.
    assert given == {"blocks.0.up", "blocks.1.up", "blocks.2.up"}
    assert set(with_results(net)) == {"blocks.0.down", "blocks.1.down", "blocks.2.down"}


def test_the_logits_stay_in_float():
    class PooledLogits(Chain):
        def forward(self, x):
            return F.softmax(self.last(self.blocks(self.stem(x))).mean([2, 3]))

    for network in (Chain, PooledLogits):
        _, net = placed(network())
        assert net.last.result_quantizer is None


def test_a_layer_that_is_called_twice_has_no_result_quantizer():
    class Twice(nn.Layer):
        def __init__(self):
            super().__init__()
            self.conv, self.last = nn.Conv2D(3, 3, 1), nn.Conv2D(3, 2, 1)

        def forward(self, x):
            return self.last(F.sigmoid(self.conv(F.sigmoid(self.conv(x)))))

    assert with_results(placed(Twice())[1]) == {}


def test_scales_of_results_are_in_the_state_dict_and_in_the_report():
    quanter, net = placed(Kinds())
    again = QAT(TARGET).quantize(Kinds(), input_spec=SPEC)
    missing, unexpected = again.set_state_dict(net.state_dict())
    assert not missing and not unexpected
    again.eval()
    x = paddle.to_tensor(images(4, seed=5))
    np.testing.assert_array_equal(again(x).numpy(), net(x).numpy())
    rows = {row["name"]: row for row in quanter.report(net, [images()])}
    assert rows["swished"]["result_codes"] == [-128, 127] and rows["swished"]["result_scale"] > 0
    assert rows["fused"]["result_codes"] is None and rows["fused"]["result_scale"] is None


def test_a_copy_observes_for_itself():
    _, net = placed(Kinds())
    other = copy.deepcopy(net)
    before = net.head.result_quantizer._act_quant.scale_numpy()
    other.train()
    other(paddle.to_tensor(images() * 50))
    np.testing.assert_array_equal(net.head.result_quantizer._act_quant.scale_numpy(), before)
    assert other.head.result_quantizer._act_quant.scale_numpy() != before


@pytest.mark.parametrize("network", [Kinds, Chain])
@pytest.mark.parametrize("target", ["onnxruntime", "openvino", "tensorrt"])
def test_plain_cpu_computes_the_unsigned_steps_and_the_results(network, target, tmp_path):
    paddle.seed(1)
    net = network()
    quanter = QAT({"deploy_target": target})
    quanter.quantize(net, input_spec=SPEC)
    net.train()
    for seed in range(3):
        net(paddle.to_tensor(images(seed=seed)))
    net.eval()
    quanter.save_quantized_model(net, str(tmp_path / "net"), SPEC)
    verdict = quanter.verify(net, str(tmp_path / "net"), [images(32, seed=9)])
    assert verdict.passed, verdict
    assert verdict.engines["paddle"][0].mean_abs < 1e-3 * verdict.output_range[0]


def test_freezing_stops_the_scale_of_a_result():
    quanter, net = placed(Kinds())
    quanter.freeze(net)
    before = net.head.result_quantizer._act_quant.scale_numpy()
    net.train()
    net(paddle.to_tensor(images() * 50))
    np.testing.assert_array_equal(net.head.result_quantizer._act_quant.scale_numpy(), before)


def test_pact_clips_inputs_and_not_results():
    _, net = placed(Kinds(), activation_preprocess_type="PACT")
    assert net.head._act_quant.preprocess is not None
    assert net.head.result_quantizer._act_quant.preprocess is None


class Fires(nn.Layer):
    """As in SqueezeNet: two branches, joined, pooled and read by a convolution."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.relu = nn.Conv2D(3, 8, 1), nn.Conv2D(3, 8, 3, padding=1), nn.ReLU()
        self.c, self.last = nn.Conv2D(16, 8, 1), nn.Conv2D(8, 4, 1)

    def forward(self, x):
        x = paddle.concat([F.relu(self.a(x)), F.relu(self.b(x)) * 1.0], axis=1)
        return self.last(F.relu(self.c(F.max_pool2d(x, 2))))


class Joined(Fires):
    def forward(self, x):
        x = paddle.concat([F.relu(self.a(x)), self.b(x)], axis=1)
        return self.last(F.relu(self.c(F.max_pool2d(x, 2))))


def test_the_parts_of_a_concat_are_on_one_grid():
    _, net = placed(Joined())
    a, b = (getattr(net, name).result_quantizer._act_quant for name in "ab")
    assert a.quantizer.scale.item() != b.quantizer.scale.item()
    largest = max(a.quantizer.scale.item(), b.quantizer.scale.item())
    assert a.scale_numpy() == b.scale_numpy() == np.float32(largest)
    assert a.grid == b.grid == signed(8)
    assert net.c._act_quant is a and net.c.input_role is InputRole.FOLLOWS
    other = copy.deepcopy(net)
    assert other.a.result_quantizer._act_quant.quantizer.group is not a.quantizer.group


def test_a_part_without_a_quantizer_leaves_the_grids_apart():
    _, net = placed(Fires())
    assert net.a.result_quantizer._act_quant.quantizer.group is None
    assert net.c.input_role is InputRole.QUANTIZES


class Excited(nn.Layer):
    """Squeeze and excitation of what comes after an activation."""

    def __init__(self):
        super().__init__()
        self.conv, self.act = nn.Conv2D(3, 8, 1), nn.Hardswish()
        self.squeeze, self.last = nn.Conv2D(8, 8, 1), nn.Conv2D(8, 4, 1)

    def forward(self, x):
        x = self.act(self.conv(x))
        return self.last(x * F.hardsigmoid(self.squeeze(F.adaptive_avg_pool2d(x, 1))))


def test_an_activation_that_a_pooling_reads_is_an_integer_tensor():
    _, net = placed(Excited())
    assert net.act._result_quant._act_quant.grid == signed(8)
    assert net.act._result_quant.quant_name == "act"
    seen = {}
    net.act.register_forward_post_hook(lambda layer, args, out: seen.update(y=out.numpy()))
    net(paddle.to_tensor(images()))
    codes = seen["y"] / net.act._result_quant._act_quant.scale_numpy()[0] * 127
    np.testing.assert_allclose(codes, np.rint(codes), atol=1e-3)
