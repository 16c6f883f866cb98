from __future__ import annotations

import numpy as np
import paddle
import pytest
from paddle import nn

from quant import QAT, ExportError, inspect_file, paddle_format, save_float_model

SPEC = [paddle.static.InputSpec([None, 3, 8, 8], "float32")]


def small() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2D(3, 8, 3), nn.BatchNorm2D(8), nn.ReLU(), nn.Conv2D(8, 4, 3), nn.Flatten(),
        nn.Linear(64, 10),
    )  # fmt: skip


@pytest.fixture
def prefix(tmp_path):
    """A file of ours."""
    quanter = QAT()
    net = quanter.quantize(small())
    net.eval()
    quanter.calibrate(net, [np.random.default_rng(0).normal(size=(8, 3, 8, 8))])
    quanter.save_quantized_model(net, str(tmp_path / "net"), SPEC)
    return str(tmp_path / "net")


def doctored(prefix: str, name: str, change):
    graph = paddle_format.read_graph(prefix)
    graph.constants[name] = change(graph.constants[name].copy())
    paddle_format.save(graph, prefix)
    return inspect_file(prefix)


def test_a_file_of_ours_is_int8_all_through(prefix):
    content = inspect_file(prefix)
    assert content.failures == ()
    assert [w.storage for w in content.weights] == ["int8"] * 3
    assert [w.scales for w in content.weights] == [8, 4, 10]
    assert [w.bytes for w in content.weights] == [8 * 27, 4 * 72, 640]
    assert all(w.quantized_input for w in content.weights)
    assert content.bytes_by_dtype["int8"] == 8 * 27 + 4 * 72 + 640
    codes = paddle_format.read_constants(prefix)[content.weights[0].name]
    assert content.weights[0].codes_used == len(set(codes.ravel().tolist()))
    assert len(content.activations) == 3
    assert "3 int8" in str(content)


def test_a_float_file_is_none(tmp_path):
    save_float_model(small(), str(tmp_path / "net"), SPEC)
    content = inspect_file(str(tmp_path / "net"))
    assert content.counts == {
        "int8": 0, "integers as float32": 0, "quantized at run time": 0, "float32": 3
    }  # fmt: skip
    assert any("not an int8 model" in line for line in content.failures)


@pytest.mark.parametrize(
    "name,change,told",
    [
        (
            "0.weight.scale",
            lambda s: np.where(np.arange(8) < 2, np.nan, s),
            "2 of 8 scales are NaN",
        ),
        ("0.weight.scale", lambda s: np.where(np.arange(8) < 3, 0, s), "3 channels have codes and"),
        ("0.weight.scale", lambda s: -s, "8 of 8 scales are negative"),
        ("0.weight.scale", lambda s: s * 1e9, "a scale of"),
        ("5.input.scale", lambda s: s * 0, "its activation scale is 0"),
        ("5.input.scale", lambda s: s * np.inf, "its activation scale is inf"),
        ("5.input.scale", lambda s: s * 1e9, "its activation scale is"),
    ],
)
def test_what_cannot_be_right_is_told(name, change, told, prefix):
    content = doctored(prefix, name, lambda value: change(value).astype(np.float32))
    assert any(told in line for line in content.failures)


def test_a_channel_of_zeros_may_have_any_scale(tmp_path):
    quanter = QAT()
    net = quanter.quantize(small())
    weight = net[3].weight.numpy().copy()
    weight[1] = 0
    net[3].weight.set_value(weight)
    net.eval()
    quanter.calibrate(net, [np.random.default_rng(0).normal(size=(8, 3, 8, 8))])
    quanter.save_quantized_model(net, str(tmp_path / "net"), SPEC)
    assert inspect_file(str(tmp_path / "net")).failures == ()


def test_channels_that_leave_a_bit_unused_are_counted(prefix):
    content = doctored(prefix, "3.weight.int8", lambda codes: codes // 4)
    assert content.weights[1].loose_channels == 4
    assert "4 channels below code 64" in str(content)


def test_the_files_of_paddles_own_tools(tmp_path):
    from paddle.quantization import ImperativeQuantAware

    x = paddle.randn([8, 3, 8, 8])
    stored = {}
    for onnx_format in (True, False):
        paddle.disable_static()
        quanter = ImperativeQuantAware(
            weight_quantize_type="channel_wise_abs_max", onnx_format=onnx_format
        )
        net = small()
        quanter.quantize(net)
        net.train()
        for _ in range(2):
            net(x)
        net.eval()
        prefix = str(tmp_path / f"own{onnx_format}")
        try:
            quanter.save_quantized_model(net, prefix, input_spec=SPEC)
        except TypeError:  # with NumPy 2.4 it fails after the file is written
            assert not onnx_format
        finally:
            paddle.disable_static()
        stored[onnx_format] = inspect_file(prefix)
    assert [w.storage for w in stored[True].weights] == ["int8"] * 3
    assert stored[True].failures == ()
    assert stored[True].weights[0].scales == 8
    assert [w.storage for w in stored[False].weights] == ["quantized at run time"] * 3
    assert any("stored as float32" in line for line in stored[False].failures)
    assert len(stored[False].activations) == 3


def test_integers_that_are_stored_as_float32_are_told(prefix):
    graph = paddle_format.read_graph(prefix)
    for name in [name for name in graph.constants if name.endswith("weight.int8")]:
        graph.constants[name] = graph.constants[name].astype(np.float32)
    # The declared type of a variable is not what is read, the stored tensor is.
    paddle_format.save(graph, prefix)
    content = inspect_file(prefix)
    assert [w.storage for w in content.weights] == ["integers as float32"] * 3
    assert any("3 quantized weights are stored as float32" in line for line in content.failures)


def test_codes_beyond_int8_are_told(prefix):
    def change(codes):
        codes = codes.astype(np.float32)
        codes.ravel()[:2] = [300, -200]
        return codes

    content = doctored(prefix, "3.weight.int8", change)
    assert any("2 codes lie outside -128 to 127" in line for line in content.failures)


@pytest.mark.parametrize("damage", ["missing", "text", "short"])
def test_a_file_that_cannot_be_read_is_an_error(damage, prefix, tmp_path):
    if damage == "missing":
        (tmp_path / "net.pdiparams").unlink()
    elif damage == "text":
        (tmp_path / "net.pdmodel").write_text("this is no model at all")
    else:
        data = (tmp_path / "net.pdiparams").read_bytes()
        (tmp_path / "net.pdiparams").write_bytes(data[: len(data) // 2])
    with pytest.raises(ExportError) as error:
        inspect_file(prefix)
    assert "\n" not in str(error.value) and "net.pd" in str(error.value)
