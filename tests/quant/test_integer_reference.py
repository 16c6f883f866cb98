"""Every engine against an interpreter in integer arithmetic that shares no code with the exporter.

Layer by layer each quantized layer gets the engine's own input, so that what one layer does
differently is not hidden among the rounding flips of all others.
"""

from __future__ import annotations

import shutil

import numpy as np
import onnx
import onnxruntime
import paddle
import pytest
from paddle import nn
from paddle.nn import functional as F
from paddle.vision import models as vision

from quant import QAT, Predictor
from quant.paddle_format import read_program
from quant.verify import _floor, _run
from tests.reference.graph import Graph, Node
from tests.reference.integer import Codes, Run
from tests.reference.onnx_graph import read_onnx
from tests.reference.wire import read_paddle

SIZE = 32
SPEC = [paddle.static.InputSpec([None, 3, SIZE, SIZE], "float32", name="image")]
PRODUCTS = ("conv2d", "depthwise_conv2d", "Conv", "Gemm", "MatMul")


class Mixed(nn.Layer):
    """Grouped, dilated, strided and padded convolutions, a channel of zeros, negative gamma, a
    layer that is used twice, a split, a concat, a gate and two Linear layers."""

    def __init__(self):
        super().__init__()
        self.a, self.an = nn.Conv2D(3, 16, 3, 2, 1, bias_attr=False), nn.BatchNorm2D(16)
        self.b = nn.Conv2D(16, 16, 3, padding=2, dilation=2, groups=4)
        self.c, self.cn = nn.Conv2D(16, 16, 3, padding=1, groups=16), nn.BatchNorm2D(16)
        self.gate, self.twice = nn.Conv2D(16, 16, 1), nn.Conv2D(8, 8, 1)
        self.d = nn.Conv2D(16, 24, 3, padding="SAME", stride=2)
        self.hidden, self.last = nn.Linear(24, 16), nn.Linear(16, 10)
        weight = self.a.weight.numpy()
        weight[5] = 0
        self.a.weight.set_value(weight)
        gamma = self.an.weight.numpy()
        gamma[::3] *= -1
        self.an.weight.set_value(gamma)

    def forward(self, x):
        x = F.relu(self.an(self.a(x)))
        x = F.max_pool2d(F.leaky_relu(self.b(x), 0.1), 2)
        y = F.hardswish(self.cn(self.c(x)))
        y = y * F.sigmoid(self.gate(F.adaptive_avg_pool2d(y, 1)))
        left, right = paddle.split(x + y, 2, axis=1)
        x = paddle.concat([self.twice(left), F.relu(self.twice(right))], axis=1)
        x = F.relu6(self.d(x)).mean([2, 3])
        return self.last(F.relu(self.hidden(x)))


NETWORKS = {
    "mixed": Mixed,
    "mobilenet_v1": lambda: vision.mobilenet_v1(scale=0.25, num_classes=10),
    "mobilenet_v3": lambda: vision.mobilenet_v3_small(scale=0.35, num_classes=10),
    "resnet18": lambda: vision.resnet18(num_classes=10),
}


def images(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, 3, SIZE, SIZE)).astype(np.float32)


def trained(name: str, target: str) -> tuple[QAT, nn.Layer]:
    paddle.seed(0)
    net = NETWORKS[name]()
    quanter = QAT({"deploy_target": target})
    quanter.quantize(net, input_spec=SPEC)
    net.train()
    for seed in range(3):
        net(paddle.to_tensor(images(8, seed)))
    net.eval()
    return quanter, net


def floor_and_range(net: nn.Layer, x: np.ndarray) -> tuple[float, float, np.ndarray]:
    (expected,) = _run(net, [[x]])
    return _floor(net, [[x]], [expected])[0].mean_abs, float(np.ptp(expected)), expected


# --- the interpreter itself ------------------------------------------------------------------


