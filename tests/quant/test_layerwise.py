from __future__ import annotations

import json

import numpy as np
import paddle
import pytest
from paddle import nn

from quant import QAT, Predictor, paddle_format
from quant.file_layers import find_layers, with_outputs

pytestmark = pytest.mark.int8_products

SPEC = [paddle.static.InputSpec([None, 3, 16, 16], "float32")]


class Net(nn.Layer):
    """A residual sum, a depthwise convolution, a BatchNorm with negative gamma, two relus."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2D(3, 16, 3, padding=1, bias_attr=False)
        self.norm1 = nn.BatchNorm2D(16)
        self.depthwise = nn.Conv2D(16, 16, 3, padding=1, groups=16)
        self.point = nn.Conv2D(16, 16, 1, bias_attr=False)
        self.norm2 = nn.BatchNorm2D(16)
        self.down = nn.Conv2D(16, 8, 3, stride=2)
        self.fc = nn.Linear(8, 10)

    def forward(self, x):
        x = nn.functional.relu(self.norm1(self.stem(x)))
        y = nn.functional.relu(self.depthwise(x))
        x = nn.functional.relu(x + self.norm2(self.point(y)))
        x = nn.functional.hardswish(self.down(x))
        return self.fc(x.mean(axis=[2, 3]))


NAMES = ["stem", "depthwise", "point", "down", "fc"]


def batches() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.normal(size=(16, 3, 16, 16)).astype(np.float32) for _ in range(2)]


def quantized(target: str, **options) -> tuple[QAT, nn.Layer]:
    quanter = QAT({"deploy_target": target, **options})
    net = quanter.quantize(Net(), input_spec=SPEC)
    net.train()
    for batch in batches():
        net(paddle.to_tensor(batch))
    signs = np.where(np.arange(16) % 3 == 0, -1.0, 1.0).astype(np.float32)
    net.norm1.weight.set_value(net.norm1.weight * paddle.to_tensor(signs))
    net.eval()
    quanter.calibrate(net, batches())
    return quanter, net


@pytest.fixture(params=["generic", "onednn"])
def exported(request, tmp_path):
    """A quanter, the network and the prefix of its file."""
    quanter, net = quantized(request.param)
    prefix = str(tmp_path / "net")
    quanter.save_quantized_model(net, prefix, SPEC)
    return quanter, net, prefix


def doctor(prefix: str, name: str, change) -> None:
    graph = paddle_format.read_graph(prefix)
    graph.constants[name] = change(graph.constants[name].copy())
    paddle_format.save(graph, prefix)


def test_no_layer_of_the_file_departs(exported):
    quanter, net, prefix = exported
    verdict = quanter.verify(net, prefix, batches())
    assert verdict.passed
    assert [row.name for row in verdict.layers] == NAMES
    assert [row.kind for row in verdict.layers] == ["Conv2D"] * 4 + ["Linear"]
    assert verdict.first_departing is None
    for row in verdict.layers:
        assert row.alone.max < 1e-5 and row.alone.agreement == 1.0
        assert row.alone.sqnr_db > 100
        assert 0.95 < row.input.agreement <= 1.0  # the last input has 128 values
        assert row.input_floor is not None and row.alone_floor > 0
    assert verdict.layers_engine == net.stem.target.engine
    assert "5 of 5 do not depart" in str(verdict)


@pytest.mark.parametrize("layer", ["stem", "depthwise", "point", "down", "fc"])
def test_a_scale_that_is_one_percent_off_is_found_by_name(exported, layer):
    quanter, net, prefix = exported

    def change(scale):
        scale[-1] *= 1.01  # one channel
        return scale

    doctor(prefix, f"{layer}.weight.scale", change)
    verdict = quanter.verify(net, prefix, batches())
    assert not verdict.passed
    assert verdict.first_departing.name == layer
    assert verdict.first_departing.departs == "layer"
    assert [row.name for row in verdict.layers if row.departs == "layer"] == [layer]
    assert any(f"the first layer that departs is {layer}:" in line for line in verdict.failures)


def test_a_wrong_bias_is_found_by_name(exported):
    quanter, net, prefix = exported
    doctor(prefix, "point.bias", lambda bias: bias + np.float32(0.01))
    verdict = quanter.verify(net, prefix, batches())
    assert not verdict.passed and verdict.first_departing.name == "point"


def test_a_flipped_code_is_found_by_name(exported):
    quanter, net, prefix = exported

    def change(codes):
        codes.ravel()[np.abs(codes.ravel()).argmax()] *= -1
        return codes

    doctor(prefix, "down.weight.int8", change)
    assert quanter.verify(net, prefix, batches()).first_departing.name == "down"


def test_a_scale_that_is_nan_is_found_by_name(exported):
    quanter, net, prefix = exported
    doctor(prefix, "point.weight.scale", lambda scale: scale * np.float32(np.nan))
    verdict = quanter.verify(net, prefix, batches())
    assert not verdict.passed and verdict.first_departing.name == "point"
    alone = json.loads(json.dumps(verdict.to_dict(layers=True)))["layers"][2]["alone"]
    # oneDNN makes numbers of it; what is not finite has no form in JSON.
    assert alone["max"] is None or alone["max"] > 0.01


def test_an_input_scale_that_is_off_is_found_at_its_reader(exported):
    quanter, net, prefix = exported
    doctor(prefix, "down.input.scale", lambda scale: scale * np.float32(1.1))
    verdict = quanter.verify(net, prefix, batches())
    assert not verdict.passed and verdict.first_departing.name == "down"


def test_what_lies_between_two_layers_is_told_from_a_layer(exported):
    quanter, net, prefix = exported
    graph = paddle_format.read_graph(prefix)
    (swish,) = [op for op in graph.ops() if op.type == "hard_swish"]
    swish.desc.type = "swish"
    del swish.desc.attrs[:]
    paddle_format.save(graph, prefix)
    verdict = quanter.verify(net, prefix, batches())
    assert not verdict.passed
    assert (verdict.first_departing.name, verdict.first_departing.departs) == ("fc", "before")
    assert [row.name for row in verdict.layers if row.departs] == ["fc"]


def test_the_figures_are_those_of_numpy(tmp_path):
    quanter = QAT()
    net = quanter.quantize(nn.Sequential(nn.Linear(6, 4)))
    x = np.random.default_rng(1).normal(size=(8, 6)).astype(np.float32)
    quanter.calibrate(net, [x])
    net.eval()
    prefix = str(tmp_path / "net")
    quanter.save_quantized_model(net, prefix, [paddle.static.InputSpec([None, 6], "float32")])
    doctor(prefix, "0.bias", lambda bias: bias + np.float32(0.25))
    (row,) = quanter.verify(net, prefix, [x]).layers
    weight = net[0].weight.numpy()
    steps = np.abs(weight).max(0) / 127
    scale = np.abs(x).max() / 127
    expected = (np.rint(x / scale) * scale) @ (np.rint(weight / steps) * steps)
    signal = np.sum(expected.astype(np.float64) ** 2)
    np.testing.assert_allclose(row.output.mean, 0.25 / np.ptp(expected), rtol=1e-3)
    np.testing.assert_allclose(row.output.max, 0.25 / np.ptp(expected), rtol=1e-3)
    decibels = 10 * np.log10(signal / (expected.size * 0.25**2))
    np.testing.assert_allclose(row.output.sqnr_db, decibels, rtol=1e-3)
    assert row.output.agreement == 0.0
    assert row.input.agreement == 1.0 and row.codes_alone == 1.0


def test_a_layer_that_runs_twice_has_a_row_per_call(networks, images, tmp_path):
    case = networks.CASES["shared_layers"]
    quanter = QAT()
    net = quanter.quantize(case.build())
    net(paddle.to_tensor(images(16)))  # statistics for the BatchNorms
    net.eval()
    quanter.calibrate(net, [images(16)])
    prefix = str(tmp_path / "net")
    quanter.save_quantized_model(net, prefix, [paddle.static.InputSpec([None, 3, 16, 16])])
    verdict = quanter.verify(net, prefix, [images(16)])
    assert verdict.passed
    titles = [row.title for row in verdict.layers]
    assert titles == ["stem.0", "conv", "conv (call 2)", "fc", "fc (call 2)"]
    constants = paddle_format.read_constants(prefix)
    (second,) = [name for name in constants if name.startswith("conv.weight.scale_")]
    doctor(prefix, second, lambda scale: scale * np.float32(1.01))
    assert quanter.verify(net, prefix, [images(16)]).first_departing.title == "conv (call 2)"


# test_qat.py verifies them for the other two.
@pytest.mark.parametrize("target", ["onnxruntime", "openvino", "tensorrt"])
def test_every_layer_of_networks_of_many_shapes_passes(odd_network, target, networks, tmp_path):
    if odd_network in ("tensor_condition", "words"):
        pytest.skip("takes integers, or runs one of two branches only")
    case = networks.CASES[odd_network]
    rng = np.random.default_rng(0)
    sizes = [[16 if size is None else size for size in shape] for shape in case.shapes]
    x = tuple(rng.normal(size=size).astype(np.float32) for size in sizes)
    spec = [paddle.static.InputSpec(list(shape), "float32") for shape in case.shapes]
    quanter = QAT({"deploy_target": target})
    net = quanter.quantize(case.build(), input_spec=spec)
    net.eval()
    quanter.calibrate(net, [x])
    quanter.save_quantized_model(net, str(tmp_path / "net"), spec)
    verdict = quanter.verify(net, str(tmp_path / "net"), [x])
    assert verdict.first_departing is None
    judged = [row for row in verdict.layers if row.alone is not None]
    assert judged and max(row.alone.max for row in judged) < 1e-4


def test_a_branch_is_left_out_with_a_note(networks, images, tmp_path):
    case = networks.CASES["tensor_condition"]
    quanter = QAT()
    net = quanter.quantize(case.build())
    net.eval()
    inputs = [images(8) * 0.1 - 1, images(8) + 2]  # one for each branch
    quanter.calibrate(net, inputs)
    prefix = str(tmp_path / "net")
    quanter.save_quantized_model(net, prefix, [paddle.static.InputSpec([None, 3, 16, 16])])
    verdict = quanter.verify(net, prefix, inputs)
    assert [row.name for row in verdict.layers] == ["stem"]
    assert any("not compared" in note and "left" in note for note in verdict.notes)


def test_weights_below_8_bits_are_not_judged_on_onednn(tmp_path):
    quanter, net = quantized("generic", weight_bits=4)
    prefix = str(tmp_path / "net")
    quanter.save_quantized_model(net, prefix, SPEC)
    verdict = quanter.verify(net, prefix, batches())
    assert verdict.passed and list(verdict.bounds) == ["paddle"]
    assert any("shown, not judged" in note for note in verdict.notes)
    last = str(verdict).splitlines()[-1]
    assert last.startswith("verified") and "oneDNN" not in last
    alone = quanter.verify(net, prefix, batches(), engines=["onednn"])
    assert alone.bounds == {} and str(alone).splitlines()[-1].startswith("not verified")


def test_the_summary_of_a_run_has_no_row_per_layer(exported):
    quanter, net, prefix = exported
    doctor(prefix, "point.bias", lambda bias: bias + np.float32(0.01))
    verdict = quanter.verify(net, prefix, batches())
    assert "layers" not in verdict.to_dict()
    assert verdict.to_dict()["first_departing"] == "point"
    assert len(verdict.to_dict(layers=True)["layers"]) == 5


def test_the_table_shows_the_layers_that_differ_most_or_all_in_order(exported):
    quanter, net, prefix = exported
    doctor(prefix, "down.bias", lambda bias: bias + np.float32(0.01))
    verdict = quanter.verify(net, prefix, batches())
    worst = verdict.layer_table().splitlines()[3]
    assert worst.startswith("down") and "departs: layer" in worst
    rows = [line.split()[0] for line in verdict.layer_table(every=True).splitlines()[3:-1]]
    assert rows == NAMES


def test_the_network_is_left_as_it_was(exported):
    quanter, net, prefix = exported
    before = {name: value.numpy().copy() for name, value in net.state_dict().items()}
    function = nn.functional.batch_norm
    hooks = {name: len(layer._forward_post_hooks) for name, layer in net.named_sublayers()}
    quanter.verify(net, prefix, batches())
    assert nn.functional.batch_norm is function
    for name, layer in net.named_sublayers():
        assert "quantized_operands" not in layer.__dict__
        assert len(layer._forward_post_hooks) == hooks[name]
    for name, value in net.state_dict().items():
        np.testing.assert_array_equal(value.numpy(), before[name])


def test_a_float_batch_norm_function_is_seen(tmp_path):
    class Functional(nn.Layer):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2D(3, 8, 3)
            self.gamma = self.create_parameter([8], default_initializer=nn.initializer.Normal())
            self.beta = self.create_parameter([8], default_initializer=nn.initializer.Normal())
            self.register_buffer("mean", paddle.randn([8]) * 0.1)
            self.register_buffer("variance", paddle.rand([8]) + 0.5)

        def forward(self, x):
            x = nn.functional.batch_norm(
                self.conv(x), self.mean, self.variance, self.gamma, self.beta
            )
            return nn.functional.relu(x).mean(axis=[2, 3])

    quanter = QAT()
    net = quanter.quantize(Functional())
    net.eval()
    quanter.calibrate(net, batches())
    prefix = str(tmp_path / "net")
    quanter.save_quantized_model(net, prefix, SPEC)
    (row,) = quanter.verify(net, prefix, batches()).layers
    assert row.alone is not None and row.alone.max < 1e-5 and not row.departs


def test_the_file_tells_which_tensors_are_whose(exported):
    _, _, prefix = exported
    layers, lost = find_layers(paddle_format.read_graph(prefix))
    assert [layer.name for layer in layers] == NAMES and lost == []
    assert layers[0].source == "x0"
    assert all(layer.has_bias for layer in layers)
    assert not any(layer.batch_norm_follows for layer in layers)


def test_to_return_what_quantizers_read_changes_nothing_on_onednn(exported, tmp_path):
    _, _, prefix = exported
    graph = paddle_format.read_graph(prefix)
    names = [layer.source for layer in find_layers(graph)[0]]
    paddle_format.save(with_outputs(graph, names), str(tmp_path / "copy"))
    found = Predictor(str(tmp_path / "copy"), "onednn")(batches()[0])
    assert len(found) == 1 + len(set(names))
    np.testing.assert_array_equal(found[0], Predictor(prefix, "onednn")(batches()[0])[0])
