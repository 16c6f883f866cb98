"""Each operator that has an ONNX form, against Paddle itself, run by ONNX Runtime."""

from __future__ import annotations

import numpy as np
import onnxruntime
import paddle
import pytest
from paddle import nn
from paddle.nn import functional as F

from quant import ExportError, save_float_onnx


class Function(nn.Layer):
    """A function of one tensor, with layers that belong to it."""

    def __init__(self, function, *layers):
        super().__init__()
        self.layers = nn.LayerList(layers)
        self.function = function

    def forward(self, x):
        return self.function(x, *self.layers)


def run(path, x: np.ndarray) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: x})


IMAGE = (2, 6, 8, 8)
ROWS = (2, 5, 12)

ACTIVATIONS = {
    name: getattr(F, name)
    for name in (
        "relu relu6 sigmoid tanh hardsigmoid hardswish hardtanh silu swish mish gelu leaky_relu "
        "elu celu selu softplus softsign log_sigmoid tanhshrink softshrink hardshrink "
        "thresholded_relu softmax log_softmax"
    ).split()
}
FUNCTIONS = {
    "gelu by tanh": lambda x: F.gelu(x, approximate=True),
    "softplus beta": lambda x: F.softplus(x, beta=2.0),
    "exp log": lambda x: paddle.log(paddle.exp(x) + 1),
    "roots": lambda x: paddle.sqrt(x.abs()) + paddle.rsqrt(x.abs() + 1),
    "rounding": lambda x: paddle.floor(x) + paddle.ceil(x) * 2 + paddle.round(x) * 4,
    "trigonometry": lambda x: paddle.sin(x) + paddle.cos(x) * paddle.atan(x),
    "erf sign": lambda x: paddle.erf(x) + paddle.sign(x),
    "square reciprocal": lambda x: paddle.square(x) + paddle.reciprocal(x + 10),
    "logarithms": lambda x: paddle.log2(x.abs() + 1) + paddle.log1p(x.abs()) + paddle.expm1(x),
    "pow": lambda x: x.abs() ** 1.5,
    "clip": lambda x: paddle.clip(x, -0.5, 0.7),
    "clip one side": lambda x: paddle.clip(x, min=0.1),
    "scale": lambda x: (
        paddle.scale(x, 2.0, 1.0) + paddle.scale(x, 2.0, 1.0, bias_after_scale=False)
    ),
    "plain numbers": lambda x: (x * 2 + 1 - 0.5) / 3,
    "negative axis softmax": lambda x: F.softmax(x, axis=1),
    "reflected operands": lambda x: 1.0 - x + 2.0 / (x + 10),
    "column": lambda x: paddle.add(x, x.mean([2, 3], keepdim=True)),
    "floor division": lambda x: paddle.floor_divide(x, paddle.full_like(x, 0.3)),
    "modulo": lambda x: paddle.mod(x, paddle.full_like(x, 0.3)),
    "maximum": lambda x: paddle.maximum(x, x * x) + paddle.minimum(x, -x),
    "compare": lambda x: paddle.where(x > 0.1, x, -x) + (x <= 0).astype("float32"),
    "equal": lambda x: (x == x.max()).astype("float32") + (x != 0).astype("float32"),
    "logic": lambda x: paddle.logical_and(x > 0, paddle.logical_not(x > 1)).astype("float32"),
    "any all": lambda x: (x > 1).any(axis=1).astype("float32") + (x > -9).all().astype("float32"),
    "sum of several": lambda x: paddle.add_n([x, x * 2, x * 3]),
    "means": lambda x: x.mean() + x.mean([2, 3]) + x.mean(1, keepdim=True).mean([2, 3]),
    "reductions": lambda x: x.sum([2, 3]) + x.max([2, 3]) + x.min(2).max(-1) + x.prod(3).sum(2),
    "logsumexp": lambda x: paddle.logsumexp(x, axis=[1]),
    "norms": lambda x: x.norm(p=2, axis=1) + x.norm(p=1, axis=1) + x.norm(p=3, axis=1),
    "normalize": lambda x: F.normalize(x, axis=1),
    "reshape": lambda x: x.reshape([0, 3, -1]),
    "reshape by shape": lambda x: x.reshape([paddle.shape(x)[0], -1]),
    "flatten": lambda x: x.flatten(1) + x.flatten(1, 2).flatten(1),
    "flatten all": lambda x: x.flatten(2).flatten(0, 1),
    "transpose": lambda x: x.transpose([0, 2, 3, 1]),
    "squeeze": lambda x: x[:, :1].squeeze(1) + x[:, 1:2].squeeze([1]),
    "unsqueeze": lambda x: x.unsqueeze([1, -1]),
    "slices": lambda x: x[:, 1:4, ::2, -3:] + x[:, 2:5, 1::2, :3],
    "index": lambda x: x[:, 0] + x[:, -1],
    "split": lambda x: paddle.concat(paddle.split(x, 3, axis=1)[::-1], axis=1),
    "split sizes": lambda x: paddle.concat(paddle.split(x, [1, 2, -1], axis=1)[::-1], axis=1),
    "unbind stack": lambda x: paddle.stack(paddle.unbind(x, axis=1), axis=-1),
    "expand tile": lambda x: x[:, :1].expand([-1, 4, -1, -1]) + x[:, :1].tile([1, 4, 1, 1]),
    "expand as": lambda x: x[:, :1].expand_as(x),
    "pad": lambda x: F.pad(x, [1, 2, 0, 1], value=0.5),
    "pad reflect": lambda x: F.pad(x, [1, 2, 2, 1], mode="reflect"),
    "pad edge": lambda x: F.pad(x, [1, 2, 2, 1], mode="replicate"),
    "flip roll": lambda x: paddle.flip(x, [2]) + paddle.roll(x, 3, 3) + paddle.roll(x, -1, 1),
    "pixel shuffle": lambda x: F.pixel_shuffle(x[:, :4], 2),
    "channel shuffle": lambda x: F.channel_shuffle(x, 3),
    "gather": lambda x: paddle.gather(x, paddle.to_tensor([2, 0]), axis=1),
    "index select": lambda x: paddle.index_select(x, paddle.to_tensor([1, 1]), axis=2),
    "argmax": lambda x: x.argmax(1) + x.argmin(1),
    "topk": lambda x: paddle.topk(x.flatten(1), 3)[0],
    "cumsum": lambda x: paddle.cumsum(x, axis=1),
    "zeros like": lambda x: paddle.ones_like(x) + paddle.zeros_like(x) + x,
    "bmm": lambda x: paddle.bmm(x.flatten(2), x.flatten(2).transpose([0, 2, 1])),
    "matmul": lambda x: paddle.matmul(x, x, transpose_y=True),
    "einsum": lambda x: paddle.einsum("nchw,ncvw->nchv", x, x),
    "dropout": lambda x: F.dropout(x, 0.5, training=False),
    "dropout scaled": lambda x: F.dropout(x, 0.4, training=False, mode="downscale_in_infer"),
    "max pool": lambda x: F.max_pool2d(x, 3, 2, 1),
    "max pool ceil": lambda x: F.max_pool2d(x, 3, 2, ceil_mode=True),
    "average pool": lambda x: F.avg_pool2d(x, 2) + F.avg_pool2d(x, 3, 2, 1)[:, :, :4, :4],
    "average with padding": lambda x: F.avg_pool2d(x, 3, 2, 1, exclusive=False),
    "pool to size": lambda x: F.adaptive_avg_pool2d(x, 4) + F.adaptive_max_pool2d(x, 4),
    "pool to odd size": lambda x: (
        F.adaptive_avg_pool2d(x, [3, 5]) + F.adaptive_max_pool2d(x, [3, 5])
    ),
    "pool to more": lambda x: F.adaptive_avg_pool2d(x, 11),
    "pool to one": lambda x: F.adaptive_avg_pool2d(x, 1) + F.adaptive_max_pool2d(x, 1),
    "up nearest": lambda x: F.interpolate(x, scale_factor=2, mode="nearest"),
    "up bilinear": lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"),
    "bilinear corners": lambda x: F.interpolate(x, [13, 5], mode="bilinear", align_corners=True),
    "bilinear asymmetric": lambda x: F.interpolate(x, [16, 16], mode="bilinear", align_mode=1),
    "bicubic": lambda x: F.interpolate(x, [16, 12], mode="bicubic"),
    "size of another": lambda x: F.interpolate(x, x.shape[2:], mode="nearest") + x,
}
LAYERS = {
    "conv": [nn.Conv2D(6, 4, 3, stride=2, padding=1)],
    "conv without bias": [nn.Conv2D(6, 4, 3, bias_attr=False)],
    "grouped dilated": [nn.Conv2D(6, 9, 3, groups=3, dilation=2, padding=[1, 2])],
    "depthwise": [nn.Conv2D(6, 6, 3, groups=6, padding="SAME")],
    "four paddings": [nn.Conv2D(6, 4, 3, padding=[0, 1, 2, 1])],
    "same strided": [nn.Conv2D(6, 4, 3, stride=2, padding="SAME")],
    "valid": [nn.Conv2D(6, 4, 3, padding="VALID")],
    "reflected": [nn.Conv2D(6, 4, 3, padding=1, padding_mode="reflect")],
    "transposed": [nn.Conv2DTranspose(6, 4, 3, stride=2, padding=1, output_padding=1)],
    "transposed grouped": [nn.Conv2DTranspose(6, 6, 2, stride=2, groups=3)],
    "batch norm": [nn.BatchNorm2D(6)],
    "conv and norm": [nn.Conv2D(6, 4, 1, bias_attr=False), nn.BatchNorm2D(4)],
    "old batch norm": [nn.BatchNorm(6, act="relu")],
    "instance norm": [nn.InstanceNorm2D(6)],
    "group norm": [nn.GroupNorm(3, 6)],
    "prelu": [nn.PReLU(6)],
    "prelu of one": [nn.PReLU()],
    "local pool": [nn.MaxPool2D(2), nn.AvgPool2D(2)],
    "maxout": [nn.Conv2D(6, 4, 1), nn.ReLU6()],
}
SEQUENCES = {
    "linear": [nn.Linear(12, 7)],
    "layer norm": [nn.LayerNorm(12)],
    "layer norm of two axes": [nn.LayerNorm([5, 12])],
    "attention": [nn.MultiHeadAttention(12, 3)],
    "encoder": [nn.TransformerEncoderLayer(12, 3, 24, dropout=0.0)],
    "conv1d": [nn.Conv1D(5, 4, 3, padding=1)],
    "pool1d": [nn.MaxPool1D(2), nn.AdaptiveAvgPool1D(3)],
}


