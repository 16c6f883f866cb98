"""Operators of one tensor, element by element."""

from __future__ import annotations

import math

import numpy as np

from ..graph import Op
from .writer import Writer, converts

_SAME = {
    "relu": "Relu",
    "sigmoid": "Sigmoid",
    "tanh": "Tanh",
    "softsign": "Softsign",
    "exp": "Exp",
    "log": "Log",
    "sqrt": "Sqrt",
    "abs": "Abs",
    "floor": "Floor",
    "ceil": "Ceil",
    "round": "Round",
    "sign": "Sign",
    "erf": "Erf",
    "sin": "Sin",
    "cos": "Cos",
    "tan": "Tan",
    "sinh": "Sinh",
    "cosh": "Cosh",
    "asin": "Asin",
    "acos": "Acos",
    "atan": "Atan",
    "asinh": "Asinh",
    "acosh": "Acosh",
    "atanh": "Atanh",
    "reciprocal": "Reciprocal",
    "logical_not": "Not",
    "isnan_v2": "IsNaN",
    "isinf_v2": "IsInf",
}


@converts(*_SAME)
def same(w: Writer, op: Op) -> None:
    """Operators that ONNX has under another name."""
    w.node(_SAME[op.type], [w.input(op)], w.output(op))


@converts("relu6")
def relu6(w: Writer, op: Op) -> None:
    """min(max(x, 0), threshold)."""
    x = op.input("X")
    limits = [w.scalar(0.0, x), w.scalar(op.attr("threshold", 6.0), x)]
    w.node("Clip", [w.read(x), *limits], w.output(op))


@converts("hard_sigmoid")
def hard_sigmoid(w: Writer, op: Op) -> None:
    """clip(slope x + offset, 0, 1)."""
    slope, offset = op.attr("slope", 0.2), op.attr("offset", 0.5)
    w.node("HardSigmoid", [w.input(op)], w.output(op), alpha=slope, beta=offset)


@converts("hard_swish")
def hard_swish(w: Writer, op: Op) -> None:
    """X clip(x + offset, 0, threshold) / scale.

    From opset 14 on ONNX has an operator for the usual numbers, which OpenVINO fuses.
    """
    threshold, scale, offset = (
        op.attr(name, default)
        for name, default in (("threshold", 6.0), ("scale", 6.0), ("offset", 3.0))
    )
    x = w.input(op)
    if w.opset >= 14 and (threshold, scale, offset) == (6.0, 6.0, 3.0):
        w.node("HardSwish", [x], w.output(op))
        return
    if threshold == scale:
        gate = w.node("HardSigmoid", [x], alpha=1.0 / scale, beta=offset / scale)
    else:
        name = op.input("X")
        shifted = w.node("Add", [x, w.scalar(offset, name)])
        clipped = w.node("Clip", [shifted, w.scalar(0.0, name), w.scalar(threshold, name)])
        gate = w.node("Div", [clipped, w.scalar(scale, name)])
    w.node("Mul", [x, gate], w.output(op))


@converts("swish", "silu")
def swish(w: Writer, op: Op) -> None:
    """X sigmoid(beta x)."""
    x, beta = w.input(op), op.attr("beta", 1.0) if op.type == "swish" else 1.0
    inner = x if beta == 1.0 else w.node("Mul", [x, w.scalar(beta, op.input("X"))])
    w.node("Mul", [x, w.node("Sigmoid", [inner])], w.output(op))


@converts("mish")
def mish(w: Writer, op: Op) -> None:
    """X tanh(softplus(x))."""
    x = w.input(op)
    w.node("Mul", [x, w.node("Tanh", [w.node("Softplus", [x])])], w.output(op))


@converts("gelu")
def gelu(w: Writer, op: Op) -> None:
    """X / 2 (1 + erf(x / sqrt 2)), or its approximation by tanh."""
    name = op.input("X")
    x = w.read(name)
    if op.attr("approximate", False):
        cube = w.node("Mul", [w.node("Mul", [x, x]), x])
        inner = w.node("Add", [x, w.node("Mul", [cube, w.scalar(0.044715, name)])])
        inner = w.node("Mul", [inner, w.scalar(math.sqrt(2 / math.pi), name)])
        curve = w.node("Tanh", [inner])
    else:
        curve = w.node("Erf", [w.node("Div", [x, w.scalar(math.sqrt(2.0), name)])])
    half = w.node("Mul", [x, w.node("Add", [curve, w.scalar(1.0, name)])])
    w.node("Mul", [half, w.scalar(0.5, name)], w.output(op))