def test_one_convolution_by_hand():
    """Codes 100 and -128, weights 3 and -2, of steps 0.1 and 0.01: (300 + 256) * 0.001 + 0.5."""
    graph = Graph(
        {
            "s": np.array([12.7], np.float32),
            "w": np.array([3, -2], np.int8).reshape([1, 2, 1, 1]),
            "ws": np.array([1.27], np.float32),
            "b": np.array([0.5], np.float32),
        },
        ["x"],
        ["y"],
        [
            Node("quantize_linear", {"X": ["x"], "Scale": ["s"]}, {"Y": ["q"]}),
            Node("dequantize_linear", {"X": ["q"], "Scale": ["s"]}, {"Y": ["d"]}),
            Node(
                "dequantize_linear",
                {"X": ["w"], "Scale": ["ws"]},
                {"Y": ["v"]},
                {"quant_axis": 0},
            ),
            Node("conv2d", {"Input": ["d"], "Filter": ["v"]}, {"Output": ["p"]}),
            Node("elementwise_add", {"X": ["p"], "Y": ["b"]}, {"Out": ["y"]}, {"axis": 1}),
        ],
    )
    run = Run(graph, [np.array([10.0, -99.0]).reshape([1, 2, 1, 1])])
    assert run.values["q"].values.reshape([-1]).tolist() == [100, -128]
    assert run.outputs[0].item() == pytest.approx(0.556 + 0.5, rel=1e-6)
    assert run.integer_products == ["p"]


def test_an_accumulator_that_overflows_is_noticed():
    codes = np.full([1, 140_000], 127, np.int64)
    values = {
        "x": Codes(codes, np.ones(1), np.zeros(1)),
        "y": Codes(codes.T, np.ones(1), np.zeros(1)),
    }
    run = Run(Graph({}), [])
    run.values.update(values)
    from tests.reference.integer import OPERATORS

    with pytest.raises(AssertionError):
        OPERATORS["MatMul"](run, Node("MatMul", {"": ["x", "y"]}, {"": ["z"]}))


# --- layer by layer ----------------------------------------------------------------------------


def one_layer(graph: Graph, node: Node, x: np.ndarray) -> np.ndarray:
    """What the interpreter makes of an engine's own input of one product."""
    values = Run(Graph(graph.constants), [])
    weights = {n.output(): n for n in graph.nodes if n.kind.lower().startswith("dequantize")}
    slots = {"conv2d": ("Input", "Filter"), "depthwise_conv2d": ("Input", "Filter")}
    data, weight = (node.input(slot) for slot in slots.get(node.kind, (0, 1)))
    from tests.reference.integer import OPERATORS

    names = [weight] if not node.inputs.get("") else node.inputs[""][1:]
    for name in names:
        if name in weights:
            OPERATORS[weights[name].kind](values, weights[name])
    quantizer = weights[data]
    step = graph.constants[quantizer.input("Scale" if "Scale" in quantizer.inputs else 1)]
    if quantizer.kind == "dequantize_linear":
        step, zero = np.float64(step.reshape([-1])[0]) / 127, 0
    else:
        step, zero = np.float64(step), int(graph.constants[quantizer.input(2)])
    codes = np.rint(x / step).astype(np.int64)
    np.testing.assert_allclose(codes * step, x, atol=1e-4 * step + 1e-30)
    values.values[data] = Codes(codes + zero, np.array([step]), np.array([zero]))
    OPERATORS[node.kind](values, node)
    assert values.integer_products, "not computed in integers"
    return values.real(node.output())


def quantized_products(graph: Graph) -> list[tuple[Node, str]]:
    """Products of two dequantized tensors, and the name of the first."""
    made = {n.output() for n in graph.nodes if n.kind.lower().startswith("dequantize")}
    found = []
    for node in graph.nodes:
        if node.kind in PRODUCTS:
            names = node.inputs.get("") or [node.input("Input"), node.input("Filter")]
            if names[0] in made and names[1] in made:
                found.append((node, names[0]))
    return found


@pytest.mark.parametrize("target", ["generic", "tensorrt"])
@pytest.mark.parametrize("name", NETWORKS)
def test_plain_cpu_layer_by_layer(name, target, tmp_path):
    quanter, net = trained(name, target)
    prefix = str(tmp_path / "net")
    receipt = quanter.save_quantized_model(net, prefix, SPEC)
    graph = read_paddle(prefix)
    layers = quantized_products(graph)
    assert len(layers) >= len(receipt.weights)
    program = read_program(prefix)
    wanted = [name for node, data in layers for name in (data, node.output())]
    for i, tensor in enumerate(wanted):
        fetch = program.blocks[0].ops.add()
        fetch.CopyFrom(next(op for op in program.blocks[0].ops if op.type == "fetch"))
        fetch.inputs[0].arguments[0] = tensor
        for item in fetch.attrs:
            if item.name == "col":
                item.i = i + 1
    with open(tmp_path / "wide.pdmodel", "wb") as file:
        file.write(program.SerializeToString())
    shutil.copy(f"{prefix}.pdiparams", tmp_path / "wide.pdiparams")
    found = Predictor(str(tmp_path / "wide"), "paddle")([images(4, 7)])[1:]
    for (node, _), data, result in zip(layers, found[0::2], found[1::2]):
        reference = one_layer(graph, node, data)
        span = max(float(np.ptp(reference)), 1e-30)
        assert np.abs(reference - result).max() <= 1e-5 * span, node.output()


