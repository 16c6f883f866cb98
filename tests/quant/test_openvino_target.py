"""deploy_target='openvino': sums inside the convolution, whose result is cut and not rounded."""

from __future__ import annotations

import json

import numpy as np
import paddle
import pytest
from paddle import nn
from paddle.nn import functional as F

from quant import QAT
from quant.grid import signed

SPEC = [paddle.static.InputSpec([None, 3, 16, 16], "float32")]


def images(n: int = 8, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, 3, 16, 16)).astype(np.float32)


def placed(net: nn.Layer) -> tuple[QAT, nn.Layer]:
    quanter = QAT({"deploy_target": "openvino"})
    quanter.quantize(net, input_spec=SPEC)
    quanter.calibrate(net, [images()])
    net.eval()
    return quanter, net


def results(net: nn.Layer) -> dict:
    """Grids of what layers return, where a quantizer of its own is on that."""
    return {
        name: layer._sub_layers["_result_quant"]._act_quant.grid
        for name, layer in net.named_sublayers()
        if "_result_quant" in layer._sub_layers
    }


class Block(nn.Layer):
    """Two convolutions, and their input or a projection of it added."""

    def __init__(self, channels: int, projects: bool):
        super().__init__()
        self.a, self.norm_a = nn.Conv2D(channels, 8, 3, padding=1), nn.BatchNorm2D(8)
        self.b, self.norm_b = nn.Conv2D(8, 8, 3, padding=1, bias_attr=False), nn.BatchNorm2D(8)
        self.project = nn.Conv2D(channels, 8, 1) if projects else None

    def forward(self, x):
        y = self.norm_b(self.b(F.relu(self.norm_a(self.a(x)))))
        return F.relu(y + (x if self.project is None else self.project(x)))


class Residuals(nn.Layer):
    def __init__(self):
        super().__init__()
        self.stem, self.relu = nn.Conv2D(3, 4, 3, 2, 1), nn.ReLU()
        self.blocks = nn.Sequential(Block(4, True), Block(8, False))
        self.fc = nn.Linear(8, 5)

    def forward(self, x):
        x = F.adaptive_avg_pool2d(self.blocks(self.relu(self.stem(x))), 1)
        return self.fc(x.flatten(1))


def test_the_result_that_a_sum_takes_in_is_not_rounded():
    _, net = placed(Residuals())
    found = results(net)
    # A hook on the BatchNorm that the kernel takes in gives the layer's result.
    assert not found["blocks.0.b"].rounds and not found["blocks.1.b"].rounds
    assert found["blocks.0.project"] == signed(8)
    assert "not rounded" in str(found["blocks.0.b"])
    scale = net.blocks[1].b.result_quantizer._act_quant.scale_numpy()[0]
    seen = {}
    net.blocks[1].norm_b.register_forward_post_hook(
        lambda layer, args, out: seen.update(y=out.numpy())
    )
    net(paddle.to_tensor(images(64, 3) * 3))
    codes = seen["y"] / scale * 127
    assert codes.min() == pytest.approx(-128) and codes.max() == pytest.approx(127)
    assert np.abs(codes - np.rint(codes)).max() > 0.4


class OwnInput(Residuals):
    """The sum adds what the convolution itself reads: no kernel takes that in."""

    def __init__(self):
        super().__init__()
        self.same = nn.Conv2D(4, 4, 3, padding=1)
        self.last = nn.Conv2D(4, 5, 1)

    def forward(self, x):
        x = self.relu(self.stem(x))
        return self.last(F.relu(x + self.same(x)))


def test_a_sum_that_no_kernel_takes_in_is_one_of_integers():
    _, net = placed(OwnInput())
    assert results(net) == {"same": signed(8)}


class Gated(nn.Layer):
    def __init__(self):
        super().__init__()
        self.conv, self.act = nn.Conv2D(3, 8, 1), nn.Hardswish()
        self.plain, self.squeeze = nn.Conv2D(8, 8, 1), nn.Conv2D(8, 8, 1)
        self.last = nn.Conv2D(8, 4, 1)

    def forward(self, x):
        x = self.act(self.conv(x))
        x = F.hardswish(self.plain(x))
        gate = self.squeeze(F.adaptive_avg_pool2d(x, 1))
        return self.last(F.relu(x * F.hardsigmoid(gate)))


def test_activations_run_inside_the_convolution():
    _, net = placed(Gated())
    # Not before the activations; after the second no layer returns what the gate multiplies.
    assert set(results(net)) <= {"plain"}


def compiled_nodes(path: str) -> list[tuple[str, str]]:
    """Kind of each operator that OpenVINO runs, with the names of those it was made of."""
    openvino = pytest.importorskip("openvino")
    options = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    model = openvino.Core().compile_model(path, "CPU", options).get_runtime_model()
    nodes = [node.get_rt_info() for node in model.get_ordered_ops()]
    return [
        (info["layerType"].astype(str), info["originalLayersNames"].astype(str)) for info in nodes
    ]


def test_openvino_runs_the_sums_inside_its_integer_kernels(tmp_path):
    quanter, net = placed(Residuals())
    path = str(tmp_path / "net.onnx")
    quanter.export_onnx(net, path, SPEC)
    sums = [kind for kind, names in compiled_nodes(path) if "Add:" in names]
    assert sums and set(sums) <= {"Convolution", "FullyConnected"}
    other = QAT({"deploy_target": "onnxruntime"})
    net = other.quantize(Residuals(), input_spec=SPEC)
    other.calibrate(net, [images()])
    net.eval()
    other.export_onnx(net, path, SPEC)
    sums = [kind for kind, names in compiled_nodes(path) if "Add:" in names]
    assert sums and "Convolution" not in sums


@pytest.mark.int8_products
@pytest.mark.parametrize("network", [Residuals, OwnInput, Gated])
def test_openvino_and_plain_cpu_compute_the_network(network, tmp_path):
    pytest.importorskip("openvino")
    paddle.seed(1)
    net = network()
    quanter = QAT({"deploy_target": "openvino"})
    quanter.quantize(net, input_spec=SPEC)
    net.train()
    for seed in range(3):
        net(paddle.to_tensor(images(seed=seed)))
    net.eval()
    prefix = str(tmp_path / "net")
    quanter.save_quantized_model(net, prefix, SPEC)
    quanter.export_onnx(net, f"{prefix}.onnx", SPEC)
    for file, engine in ((prefix, "paddle"), (f"{prefix}.onnx", "openvino")):
        verdict = quanter.verify(net, file, [images(64, seed=9)])
        assert verdict.passed and engine in verdict.bounds, verdict
    json.dumps(verdict.to_dict())


def test_narrow_weights_keep_the_cut(tmp_path):
    net = Residuals()
    quanter = QAT({"deploy_target": "openvino", "weight_bits": 4})
    quanter.quantize(net, input_spec=SPEC)
    quanter.calibrate(net, [images()])
    net.eval()
    prefix = str(tmp_path / "net")
    quanter.save_quantized_model(net, prefix, SPEC)
    assert quanter.verify(net, prefix, [images(32, seed=9)], engines=["paddle"]).passed
