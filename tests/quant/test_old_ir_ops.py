"""Functions and methods of tensors that a network may call, traced and run as a file."""

from __future__ import annotations

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest
from paddle import nn

from quant import Predictor, save_float_model


class Calls(nn.Layer):
    def __init__(self, function):
        super().__init__()
        self.fc = nn.Linear(6, 6)
        self.function = function

    def forward(self, x):
        return self.function(self.fc(x))


def as_float(y):
    return paddle.cast(y, "float32")


FUNCTIONS = {
    "abs": lambda y: paddle.abs(y),
    "all": lambda y: as_float(paddle.all(y > -1, axis=-1)),
    "amax": lambda y: paddle.amax(y, axis=-1),
    "amin": lambda y: paddle.amin(y, axis=-1, keepdim=True),
    "any": lambda y: as_float(paddle.any(y > 1)),
    "argmax": lambda y: as_float(paddle.argmax(y, axis=-1)),
    "argmin": lambda y: as_float(paddle.argmin(y)),
    "bmm": lambda y: paddle.bmm(y.unsqueeze(1), y.unsqueeze(2)),
    "cosine_similarity": lambda y: F.cosine_similarity(y, y * 2 + 1),
    "dot": lambda y: paddle.dot(y, y * 2),
    "einsum": lambda y: paddle.einsum("nc,mc->nm", y, y),
    "erf": lambda y: paddle.erf(y),
    "exp": lambda y: paddle.exp(y),
    "expand_as": lambda y: paddle.expand_as(y[:, :1], y),
    "gelu": lambda y: F.gelu(y, approximate=True),
    "greater_than": lambda y: as_float(paddle.greater_than(y, y * 2)),
    "isnan": lambda y: as_float(paddle.isnan(y)),
    "log": lambda y: paddle.log(y * y + 1),
    "log_softmax": lambda y: F.log_softmax(y, axis=-1),
    "logical_and": lambda y: as_float(paddle.logical_and(y > 0, y < 1)),
    "logical_not": lambda y: as_float(paddle.logical_not(y > 0)),
    "logsumexp": lambda y: paddle.logsumexp(y, axis=-1, keepdim=True),
    "matmul": lambda y: paddle.matmul(y, y, transpose_y=True),
    "maximum": lambda y: paddle.maximum(y, y * 2),
    "mean": lambda y: paddle.mean(y, axis=-1),
    "minimum": lambda y: paddle.minimum(y, y * 2),
    "multiply": lambda y: paddle.multiply(y, y),
    "normalize": lambda y: F.normalize(y, axis=-1),
    "reciprocal": lambda y: paddle.reciprocal(y * y + 1),
    "roll": lambda y: paddle.roll(y, 1, axis=-1),
    "round": lambda y: paddle.round(y * 3),
    "rsqrt": lambda y: paddle.rsqrt(y * y + 1),
    "sigmoid": lambda y: F.sigmoid(y),
    "sign": lambda y: paddle.sign(y),
    "silu": lambda y: F.silu(y),
    "softmax": lambda y: F.softmax(y, axis=-1),
    "softplus": lambda y: F.softplus(y, beta=2.0, threshold=1.0),
    "sqrt": lambda y: paddle.sqrt(y * y),
    "square": lambda y: paddle.square(y),
    "stack": lambda y: paddle.stack([y, y * 2], axis=1),
    "sum": lambda y: paddle.sum(y, axis=-1, keepdim=True),
    "sum_of_all": lambda y: paddle.sum(y),
    "sum_of_type": lambda y: paddle.sum(y, axis=[0, 1], dtype="float32"),
    "tanh": lambda y: F.tanh(y),
    "topk": lambda y: paddle.topk(y, 2)[0],
    "tril": lambda y: paddle.tril(y, 1),
    "triu": lambda y: paddle.triu(y),
    "where": lambda y: paddle.where(y > 0, y, y * 0.1),
}
METHODS = {
    "abs": lambda y: y.abs(),
    "all": lambda y: as_float((y > -1).all(axis=-1)),
    "amax": lambda y: y.amax(-1),
    "any": lambda y: as_float((y > 1).any(axis=-1)),
    "argmax": lambda y: as_float(y.argmax(-1)),
    "astype": lambda y: (y > 0).astype("float32") * y,
    "chunk": lambda y: y.chunk(2, -1)[1],
    "clip": lambda y: y.clip(-0.5, 0.5),
    "dot": lambda y: y.dot(y * 2),
    "exp": lambda y: y.exp(),
    "expand_as": lambda y: y[:, :1].expand_as(y),
    "floor": lambda y: y.floor(),
    "greater_than": lambda y: as_float(y.greater_than(y * 2)),
    "isnan": lambda y: as_float(y.isnan()),
    "log": lambda y: (y * y + 1).log(),
    "logsumexp": lambda y: y.logsumexp(-1),
    "matmul": lambda y: y.matmul(y * 2, transpose_y=True),
    "matmul_operator": lambda y: y.unsqueeze(1) @ y.unsqueeze(2),
    "max": lambda y: y.max(axis=-1),
    "maximum": lambda y: y.maximum(y * 2),
    "mean": lambda y: y.mean(-1, keepdim=True),
    "minimum": lambda y: y.minimum(y * 2),
    "multiply": lambda y: y.multiply(y),
    "pow": lambda y: y.pow(2.0),
    "roll": lambda y: y.roll(1, -1),
    "round": lambda y: (y * 3).round(),
    "rsqrt": lambda y: (y * y + 1).rsqrt(),
    "sigmoid": lambda y: y * y.sigmoid(),
    "sign": lambda y: y.sign(),
    "sqrt": lambda y: (y * y).sqrt(),
    "square": lambda y: y.square(),
    "sum": lambda y: y.sum(axis=-1),
    "sum_keepdim": lambda y: y.sum(-1, keepdim=True),
    "tanh": lambda y: y.tanh(),
}
CALLS = {f"paddle.{name}": call for name, call in FUNCTIONS.items()}
CALLS.update({f"tensor.{name}": call for name, call in METHODS.items()})


@pytest.mark.parametrize("name", CALLS)
def test_a_file_computes_what_the_network_computes(name, tmp_path):
    net = Calls(CALLS[name])
    net.eval()
    x = np.random.default_rng(0).normal(size=(4, 6)).astype(np.float32)
    expected = net(paddle.to_tensor(x)).numpy()
    save_float_model(net, str(tmp_path / "net"), [paddle.static.InputSpec([4, 6], "float32")])
    found = Predictor(str(tmp_path / "net"))(x)[0]
    np.testing.assert_allclose(found.reshape(expected.shape), expected, rtol=1e-4, atol=1e-5)


def test_paddles_own_functions_are_back_afterwards(tmp_path):
    names = [name for name in dir(paddle._C_ops) if not name.startswith("__")]
    before = {name: getattr(paddle._C_ops, name) for name in names}
    methods = {
        name: getattr(paddle.Tensor, name) for name in METHODS if hasattr(paddle.Tensor, name)
    }
    spec = [paddle.static.InputSpec([4, 6], "float32")]
    save_float_model(Calls(F.sigmoid), str(tmp_path / "net"), spec)

    def fails(y):
        raise RuntimeError("no")

    with pytest.raises(ValueError, match="no"):
        save_float_model(Calls(fails), str(tmp_path / "net"), spec)
    assert all(getattr(paddle._C_ops, name) is value for name, value in before.items())
    assert all(getattr(paddle.Tensor, name) is value for name, value in methods.items())
    np.testing.assert_allclose(F.sigmoid(paddle.zeros([2])), [0.5, 0.5])