@pytest.mark.parametrize("target", ["generic", "onnxruntime"])
@pytest.mark.parametrize("name", NETWORKS)
def test_the_onnx_file_layer_by_layer(name, target, tmp_path):
    quanter, net = trained(name, target)
    path = str(tmp_path / "net.onnx")
    quanter.export_onnx(net, path, SPEC)
    graph = read_onnx(path)
    layers = quantized_products(graph)
    model = onnx.load(path)
    for node, data in layers:
        for tensor in (data, node.output()):
            if tensor not in [item.name for item in model.graph.output]:
                model.graph.output.append(onnx.helper.make_empty_tensor_value_info(tensor))
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    names = [item.name for item in session.get_outputs()]
    found = dict(zip(names, session.run(None, {"image": images(4, 7)})))
    assert layers
    for node, data in layers:
        reference = one_layer(graph, node, found[data])
        span = max(float(np.ptp(reference)), 1e-30)
        assert np.abs(reference - found[node.output()]).max() <= 1e-5 * span, node.output()


# --- whole networks ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", NETWORKS)
def test_paddle_engines_and_the_network_against_the_integers(name, tmp_path):
    quanter, net = trained(name, "generic")
    prefix = str(tmp_path / "net")
    quanter.save_quantized_model(net, prefix, SPEC)
    x = images(8, 11)
    floor, span, expected = floor_and_range(net, x)
    (reference,) = Run(read_paddle(prefix), [x]).outputs
    answers = {
        "network": (expected, 0.002),
        "plain CPU": (Predictor(prefix, "paddle")([x])[0], 0.002),
        "oneDNN": (Predictor(prefix, "onednn")([x])[0], 0.02),
    }
    for engine, (found, share) in answers.items():
        assert np.abs(found - reference).mean() <= max(3 * floor, share * span), engine


@pytest.mark.int8_products
@pytest.mark.parametrize("name", NETWORKS)
def test_openvino_leaves_the_rounding_before_a_sum_out(name, tmp_path):
    openvino = pytest.importorskip("openvino")
    quanter, net = trained(name, "openvino")
    prefix = str(tmp_path / "net")
    quanter.save_quantized_model(net, prefix, SPEC)
    quanter.export_onnx(net, f"{prefix}.onnx", SPEC)
    x = images(8, 11)
    floor, span, expected = floor_and_range(net, x)
    (reference,) = Run(read_paddle(prefix), [x]).outputs
    compiled = openvino.Core().compile_model(
        f"{prefix}.onnx", "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
    )
    for found in (expected, compiled({0: x})[0], Predictor(prefix, "paddle")([x])[0]):
        assert np.abs(found - reference).mean() <= max(3 * floor, 0.003 * span)


@pytest.mark.int8_products
@pytest.mark.parametrize("name", NETWORKS)
def test_onnx_engines_and_the_network_against_the_integers(name, tmp_path):
    quanter, net = trained(name, "onnxruntime")
    path = str(tmp_path / "net.onnx")
    quanter.export_onnx(net, path, SPEC)
    x = images(8, 11)
    floor, span, expected = floor_and_range(net, x)
    (reference,) = Run(read_onnx(path), [x]).outputs
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    answers = {"network": expected, "ONNX Runtime": session.run(None, {"image": x})[0]}
    try:
        import openvino
    except ImportError:
        pass
    else:
        hint = {"INFERENCE_PRECISION_HINT": "f32"}
        answers["OpenVINO"] = openvino.Core().compile_model(path, "CPU", hint)({0: x})[0]
    for engine, found in answers.items():
        assert np.abs(found - reference).mean() <= max(3 * floor, 0.003 * span), engine