@converts("leaky_relu")
def leaky_relu(w: Writer, op: Op) -> None:
    """X where it is positive, alpha x elsewhere."""
    w.node("LeakyRelu", [w.input(op)], w.output(op), alpha=op.attr("alpha", 0.02))


@converts("elu")
def elu(w: Writer, op: Op) -> None:
    """X where it is positive, alpha (exp(x) - 1) elsewhere."""
    w.node("Elu", [w.input(op)], w.output(op), alpha=op.attr("alpha", 1.0))


@converts("celu")
def celu(w: Writer, op: Op) -> None:
    """max(x, 0) + min(alpha (exp(x / alpha) - 1), 0)."""
    w.node("Celu", [w.input(op)], w.output(op), alpha=op.attr("alpha", 1.0))


@converts("selu")
def selu(w: Writer, op: Op) -> None:
    """Gamma times elu."""
    alpha, gamma = op.attr("alpha"), op.attr("scale")
    w.node("Selu", [w.input(op)], w.output(op), alpha=alpha, gamma=gamma)


@converts("softplus")
def softplus(w: Writer, op: Op) -> None:
    """log(1 + exp(beta x)) / beta."""
    x, beta = op.input("X"), op.attr("beta", 1.0)
    if beta == 1.0:
        w.node("Softplus", [w.read(x)], w.output(op))
        return
    scaled = w.node("Softplus", [w.node("Mul", [w.read(x), w.scalar(beta, x)])])
    w.node("Div", [scaled, w.scalar(beta, x)], w.output(op))


@converts("logsigmoid")
def log_sigmoid(w: Writer, op: Op) -> None:
    """log(sigmoid(x)) = -softplus(-x)."""
    inner = w.node("Softplus", [w.node("Neg", [w.input(op)])])
    w.node("Neg", [inner], w.output(op))


@converts("tanh_shrink")
def tanh_shrink(w: Writer, op: Op) -> None:
    """X - tanh(x)."""
    x = w.input(op)
    w.node("Sub", [x, w.node("Tanh", [x])], w.output(op))


@converts("softshrink")
def soft_shrink(w: Writer, op: Op) -> None:
    """X moved towards 0 by lambda."""
    by = op.attr("lambda", 0.5)
    w.node("Shrink", [w.input(op)], w.output(op), lambd=by, bias=by)


@converts("hard_shrink")
def hard_shrink(w: Writer, op: Op) -> None:
    """X where |x| > threshold, 0 elsewhere."""
    w.node("Shrink", [w.input(op)], w.output(op), lambd=op.attr("threshold", 0.5), bias=0.0)


@converts("thresholded_relu")
def thresholded_relu(w: Writer, op: Op) -> None:
    """X where x > threshold, 0 elsewhere."""
    w.node("ThresholdedRelu", [w.input(op)], w.output(op), alpha=op.attr("threshold", 1.0))


@converts("brelu")
def brelu(w: Writer, op: Op) -> None:
    """clip(x, t_min, t_max)."""
    x = op.input("X")
    limits = [w.scalar(op.attr("t_min"), x), w.scalar(op.attr("t_max"), x)]
    w.node("Clip", [w.read(x), *limits], w.output(op))


@converts("prelu")
def prelu(w: Writer, op: Op) -> None:
    """X where it is positive, a learned slope times x elsewhere."""
    rank = len(w.shape(op.input("X")))
    slope = op.input("Alpha")
    if op.attr("mode") == "channel":
        channels = w.shape(slope)[-1] if w.shape(slope) else 1
        shape = [1] * rank
        shape[rank - 1 if op.attr("data_format") == "NHWC" else 1] = channels
        alpha = w.node("Reshape", [w.read(slope), w.ints(shape)])
    else:
        alpha = w.read(slope)
    w.node("PRelu", [w.input(op), alpha], w.output(op))


