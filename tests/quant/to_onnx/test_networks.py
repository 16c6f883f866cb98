"""Quantized networks as ONNX files: ONNX Runtime and OpenVINO against the fake-quant network."""

from __future__ import annotations

import collections

import numpy as np
import onnx
import onnxruntime
import paddle
import pytest
from paddle import nn
from paddle.nn import functional as F
from paddle.vision import models as vision

from quant import QAT, save_float_onnx
from quant.verify import _floor, _run

SIZE = 32
SPEC = [paddle.static.InputSpec([None, 3, SIZE, SIZE], "float32", name="image")]
TARGETS = ("generic", "onnxruntime", "tensorrt", "onednn")


class Residual(nn.Layer):
    """Sums with and without relu, squeeze and excitation, hard-swish, concat, a linear tail."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2D(3, 16, 3, 2, 1, bias_attr=False), nn.BatchNorm2D(16)
        self.a, self.an = nn.Conv2D(16, 16, 3, padding=1, bias_attr=False), nn.BatchNorm2D(16)
        self.b, self.bn = nn.Conv2D(16, 16, 3, padding=1, groups=16), nn.BatchNorm2D(16)
        self.squeeze, self.excite = nn.Conv2D(16, 4, 1), nn.Conv2D(4, 16, 1)
        self.c, self.d = nn.Conv2D(16, 8, 1), nn.Conv2D(16, 8, 1)
        self.e = nn.Conv2D(16, 16, 3, 2, 1)
        self.hidden, self.fc = nn.Linear(16, 12), nn.Linear(12, 10)

    def forward(self, x):
        x = F.relu(self.norm(self.stem(x)))
        x = F.max_pool2d(x, 3, 2, 1)
        x = F.relu(x + self.an(self.a(x)))
        y = F.hardswish(self.bn(self.b(x)))
        gate = self.excite(F.relu(self.squeeze(F.adaptive_avg_pool2d(y, 1))))
        x = x + y * F.hardsigmoid(gate)
        x = paddle.concat([F.relu(self.c(x)), self.d(x)], axis=1)
        x = F.relu6(self.e(x)).mean([2, 3])
        return self.fc(F.relu(self.hidden(x)))


class Maxima(nn.Layer):
    """Maxima that a quantizer follows: over channels, and over windows of unequal size."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2D(3, 8, 3, 2, 1, bias_attr=False), nn.BatchNorm2D(8)
        self.where = nn.Conv2D(2, 1, 7, padding=3)
        self.a, self.fc = nn.Conv2D(8, 8, 3, padding=1), nn.Linear(8, 10)

    def forward(self, x):
        x = F.relu(self.norm(self.stem(x)))
        both = paddle.concat([x.mean(1, keepdim=True), x.max(1, keepdim=True)], axis=1)
        x = F.adaptive_max_pool2d(x * F.sigmoid(self.where(both)), 3)
        return self.fc(F.relu(self.a(x)).max([2, 3]))


class Shared(nn.Layer):
    """One layer with a BatchNorm behind it and without, and two that hold the same zeros."""

    def __init__(self):
        super().__init__()
        self.stem, self.a = nn.Conv2D(3, 8, 3, 2, 1), nn.Conv2D(8, 8, 3, padding=1)
        self.norm = nn.BatchNorm2D(8)
        zeros = paddle.ParamAttr(initializer=nn.initializer.Constant(0.0), learning_rate=0.0)
        self.b = nn.Conv2D(8, 8, 1, weight_attr=zeros)
        self.c = nn.Conv2D(8, 8, 1, weight_attr=zeros)
        self.fc = nn.Linear(8, 10)

    def forward(self, x):
        x = F.relu(self.stem(x))
        x = F.relu(self.norm(self.a(x)))
        x = self.a(F.relu(self.norm(self.a(x))))
        return self.fc(self.c(F.relu(self.b(x))).mean([2, 3]))


NETWORKS = {
    "residual": Residual,
    "maxima": Maxima,
    "shared": Shared,
    "mobilenet_v1": lambda: vision.mobilenet_v1(scale=0.25, num_classes=10),
    "mobilenet_v2": lambda: vision.mobilenet_v2(scale=0.25, num_classes=10),
    "mobilenet_v3": lambda: vision.mobilenet_v3_small(scale=0.35, num_classes=10),
    "shufflenet": lambda: vision.shufflenet_v2_x0_25(num_classes=10),
    "squeezenet": lambda: vision.squeezenet1_1(num_classes=10),
    "resnet18": lambda: vision.resnet18(num_classes=10),
}


def images(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, 3, SIZE, SIZE)).astype(np.float32)


def trained(build, target: str, **config) -> tuple[QAT, nn.Layer]:
    paddle.seed(0)
    net = build()
    quanter = QAT({"deploy_target": target, **config})
    quanter.quantize(net, input_spec=SPEC)
    optimizer = paddle.optimizer.Momentum(0.01, parameters=net.parameters())
    net.train()
    for seed in range(3):
        loss = net(paddle.to_tensor(images(8, seed))).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.clear_grad()
    net.eval()
    return quanter, net