def check(net, shape, opset, path):
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    for layer in net.sublayers():
        if hasattr(layer, "_variance"):
            layer._mean.set_value(
                np.random.default_rng(1).normal(size=layer._mean.shape).astype("f")
            )
    net.eval()
    expected = net(paddle.to_tensor(x)).numpy()
    save_float_onnx(net, path, [paddle.static.InputSpec([None, *shape[1:]], "float32")], opset)
    (found,) = run(path, x)
    assert found.shape == expected.shape and found.dtype == expected.dtype
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("name", {**ACTIVATIONS, **FUNCTIONS})
def test_functions(name, tmp_path):
    function = {**ACTIVATIONS, **FUNCTIONS}[name]
    for opset in (13, 21):
        check(Function(function), IMAGE, opset, str(tmp_path / "net.onnx"))


@pytest.mark.parametrize("name", LAYERS)
def test_layers_of_images(name, tmp_path):
    paddle.seed(0)
    for opset in (13, 17, 21):
        check(nn.Sequential(*LAYERS[name]), IMAGE, opset, str(tmp_path / "net.onnx"))


@pytest.mark.parametrize("name", SEQUENCES)
def test_layers_of_rows(name, tmp_path):
    for opset in (13, 17, 21):
        check(nn.Sequential(*SEQUENCES[name]), ROWS, opset, str(tmp_path / "net.onnx"))