@converts("square")
def square(w: Writer, op: Op) -> None:
    """X x."""
    w.node("Mul", [w.input(op), w.input(op)], w.output(op))


@converts("rsqrt")
def rsqrt(w: Writer, op: Op) -> None:
    """1 / sqrt(x)."""
    w.node("Reciprocal", [w.node("Sqrt", [w.input(op)])], w.output(op))


@converts("log2", "log10", "log1p", "expm1")
def logarithms(w: Writer, op: Op) -> None:
    """Log to another base, log(1 + x) and exp(x) - 1."""
    name = op.input("X")
    x = w.read(name)
    one = w.scalar(1.0, name)
    if op.type == "log1p":
        w.node("Log", [w.node("Add", [x, one])], w.output(op))
    elif op.type == "expm1":
        w.node("Sub", [w.node("Exp", [x]), one], w.output(op))
    else:
        base = w.scalar(math.log(float(op.type[3:])), name)
        w.node("Div", [w.node("Log", [x]), base], w.output(op))


@converts("pow")
def power(w: Writer, op: Op) -> None:
    """X ** factor."""
    x = op.input("X")
    factor = w.input(op, "FactorTensor") if op.inputs("FactorTensor") else None
    w.node("Pow", [w.read(x), factor or w.scalar(op.attr("factor", 1.0), x)], w.output(op))


@converts("clip")
def clip(w: Writer, op: Op) -> None:
    """min(max(x, low), high)."""
    x = op.input("X")
    limits = []
    for slot, name in (("Min", "min"), ("Max", "max")):
        if op.inputs(slot):
            limits.append(w.node("Reshape", [w.input(op, slot), w.ints([])]))
        else:
            limits.append(w.scalar(op.attr(name), x))
    w.node("Clip", [w.read(x), *limits], w.output(op))


@converts("scale")
def scale(w: Writer, op: Op) -> None:
    """Scale x + bias, or scale (x + bias)."""
    x = op.input("X")
    factor = op.attr("scale", 1.0)
    if op.inputs("ScaleTensor"):
        by = w.node("Reshape", [w.input(op, "ScaleTensor"), w.ints([])])
    else:
        by = "" if factor == 1.0 else w.scalar(factor, x)
    bias = op.attr("bias", 0.0)
    plus = "" if bias == 0.0 else w.scalar(bias, x)
    steps = [("Mul", by), ("Add", plus)]
    if not op.attr("bias_after_scale", True):
        steps.reverse()
    value = w.read(x)
    steps = [(kind, operand) for kind, operand in steps if operand]
    if not steps:
        w.same(op, value)
        return
    for kind, operand in steps[:-1]:
        value = w.node(kind, [value, operand])
    w.node(steps[-1][0], [value, steps[-1][1]], w.output(op))


@converts("softmax", "log_softmax")
def softmax(w: Writer, op: Op) -> None:
    """exp(x) / sum(exp(x)) along an axis, or its logarithm."""
    kind = "Softmax" if op.type == "softmax" else "LogSoftmax"
    w.node(kind, [w.input(op)], w.output(op), axis=op.attr("axis", -1))


@converts("cast")
def cast(w: Writer, op: Op) -> None:
    """The same values in another type."""
    from onnx import helper

    dtype = helper.np_dtype_to_tensor_dtype(np.dtype(w.dtype(op.output("Out"))))
    w.node("Cast", [w.input(op)], w.output(op), to=dtype)


@converts("assign", "share_data", "share_buffer")
def assign(w: Writer, op: Op) -> None:
    """The tensor itself."""
    w.same(op, w.input(op))


@converts("dropout")
def dropout(w: Writer, op: Op) -> None:
    """In evaluation: x, or x (1 - p) where training did not scale."""
    x = op.input("X")
    if op.attr("dropout_implementation", "downgrade_in_infer") == "upscale_in_train":
        w.same(op, w.read(x))
        return
    kept = w.scalar(1.0 - op.attr("dropout_prob", 0.5), x)
    w.node("Mul", [w.read(x), kept], w.output(op))
