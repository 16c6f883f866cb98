"""Convolutions, with the bias that follows."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..graph import CONVOLUTIONS, Op
from .quantizers import integer_bias
from .writer import Writer, converts

_TRANSPOSED = ("conv2d_transpose", "depthwise_conv2d_transpose")


@converts(*CONVOLUTIONS, "conv3d")
def convolution(w: Writer, op: Op) -> None:
    """Any grouping, dilation, stride and padding; channels first or last."""
    _convolve(w, op, "Conv", {})


@converts(*_TRANSPOSED)
def transposed_convolution(w: Writer, op: Op) -> None:
    """The gradient of a convolution; weight [in, out / groups, ...]."""
    extra = list(op.attr("output_padding") or [])
    _convolve(w, op, "ConvTranspose", {"output_padding": extra} if any(extra) else {})


def _convolve(w: Writer, op: Op, kind: str, more: dict[str, Any]) -> None:
    x, weight = op.input("Input"), op.input("Filter")
    rank = len(w.shape(x))
    last = op.attr("data_format", "NCHW") in ("NHWC", "NDHWC")
    attributes = {
        "kernel_shape": w.shape(weight)[2:],
        "strides": list(op.attr("strides")),
        "dilations": _dilations(op, rank - 2),
        "group": int(op.attr("groups") or 1),
        **more,
        **padding(op, rank - 2),
    }
    source = to_first(w, w.read(x), rank) if last else w.read(x)
    out = op.output("Output")
    bias = None if last else _bias(w, op, out, transposed=kind != "Conv")
    inputs = [source, w.read(weight), *([bias[0]] if bias else [])]
    name = bias[1] if bias else out
    if not last:
        w.node(kind, inputs, w.define(name), **attributes)
        return
    result = w.node(kind, inputs, **attributes)
    to_last(w, result, rank, w.define(name))


def _dilations(op: Op, spatial: int) -> list[int]:
    """Paddle knows no dilation where it pads to the same size."""
    if op.attr("padding_algorithm") == "SAME":
        return [1] * spatial
    return list(op.attr("dilations") or [1] * spatial)


def padding(op: Op, spatial: int) -> dict[str, Any]:
    """`pads` or `auto_pad`, from Paddle's padding and its algorithm."""
    algorithm = op.attr("padding_algorithm", "EXPLICIT")
    if algorithm == "SAME":
        return {"auto_pad": "SAME_UPPER"}
    if algorithm == "VALID":
        return {"pads": [0] * (2 * spatial)}
    given = list(op.attr("paddings"))
    if len(given) == spatial:
        return {"pads": given + given}
    return {"pads": given[0::2] + given[1::2]}


def to_first(w: Writer, x: str, rank: int) -> str:
    """Channels from the last axis to axis 1."""
    return w.node("Transpose", [x], perm=[0, rank - 1, *range(1, rank - 1)])


def to_last(w: Writer, x: str, rank: int, output: str) -> str:
    """Channels from axis 1 to the last."""
    return w.node("Transpose", [x], output, perm=[0, *range(2, rank), 1])


def _bias(w: Writer, op: Op, out: str, transposed: bool) -> tuple[str, str] | None:
    """The bias that is added right after, and the variable that then holds the result."""
    if w.target.onnx_bias == "added":
        return None
    readers = w.graph.consumers(out)
    if not w.graph.is_private(out) or readers[0].type != "elementwise_add":
        return None
    add = readers[0]
    value = w.graph.constants.get(add.input("Y"))
    if add.input("X") != out or value is None or add.attr("axis") != 1 or value.ndim != 1:
        return None
    shape = w.shape(op.input("Filter"))
    channels = shape[1] * int(op.attr("groups") or 1) if transposed else shape[0]
    if value.size != channels:
        return None
    name = None
    if w.target.onnx_bias == "int32":
        name = integer_bias(w, (op.input("Input"), op.input("Filter")), value)
    if name is None:
        name = w.constant(value.astype(np.float32), add.input("Y"))
    w.done.add(id(add))
    return name, add.output("Out")