def test_channels_last(tmp_path):
    net = nn.Sequential(
        nn.Conv2D(6, 4, 3, data_format="NHWC"),
        nn.BatchNorm2D(4, data_format="NHWC"),
        nn.ReLU(),
        nn.MaxPool2D(2, data_format="NHWC"),
    )
    check(net, (2, 8, 8, 6), 17, str(tmp_path / "net.onnx"))


def test_embedding(tmp_path):
    net = nn.Sequential(nn.Embedding(11, 4), nn.Linear(4, 3))
    ids = np.array([[1, 4, 10], [0, 0, 7]], np.int64)
    path = str(tmp_path / "net.onnx")
    save_float_onnx(net, path, [paddle.static.InputSpec([None, 3], "int64")])
    expected = net(paddle.to_tensor(ids)).numpy()
    np.testing.assert_allclose(run(path, ids)[0], expected, rtol=1e-5, atol=1e-6)


class Unknown(nn.Layer):
    def __init__(self):
        super().__init__()
        self.inner = nn.Sequential(
            nn.Conv2D(6, 4, 1), Function(lambda x: paddle.lgamma(x.abs() + 1))
        )

    def forward(self, x):
        return paddle.digamma(self.inner(x) + 3)


def test_operators_without_a_form_are_named_with_their_layers_and_nothing_is_written(tmp_path):
    spec = [paddle.static.InputSpec([None, *IMAGE[1:]], "float32")]
    with pytest.raises(ExportError) as caught:
        save_float_onnx(Unknown(), str(tmp_path / "out" / "net.onnx"), spec)
    told = str(caught.value)
    assert "lgamma (in inner.1)" in told and "digamma (in Unknown.forward)" in told
    assert not list(tmp_path.iterdir())


class Branch(nn.Layer):
    def forward(self, x):
        if x.mean() > 0:
            y = x + 1
        else:
            y = x - 1
        return y


def test_control_flow_is_refused_by_name(tmp_path):
    spec = [paddle.static.InputSpec([None, *IMAGE[1:]], "float32")]
    with pytest.raises(ExportError, match=r"conditional_block \(in Branch.forward\)"):
        save_float_onnx(Branch(), str(tmp_path / "net.onnx"), spec)
