"""QuantizeLinear, DequantizeLinear, and the bias on the grid of the accumulator.

A Paddle file holds the value s of code 127 (of code 255 on an unsigned grid), ONNX the step. Signed
codes are stored as int8 with zero point 0, or as uint8 with zero point 128, which x86 kernels are
made for; the values are the same. Unsigned ones are uint8 with zero point 0.
"""

from __future__ import annotations

import numpy as np

from ..graph import CONVOLUTIONS, Op
from ..integer_bias import LARGEST
from .writer import Writer, converts

_SIGNED_STEPS, _UNSIGNED_STEPS = np.float32(127.0), np.float32(255.0)
# Step of a weight whose codes are all zero; any would do, and zero would make NaN of the bias.
_SMALLEST_STEP = np.float32(2.0**-60)


@converts("quantize_linear")
def quantize(w: Writer, op: Op) -> None:
    """round(x / step) + zero point, half to even, saturating."""
    step, zero = _activation(w, op, op.output("Y"))
    w.node("QuantizeLinear", [w.input(op), step, zero], w.output(op, "Y"))


@converts("dequantize_linear")
def dequantize(w: Writer, op: Op) -> None:
    """(code - zero point) step; the codes of a weight are an int8 constant."""
    x = op.input("X")
    if x in w.graph.constants:
        steps = weight_steps(w, op)
        zeros = w.constant(np.zeros(steps.shape, np.int8), "zero_points")
        inputs = [w.read(x), w.constant(steps, f"{x}.step"), zeros]
        w.node("DequantizeLinear", inputs, w.output(op, "Y"), axis=op.attr("quant_axis"))
        return
    step, zero = _activation(w, op, x)
    inputs = [w.read(x), step, zero]
    if not _is_kept_from_sum(w, op):
        w.node("DequantizeLinear", inputs, w.output(op, "Y"))
        return
    w.apart(w.node("DequantizeLinear", inputs), w.output(op, "Y"))


def _is_kept_from_sum(w: Writer, op: Op) -> bool:
    """True where nothing stands between a convolution, this quantizer and a residual sum.

    OpenVINO computes the three in one kernel, and leaves the rounding in between out. An operator
    that changes nothing keeps them apart.
    """
    if not w.target.needs_integer_results or op.input("X") in w.unrounded_codes:
        return False
    quantize = w.graph.producer(op.input("X"))
    readers = w.graph.consumers(op.output("Y"))
    if quantize is None or len(readers) != 1 or readers[0].type != "elementwise_add":
        return False
    source = w.graph.producer(quantize.input("X"))
    while source is not None and source.type in ("elementwise_add", "relu", "relu6"):
        source = w.graph.producer(source.input("X"))
    if source is None or source.type not in CONVOLUTIONS:
        return False
    # A kernel takes one of two results in.
    sides = [w.graph.producer(name) for name in readers[0].all_inputs()]
    return all(x is None or not set(x.inputs("X")) & w.unrounded_codes for x in sides)


def _activation(w: Writer, op: Op, codes: str) -> tuple[str, str]:
    unsigned = codes in w.unsigned_codes
    step = _activation_step(w, op, codes)
    zero = np.uint8(0 if unsigned else 128) if w.target.uint8 or unsigned else np.int8(0)
    return w.constant(step, f"{op.input('Scale')}.step"), w.constant(np.asarray(zero), "zero_point")


def _activation_step(w: Writer, op: Op, codes: str) -> np.ndarray:
    scale = w.graph.constants[op.input("Scale")].astype(np.float32).reshape([-1])[0]
    step = scale / (_UNSIGNED_STEPS if codes in w.unsigned_codes else _SIGNED_STEPS)
    # A tensor that was all zero in training has scale 0: every step keeps a zero.
    return np.asarray(max(step, _SMALLEST_STEP), np.float32)


def weight_steps(w: Writer, dequantize_op: Op) -> np.ndarray:
    """The step of each output channel, float32."""
    scale = w.graph.constants[dequantize_op.input("Scale")].astype(np.float32)
    return np.maximum(scale / _SIGNED_STEPS, _SMALLEST_STEP).astype(np.float32)


def integer_bias(w: Writer, inputs: tuple[str, str], bias: np.ndarray) -> str | None:
    """A bias as int32 with the step of the products, as kernels add it; None where it is float.

    `inputs` are the variables of the product.

    step = step of the input * step of the weight's channel. A channel of zeros has no step of its
    own: its bias gets one that holds it to 24 bits.
    """
    x, weight = (w.graph.producer(name) for name in inputs)
    if x is None or weight is None or not x.type == weight.type == "dequantize_linear":
        return None
    if weight.input("X") not in w.graph.constants or x.input("X") in w.graph.constants:
        return None
    steps = weight_steps(w, weight).astype(np.float64)
    products = steps * float(_activation_step(w, x, x.input("X")))
    codes = np.rint(bias.astype(np.float64) / products)
    if np.abs(codes).max() > LARGEST:
        return None
    step32 = products.astype(np.float32)
    stored = w.constant(codes.astype(np.int32), "bias")
    zeros = w.constant(np.zeros(bias.shape, np.int32), "bias_zero_points")
    return w.node("DequantizeLinear", [stored, w.constant(step32, "bias_step"), zeros], axis=0)