def session(path, optimized: str | None = None):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    if optimized is not None:
        options.optimized_model_filepath = optimized
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def kinds(path: str) -> collections.Counter:
    return collections.Counter(node.op_type for node in onnx.load(path).graph.node)


@pytest.mark.int8_products
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", NETWORKS)
def test_onnx_runtime_computes_the_network(name, target, tmp_path):
    quanter, net = trained(NETWORKS[name], target)
    path = str(tmp_path / "net.onnx")
    receipt = quanter.export_onnx(net, path, SPEC)
    assert len(receipt.int8_weights) == len(receipt.weights) > 0
    x = images(24, 9)
    expected = net(paddle.to_tensor(x)).numpy()
    optimized = str(tmp_path / "optimized.onnx")
    running = session(path, optimized)
    found = running.run(None, {"image": x})[0]
    span = np.ptp(expected)
    if target != "tensorrt":  # whose biases ONNX Runtime would round
        floor = _floor(net, [[x]], _run(net, [[x]]))[0].mean_abs
        assert np.abs(found - expected).mean() <= max(3 * floor, 0.003 * span)
    for part in (x[:1], x[:5]):
        np.testing.assert_allclose(
            running.run(None, {"image": part})[0], found[: len(part)], atol=0.05 * span
        )
    if target == "onnxruntime":
        found_kinds = kinds(optimized)
        # SqueezeNet's last layer is a convolution, whose results are the logits.
        in_float = 1 if name == "squeezenet" else 0
        assert found_kinds["Conv"] + found_kinds["FusedConv"] == in_float
        assert found_kinds["QLinearConv"] == kinds(path)["Conv"] - in_float


@pytest.mark.int8_products
@pytest.mark.parametrize("target", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("name", NETWORKS)
def test_openvino_computes_the_network(name, target, tmp_path):
    openvino = pytest.importorskip("openvino")
    quanter, net = trained(NETWORKS[name], target)
    path = str(tmp_path / "net.onnx")
    quanter.export_onnx(net, path, SPEC)
    x = images(24, 9)
    expected = net(paddle.to_tensor(x)).numpy()
    # Some CPUs would compute in bfloat16 what is left in float.
    compiled = openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    found = compiled({0: x})[0]
    floor = _floor(net, [[x]], _run(net, [[x]]))[0].mean_abs
    assert np.abs(found - expected).mean() <= max(3 * floor, 0.003 * np.ptp(expected))


@pytest.mark.int8_products
@pytest.mark.parametrize("opset", [13, 17, 21])
def test_every_opset_gives_the_same(opset, tmp_path):
    quanter, net = trained(Residual, "onnxruntime")
    path = str(tmp_path / "net.onnx")
    quanter.export_onnx(net, path, SPEC, opset=opset)
    model = onnx.load(path)
    assert [item.version for item in model.opset_import] == [opset]
    onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
    x = images(8, 3)
    expected = net(paddle.to_tensor(x)).numpy()
    found = session(path).run(None, {"image": x})[0]
    np.testing.assert_allclose(found, expected, atol=0.01 * np.ptp(expected))


def test_a_float_network_is_exported_as_it_is(tmp_path):
    paddle.seed(0)
    net = Residual()
    net.eval()
    path = str(tmp_path / "float.onnx")
    size = save_float_onnx(net, path, SPEC, metadata={"note": "a float network"})
    x = images(4, 1)
    expected = net(paddle.to_tensor(x)).numpy()
    np.testing.assert_allclose(session(path).run(None, {"image": x})[0], expected, atol=1e-5)
    assert size > 4 * sum(int(np.prod(p.shape)) for p in net.parameters())
    assert session(path).get_modelmeta().custom_metadata_map == {"note": "a float network"}


@pytest.mark.parametrize("target", TARGETS)
def test_the_file_is_a_byte_per_weight_and_eight_per_channel(target, tmp_path):
    paddle.seed(0)
    net = vision.resnet18(num_classes=10)
    quanter = QAT({"deploy_target": target})
    quanter.quantize(net, input_spec=SPEC)
    quanter.calibrate(net, [images(2, 0)])
    path = tmp_path / "net.onnx"
    receipt = quanter.export_onnx(net, str(path), SPEC)
    weights = sum(tensor.bytes for tensor in receipt.weights)
    channels = sum(
        tensor.shape[1] if len(tensor.shape) == 2 else tensor.shape[0] for tensor in receipt.weights
    )
    stored = sum(tensor.bytes for tensor in receipt.tensors)
    # Besides: zero points (they are shared between layers) and the few of activations.
    assert stored <= 1.02 * (weights + 8 * channels)
    assert path.stat().st_size <= 1.02 * (weights + 8 * channels)
