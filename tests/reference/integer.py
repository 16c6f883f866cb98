"""Runs an exported model in integers: int8 x int8 -> int32 -> requantized, in NumPy.

What a quantizer gives are integers with a step; a dequantizer changes nothing about that; a product
of two such tensors is summed as integers and only then multiplied by both steps. What stands
between, where a model has float operators, is computed in float64. There is no code of the exporter
in here, and none of Paddle's. Its quantize_linear is read as its CPU kernel computes it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from .graph import Graph, Node


@dataclass
class Codes:
    """Integers that stand for (values - zero) * step; both may be per channel along `axis`."""

    values: np.ndarray
    step: np.ndarray
    zero: np.ndarray
    axis: int = -1

    def _wide(self, parameter: np.ndarray) -> np.ndarray:
        if parameter.size == 1:
            return parameter.reshape([])
        shape = [1] * self.values.ndim
        shape[self.axis] = parameter.size
        return parameter.reshape(shape)

    def centred(self) -> np.ndarray:
        """The integers less their zero point, int64."""
        return self.values.astype(np.int64) - self._wide(self.zero.astype(np.int64))

    def real(self) -> np.ndarray:
        """The numbers that they stand for, float64."""
        return self.centred() * self._wide(self.step.astype(np.float64))


Value = "np.ndarray | Codes"
Function = Callable[["Run", Node], None]
OPERATORS: dict[str, Function] = {}
INT32 = 2**31


def operator(*kinds: str) -> Callable[[Function], Function]:
    """Registers the function of some operators."""

    def register(function: Function) -> Function:
        OPERATORS.update(dict.fromkeys(kinds, function))
        return function

    return register


class Run:
    """One run of a graph; `values` holds every tensor afterwards, `integer_products` the nodes
    that were computed in integers."""

    def __init__(self, graph: Graph, inputs: list[np.ndarray]) -> None:
        self.values: dict[str, np.ndarray | Codes] = dict(graph.constants)
        self.integer_products: list[str] = []
        self.values.update(zip(graph.inputs, (x.astype(np.float64) for x in inputs)))
        for node in graph.nodes:
            OPERATORS[node.kind](self, node)
        self.outputs = [self.real(name) for name in graph.outputs]

    def real(self, name: str) -> np.ndarray:
        """A tensor in numbers."""
        value = self.values[name]
        return value.real() if isinstance(value, Codes) else value

    def first(self, node: Node) -> str:
        """The name of the first input."""
        for slot in ("", "X", "Input"):
            if node.inputs.get(slot):
                return node.inputs[slot][0]
        raise KeyError(node.inputs)

    def put(self, node: Node, value: np.ndarray | Codes) -> None:
        """Sets the result of a node."""
        self.values[node.output()] = value


# --- quantizers ----------------------------------------------------------------------------


@operator("quantize_linear")
def _quantize(run: Run, node: Node) -> None:
    scale = np.float64(run.values[node.input("Scale")].reshape([-1])[0])
    codes = np.clip(np.rint(run.real(node.input("X")) * 127 / scale), -128, 127)
    run.put(node, Codes(codes.astype(np.int64), np.array([scale / 127]), np.zeros(1)))


@operator("dequantize_linear")
def _dequantize(run: Run, node: Node) -> None:
    x = run.values[node.input("X")]
    if isinstance(x, Codes):
        run.put(node, x)
    elif x.dtype == np.int8:
        scale = run.values[node.input("Scale")].astype(np.float64)
        run.put(node, Codes(x, scale / 127, np.zeros(1), node.attributes["quant_axis"]))
    else:  # tells oneDNN a scale; nobody reads it
        run.put(node, x)


@operator("QuantizeLinear")
def _quantize_onnx(run: Run, node: Node) -> None:
    step, zero = (run.values[node.input(i)] for i in (1, 2))
    limits = np.iinfo(zero.dtype)
    codes = np.rint(run.real(node.input(0)) / np.float64(step)) + np.int64(zero)
    codes = np.clip(codes, limits.min, limits.max).astype(np.int64)
    run.put(node, Codes(codes, np.atleast_1d(step), np.atleast_1d(zero)))


@operator("DequantizeLinear")
def _dequantize_onnx(run: Run, node: Node) -> None:
    x = run.values[node.input(0)]
    if isinstance(x, Codes):
        run.put(node, x)
        return
    step, zero = (np.atleast_1d(run.values[node.input(i)]) for i in (1, 2))
    run.put(node, Codes(x, step, zero, node.attributes.get("axis", 1)))


# --- products ------------------------------------------------------------------------------


def columns(x: np.ndarray, kernel: list[int], node: Node, fill: float = 0.0) -> np.ndarray:
    """Windows [N, C, OH, OW, KH, KW] of x [N, C, H, W]."""
    stride, dilation, pads = geometry(x, kernel, node)
    top, left, bottom, right = pads
    x = np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)), constant_values=fill)
    reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilation)]
    windows = np.lib.stride_tricks.sliding_window_view(x, reach, axis=(2, 3))
    return windows[:, :, :: stride[0], :: stride[1], :: dilation[0], :: dilation[1]]


def geometry(
    x: np.ndarray, kernel: list[int], node: Node
) -> tuple[list[int], list[int], tuple[int, int, int, int]]:
    """Strides, dilations and padding (top, left, bottom, right)."""
    given = node.attributes
    stride = list(given.get("strides") or [1, 1])
    dilation = list(given.get("dilations") or [1, 1])
    same = given.get("padding_algorithm") == "SAME" or given.get("auto_pad") == b"SAME_UPPER"
    if same:
        pads = []
        for size, k, s in zip(x.shape[2:], kernel, stride):
            total = max((-(-size // s) - 1) * s + k - size, 0)
            pads.append((total // 2, total - total // 2))
        return stride, [1, 1], (pads[0][0], pads[1][0], pads[0][1], pads[1][1])
    if given.get("padding_algorithm") == "VALID":
        return stride, dilation, (0, 0, 0, 0)
    if "pads" in given:
        return stride, dilation, tuple(given["pads"])  # type: ignore[return-value]
    p = list(given.get("paddings") or [0, 0])
    return stride, dilation, (p[0], p[1], p[0], p[1]) if len(p) == 2 else (p[0], p[2], p[1], p[3])


def convolve(x: np.ndarray, weight: np.ndarray, node: Node) -> np.ndarray:
    """Sums of products. Of integers below 2^53 float64 sums are exact, and BLAS is fast."""
    groups = int(node.attributes.get("groups", node.attributes.get("group", 1)) or 1)
    windows = columns(x.astype(np.float64), list(weight.shape[2:]), node)
    n, _, height, width = windows.shape[:4]
    parts = []
    for part, kernel in zip(np.split(windows, groups, 1), np.split(weight, groups, 0)):
        rows = part.transpose([0, 2, 3, 1, 4, 5]).reshape([n * height * width, -1])
        parts.append(rows @ kernel.reshape([len(kernel), -1]).T.astype(np.float64))
    out = np.concatenate(parts, axis=1)
    return out.reshape([n, height, width, -1]).transpose([0, 3, 1, 2])


def fits_int32(sums: np.ndarray) -> np.ndarray:
    """The sums as int64, which are whole and fit the accumulator of a kernel."""
    assert np.array_equal(sums, np.rint(sums)) and np.abs(sums).max(initial=0) < INT32
    return sums.astype(np.int64)


@operator("conv2d", "depthwise_conv2d", "Conv")
def _convolution(run: Run, node: Node) -> None:
    onnx = node.kind == "Conv"
    x, weight = (run.values[node.input(i)] for i in ((0, 1) if onnx else ("Input", "Filter")))
    bias = run.values[node.input(2)] if onnx and node.has(2) else None
    if not (isinstance(x, Codes) and isinstance(weight, Codes)):
        names = [node.input(i) for i in ((0, 1) if onnx else ("Input", "Filter"))]
        out = convolve(run.real(names[0]), run.real(names[1]), node)
        run.put(node, out if bias is None else out + run.real(node.input(2)).reshape([1, -1, 1, 1]))
        return
    sums = fits_int32(convolve(x.centred(), weight.centred(), node))
    step = (x.step.astype(np.float64) * weight.step.astype(np.float64)).reshape([1, -1, 1, 1])
    run.put(node, with_bias(run, node, sums, step, bias))


@operator("Gemm", "MatMul", "matmul_v2")
def _matmul(run: Run, node: Node) -> None:
    slots = ("X", "Y") if node.kind == "matmul_v2" else (0, 1)
    x, y = (run.values[node.input(slot)] for slot in slots)
    bias = run.values[node.input(2)] if node.kind == "Gemm" and node.has(2) else None
    flip = bool(node.attributes.get("trans_y"))
    if not (isinstance(x, Codes) and isinstance(y, Codes)):
        a, b = (run.real(node.input(slot)) for slot in slots)
        out = a @ (b.swapaxes(-1, -2) if flip else b)
        run.put(node, out if bias is None else out + run.real(node.input(2)))
        return
    b = y.centred().T if flip else y.centred()
    sums = fits_int32(x.centred().astype(np.float64) @ b.astype(np.float64))
    step = x.step.astype(np.float64) * y.step.astype(np.float64)
    run.put(node, with_bias(run, node, sums, step, bias))


def with_bias(
    run: Run, node: Node, sums: np.ndarray, step: np.ndarray, bias: np.ndarray | Codes | None
) -> np.ndarray:
    """Sums times step; an int32 bias is added to the sums, a float one to the product."""
    run.integer_products.append(node.output())
    shape = [1, -1, 1, 1] if sums.ndim == 4 else [-1]
    if isinstance(bias, Codes):
        np.testing.assert_allclose(bias.step.reshape(shape), step, rtol=1e-5)
        total = sums + bias.values.astype(np.int64).reshape(shape)
        assert np.abs(total).max(initial=0) < INT32
        return total * step
    out = sums * step
    return out if bias is None else out + bias.astype(np.float64).reshape(shape)


# --- what stands between, in float64 ---------------------------------------------------------


def sigmoid(x: np.ndarray) -> np.ndarray:
    """1 / (1 + exp(-x))."""
    return 1 / (1 + np.exp(-x))


def unary(*kinds: str) -> Callable[[Callable[[np.ndarray, dict], np.ndarray]], None]:
    """Registers a function of one tensor and the attributes."""

    def register(function: Callable[[np.ndarray, dict], np.ndarray]) -> None:
        def apply(run: Run, node: Node) -> None:
            run.put(node, function(run.real(run.first(node)), node.attributes))

        operator(*kinds)(apply)

    return register


unary("relu", "Relu")(lambda x, _: np.maximum(x, 0))
unary("relu6")(lambda x, _: np.clip(x, 0, 6))
unary("sigmoid", "Sigmoid")(lambda x, _: sigmoid(x))
unary("tanh", "Tanh")(lambda x, _: np.tanh(x))
unary("silu", "swish")(lambda x, _: x * sigmoid(x))
unary("hard_swish", "HardSwish")(lambda x, _: x * np.clip(x + 3, 0, 6) / 6)
unary("hard_sigmoid")(lambda x, a: np.clip(x * a["slope"] + a["offset"], 0, 1))
unary("Elu")(lambda x, a: np.where(x > 0, x, a.get("alpha", 1.0) * np.expm1(x)))
unary("HardSigmoid")(lambda x, a: np.clip(x * a.get("alpha", 0.2) + a.get("beta", 0.5), 0, 1))
unary("leaky_relu", "LeakyRelu")(lambda x, a: np.where(x > 0, x, x * a["alpha"]))
unary("clip")(lambda x, a: np.clip(x, a["min"], a["max"]))
unary("GlobalAveragePool")(lambda x, _: x.mean((2, 3), keepdims=True))
unary("reduce_mean")(lambda x, a: x.mean(tuple(a["dim"]), keepdims=bool(a.get("keep_dim"))))
unary("ReduceMean")(lambda x, a: x.mean(tuple(a["axes"]), keepdims=bool(a.get("keepdims", 1))))


@operator("scale")
def _scale(run: Run, node: Node) -> None:
    x, a = run.real(node.input("X")), node.attributes
    after = a.get("bias_after_scale", True)
    run.put(node, x * a["scale"] + a["bias"] if after else (x + a["bias"]) * a["scale"])


@operator("Clip")
def _clip(run: Run, node: Node) -> None:
    low, high = (run.real(node.input(i)) for i in (1, 2))
    run.put(node, np.clip(run.real(node.input(0)), low, high))


@operator("Max")
def _max(run: Run, node: Node) -> None:
    x, other = run.values[node.input(0)], run.values[node.input(1)]
    if isinstance(x, Codes):  # of integer codes, not of what they stand for
        run.put(node, Codes(np.maximum(x.values, other), x.step, x.zero, x.axis))
    else:
        run.put(node, np.maximum(x, run.real(node.input(1))))


def _binary(function: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> Function:
    def apply(run: Run, node: Node) -> None:
        slots = ("X", "Y") if "X" in node.inputs else (0, 1)
        x, y = (run.real(node.input(slot)) for slot in slots)
        axis = node.attributes.get("axis", -1)
        if axis not in (-1, None) and y.ndim < x.ndim:
            y = y.reshape([*y.shape, *[1] * (x.ndim - axis - y.ndim)])
        run.put(node, function(x, y))

    return apply


operator("elementwise_add", "Add")(_binary(np.add))
operator("elementwise_mul", "Mul")(_binary(np.multiply))
operator("elementwise_sub", "Sub")(_binary(np.subtract))
operator("elementwise_div", "Div")(_binary(np.divide))


@operator("pool2d", "MaxPool", "AveragePool")
def _pool(run: Run, node: Node) -> None:
    x, a = run.real(run.first(node)), node.attributes
    is_max = node.kind == "MaxPool" or a.get("pooling_type") == "max"
    kernel = list(a["ksize"] if node.kind == "pool2d" else a["kernel_shape"])
    if node.kind == "pool2d" and (
        a.get("global_pooling") or (a.get("adaptive") and kernel == [1, 1])
    ):
        reduced = x.max if is_max else x.mean
        run.put(node, reduced((2, 3), keepdims=True))
        return
    assert not a.get("ceil_mode") and not a.get("adaptive")
    windows = columns(x, kernel, node, fill=-np.inf if is_max else np.nan)
    run.put(node, windows.max((4, 5)) if is_max else np.nanmean(windows, (4, 5)))


# --- what moves values -------------------------------------------------------------------------


@operator("assign", "Identity", "dropout")
def _same(run: Run, node: Node) -> None:
    run.put(node, run.values[run.first(node)])


@operator("reshape2", "Reshape")
def _reshape(run: Run, node: Node) -> None:
    x = run.real(run.first(node))
    shape = node.attributes.get("shape") if node.kind == "reshape2" else run.values[node.input(1)]
    run.put(
        node, x.reshape([x.shape[i] if size == 0 else int(size) for i, size in enumerate(shape)])
    )


@operator("flatten_contiguous_range", "Flatten")
def _flatten(run: Run, node: Node) -> None:
    x = run.real(run.first(node))
    run.put(node, x.reshape([len(x), -1]))


@operator("transpose2", "Transpose")
def _transpose(run: Run, node: Node) -> None:
    order = node.attributes.get("axis") or node.attributes.get("perm")
    run.put(node, run.real(run.first(node)).transpose(order))


@operator("squeeze2", "Squeeze")
def _squeeze(run: Run, node: Node) -> None:
    axes = node.attributes["axes"] if node.kind == "squeeze2" else run.values[node.input(1)]
    run.put(node, run.real(run.first(node)).squeeze(tuple(int(axis) for axis in axes)))


@operator("concat", "Concat")
def _concat(run: Run, node: Node) -> None:
    names = node.inputs.get("X") or node.inputs[""]
    run.put(node, np.concatenate([run.real(name) for name in names], node.attributes["axis"]))


@operator("split", "Split")
def _split(run: Run, node: Node) -> None:
    x, axis = run.real(run.first(node)), node.attributes["axis"]
    names = node.outputs.get("Out") or node.outputs[""]
    for name, part in zip(names, np.split(x, len(names), axis)):
        run.values[name] = part


@operator("softmax", "Softmax")
def _softmax(run: Run, node: Node) -> None:
    x, axis = run.real(run.first(node)), node.attributes.get("axis", -1)
    odds = np.exp(x - x.max(axis, keepdims=True))
    run.put(node, odds / odds.sum(axis, keepdims=True))
