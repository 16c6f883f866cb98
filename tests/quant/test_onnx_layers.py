"""An ONNX file held against the network layer by layer."""

from __future__ import annotations

import numpy as np
import onnx
import paddle
import pytest
from onnx import numpy_helper
from paddle import nn
from paddle.nn import functional as F

from quant import QAT, ExportError
from quant.onnx_layers import OnnxGraph

pytestmark = pytest.mark.int8_products

SPEC = [paddle.static.InputSpec([None, 3, 16, 16], "float32")]
TARGETS = ("generic", "onednn", "onnxruntime", "openvino", "tensorrt")


class Net(nn.Layer):
    """A residual sum, a depthwise convolution, a BatchNorm, two Linear layers."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm1 = nn.Conv2D(3, 16, 3, padding=1, bias_attr=False), nn.BatchNorm2D(16)
        self.depthwise = nn.Conv2D(16, 16, 3, padding=1, groups=16)
        self.point, self.norm2 = nn.Conv2D(16, 16, 1, bias_attr=False), nn.BatchNorm2D(16)
        self.hidden, self.fc = nn.Linear(16, 12), nn.Linear(12, 10)

    def forward(self, x):
        x = F.relu(self.norm1(self.stem(x)))
        x = F.relu(self.norm2(self.point(F.relu(self.depthwise(x)))) + x)
        return self.fc(F.relu(self.hidden(x.mean(axis=[2, 3]))))


NAMES = ["stem", "depthwise", "point", "hidden", "fc"]


def images(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(16, 3, 16, 16)).astype(np.float32)


def exported(target: str, path) -> tuple[QAT, nn.Layer, str]:
    quanter = QAT({"deploy_target": target})
    net = quanter.quantize(Net(), input_spec=SPEC)
    net.train()
    for seed in range(3):
        net(paddle.to_tensor(images(seed)))
    net.eval()
    file = str(path / "net.onnx")
    quanter.export_onnx(net, file, SPEC)
    return quanter, net, file


def doctor(file: str, name: str, change) -> None:
    """Rewrites one stored tensor of the file."""
    model = onnx.load(file)
    (item,) = [item for item in model.graph.initializer if item.name == name]
    item.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(item).copy()), name))
    onnx.save(model, file)


@pytest.mark.parametrize("target", TARGETS)
def test_no_layer_of_the_file_departs(target, tmp_path):
    quanter, net, file = exported(target, tmp_path)
    verdict = quanter.verify(net, file, [images(7)])
    assert verdict.passed, verdict
    assert [row.name for row in verdict.layers] == NAMES
    assert verdict.layers_engine == "onnx" and verdict.first_departing is None
    for row in verdict.layers:
        # A bias that is rounded to an integer may be one step of the products off.
        assert row.alone.max < 1e-4 and row.codes_alone == 1.0, row
        assert row.input.agreement > 0.95 and row.output is not None
    assert "ONNX as stored" in str(verdict)


@pytest.mark.parametrize("target", ["generic", "onnxruntime", "openvino"])
@pytest.mark.parametrize("layer", NAMES)
def test_a_weight_scale_that_is_off_is_found_by_name(layer, target, tmp_path):
    quanter, net, file = exported(target, tmp_path)

    def change(step: np.ndarray) -> np.ndarray:
        step[-1] *= np.float32(1.01)  # one channel
        return step

    doctor(file, f"{layer}.weight.int8.step", change)
    verdict = quanter.verify(net, file, [images(7)])
    assert not verdict.passed
    assert verdict.first_departing.name == layer and verdict.first_departing.departs == "layer"
    assert any(f"the first layer that departs is {layer}:" in line for line in verdict.failures)


def test_a_quantizer_that_is_off_is_found_by_name(tmp_path):
    quanter, net, file = exported("onnxruntime", tmp_path)
    doctor(file, "fc.input.scale.step", lambda step: step * np.float32(1.1))
    verdict = quanter.verify(net, file, [images(7)])
    assert not verdict.passed
    assert verdict.first_departing.name == "fc"


@pytest.mark.parametrize("target", TARGETS)
def test_every_layer_of_networks_of_many_shapes_passes(odd_network, target, networks, tmp_path):
    case = networks.CASES[odd_network]
    rng = np.random.default_rng(0)
    sizes = [[16 if size is None else size for size in shape] for shape in case.shapes]
    x = tuple(rng.normal(size=size).astype(np.float32) for size in sizes)
    if odd_network == "words":
        pytest.skip("takes integers")
    spec = [paddle.static.InputSpec(list(shape), "float32") for shape in case.shapes]
    quanter = QAT({"deploy_target": target})
    net = quanter.quantize(case.build(), input_spec=spec)
    net.eval()
    quanter.calibrate(net, [x])
    file = str(tmp_path / "net.onnx")
    if odd_network == "tensor_condition":
        with pytest.raises(ExportError, match="no ONNX form for: .*in "):
            quanter.export_onnx(net, file, spec)
        return
    quanter.export_onnx(net, file, spec)
    verdict = quanter.verify(net, file, [x], engines=["onnx"])
    assert verdict.first_departing is None, verdict
    judged = [row for row in verdict.layers if row.alone is not None]
    assert judged and max(row.alone.max for row in judged) < 1e-4


def test_layers_standing_alone_read_inputs_of_their_own(tmp_path):
    _, _, file = exported("generic", tmp_path)
    graph = OnnxGraph(onnx.load(file))
    layers, lost = graph.find_layers()
    alone = graph.standing_alone(layers)
    assert not lost and len(alone.graph.input) == len(layers) == len(NAMES)
    assert len(alone.graph.output) == 2 * len(layers)
    assert [layer.name for layer in layers] == NAMES
