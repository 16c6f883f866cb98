"""From a traced network to the int8 graph: quantize/dequantize pairs and integer weights.

    x -> quantize_linear -> dequantize_linear -> conv2d -> elementwise_add(bias) -> ...
    int8 weight constant -> dequantize_linear ----^

BatchNorm is folded (see fold.py), and for a Paddle file a Linear becomes a 1x1 convolution
(linear_as_conv.py).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .bounds import lower_bound
from .errors import ExportError, QuantError
from .fold import Tail, channel_axis, find_tail, fold
from .graph import CONVOLUTIONS, Graph, Op, new_op
from .grid import Grid, signed, symmetric, unsigned
from .integer_bias import round_bias
from .linear_as_conv import as_convolution, has_rows
from .trace import Traced

_INT8_MAX = 127.0
_TIES_TO_EVEN = 0  # quantize_linear's round_type; its default, 1, rounds halves away from zero


@dataclass
class Lowered:
    """What `lower` has put into the graph.

    Attributes:
        weights: names of the int8 weight constants.
        unsigned: the quantize_linear operators whose grid is unsigned.
        unrounded: those that stand for a cut to the ends of their grid (`Grid.rounds` is False).
    """

    weights: list[str] = field(default_factory=list)
    unsigned: list[Op] = field(default_factory=list)
    unrounded: list[Op] = field(default_factory=list)


def lower(traced: Traced, linear_as_convolution: bool = True) -> Lowered:
    """Rewrites the traced graph in place.

    Args:
        traced: the network.
        linear_as_convolution: False leaves a Linear the product of matrices that it is.

    Raises:
        ExportError: a layer has no activation scale yet, more than 8 bits, or a quantizer of the
            user's own that gives no scale.
    """
    graph, lowered = traced.graph, Lowered()
    stored: dict[bytes, tuple[str, str]] = {}
    for op in list(graph.ops()):
        found = [name for name in op.all_inputs() if name in traced.weights]
        if found:
            layer = traced.weights[found[0]]
            weight = _lower_op(graph, op, found[0], layer, stored, linear_as_convolution)
            lowered.weights.append(weight)
    quantized: dict[tuple[str, float, Grid], str] = {}
    for mark, layer in traced.quantizers.items():
        quantize = _quantize_tensor(graph, mark, layer, quantized)
        if quantize is not None and layer._act_quant.grid.is_unsigned:
            lowered.unsigned.append(quantize)
        if quantize is not None and not layer._act_quant.grid.rounds:
            lowered.unrounded.append(quantize)
    graph.prune()
    return lowered


def _lower_op(
    graph: Graph,
    op: Op,
    mark: str,
    layer: Any,
    stored: dict[bytes, tuple[str, str]],
    linear_as_convolution: bool,
) -> str:
    is_conv = op.type in CONVOLUTIONS
    if not is_conv and op.type != "matmul_v2":
        raise ExportError(f"layer {_name(layer)}: {op.type} has no int8 form")
    codes, scale = _codes(layer)
    channels = scale.shape[0]
    product = op.output("Output" if is_conv else "Out")
    tail = find_tail(graph, op, product, channels)
    bias = np.zeros(channels) if tail.bias is None else tail.bias.astype(np.float64)
    gain = np.ones(channels)
    if tail.batch_norm is not None:
        gain, bias = fold(graph, tail.batch_norm, bias)
    axis = layer.weight_channel_axis
    shape = [1] * codes.ndim
    shape[axis] = channels
    scale = (scale.astype(np.float64) * np.abs(gain)).astype(np.float32)
    if layer.integer_bias is not None:
        bias = round_bias(bias, _product_steps(layer, scale))
    sign = np.where(scale > 0, np.where(gain < 0, -1, 1), 0)
    codes = (codes * sign.reshape(shape)).astype(np.int8)

    if not is_conv and linear_as_convolution and has_rows(graph, op.input("X")):
        op, product = as_convolution(graph, op, tail, codes.shape[0])
        codes, axis = np.ascontiguousarray(codes.T)[:, :, None, None], 0
    elif not is_conv and linear_as_convolution:
        # Stored transposed, so that oneDNN's passes leave it to a float kernel instead of taking
        # its scales along the wrong axis (see linear_as_conv.py).
        codes, axis = np.ascontiguousarray(codes.T), 0
        op.set_attr("trans_y", True)
    _place_bias(graph, op, tail, bias.astype(np.float32), product, _name(layer))
    key = codes.tobytes() + scale.tobytes() + bytes([axis])
    if key in stored and _in_main_block(graph, op):
        weight, value = stored[key]
    else:
        weight, value = _place_weight(graph, op, _name(layer), codes, scale, axis)
        if _in_main_block(graph, op):
            stored[key] = weight, value
    op.rename_input(mark, value)
    return weight


def _in_main_block(graph: Graph, op: Op) -> bool:
    """What a branch computes is not there outside it, so only the main block's is shared."""
    return graph.block_of(op) is graph.blocks[0]


def _name(layer: Any) -> str:
    return layer.quant_name or type(layer).__name__


def _codes(layer: Any) -> tuple[np.ndarray, np.ndarray]:
    """Codes and per-channel scales on the int8 grid: value = code * scale / 127."""
    name = _name(layer)
    bits = layer._weight_quant.code_bits
    if bits > 8:
        raise ExportError(f"layer {name}: weight_bits={bits} does not fit int8; allowed is 2 to 8")
    try:
        codes, scale = layer._weight_quant.codes_and_scales(layer.weight)
    except QuantError as error:
        raise ExportError(f"layer {name}: {error}") from None
    # Not every build of Paddle lets a NaN through its maximum, so the weight itself is looked at.
    if not (np.isfinite(scale).all() and np.isfinite(layer.weight.numpy()).all()):
        raise ExportError(f"layer {name}: its weight holds NaN or Inf")
    return codes, (scale * (_INT8_MAX / symmetric(bits).high)).astype(np.float32)


def _product_steps(layer: Any, scale: np.ndarray) -> np.ndarray:
    """Step of the accumulator of each output channel, float64."""
    quantizer = layer._act_quant
    return quantizer.scale_numpy()[0] / np.float64(quantizer.grid.high) * (scale / np.float64(127))


def _place_weight(
    graph: Graph, op: Op, name: str, codes: np.ndarray, scale: np.ndarray, axis: int
) -> tuple[str, str]:
    """Stores codes and scales, dequantizes them before `op`; names of the codes and the result."""
    weight = graph.add_constant(f"{name}.weight.int8", codes)
    scales = graph.add_constant(f"{name}.weight.scale", scale)
    zero = _zero_point(graph)
    value = graph.add_like(f"{name}.weight.dequantized", weight)
    dequantize = new_op(
        "dequantize_linear",
        {"X": [weight], "Scale": [scales], "ZeroPoint": [zero]},
        {"Y": [value]},
        quant_axis=axis,
        bit_length=8,
        round_type=_TIES_TO_EVEN,
    )
    graph.insert(graph.block_of(op), op, dequantize)
    return weight, value


def _zero_point(graph: Graph) -> str:
    """One constant zero that every quantizer of the graph reads."""
    name = "zero_point"
    return name if name in graph.constants else graph.add_constant(name, np.zeros(1, np.float32))


def _place_bias(
    graph: Graph, op: Op, tail: Tail, bias: np.ndarray, product: str, layer: str
) -> None:
    """One elementwise_add of a vector [channels] along the channel axis, in place of the tail.

    oneDNN's passes fuse just this form into the convolution, and then what follows it; a bias
    reshaped to [1, channels, 1, 1] stays an operator of its own, and costs more than the kernel.
    """
    if not tail.ops:
        return
    name = graph.add_constant(f"{layer}.bias", bias)
    add = new_op(
        "elementwise_add",
        {"X": [product], "Y": [name]},
        {"Out": [tail.output]},
        axis=channel_axis(graph, op, product),
    )
    graph.replace(tail.ops[-1], [add])
    for old in tail.ops[:-1]:
        graph.remove(old)


def _quantize_tensor(
    graph: Graph, mark: str, layer: Any, quantized: dict[tuple[str, float, Grid], str]
) -> Op | None:
    """Replaces the assign that marks a quantized tensor by quantize_linear and dequantize_linear.

    Layers that read the same tensor with the same scale share the pair; `quantized` remembers it.
    Returns the new quantize_linear, if there is one.
    """
    assign = graph.producer(mark)
    if assign is None:
        return None
    name = _name(layer)
    quantizer = layer._act_quant
    if quantizer.bits > 8:
        raise ExportError(
            f"layer {name}: activation_bits={quantizer.bits} does not fit int8; allowed is 2 to 8"
        )
    if not quantizer.has_scale():
        raise ExportError(
            f"layer {name} has no activation scale: train a step or call calibrate() before saving"
        )
    try:
        scale = quantizer.scale_numpy()
    except QuantError as error:
        raise ExportError(f"layer {name}: {error}") from None
    if not np.isfinite(scale).all():
        raise ExportError(f"layer {name}: its activation scale is {scale[0]}")
    x, ops = assign.input("X"), []
    grid = quantizer.grid
    key = (x, float(scale[0]), grid)
    if _in_main_block(graph, assign):
        if key in quantized:
            graph.redirect(mark, quantized[key])
            graph.remove(assign)
            return None
        quantized[key] = mark
    if _needs_clip(graph, x, float(scale[0]), grid):
        clipped = graph.add_like(f"{mark}.clipped", x)
        ops.append(
            new_op(
                "clip",
                {"X": [x]},
                {"Out": [clipped]},
                min=-float(scale[0]),
                max=float(scale[0]),
            )
        )
        x = clipped
    # Of an unsigned grid of 8 bits the scale is stored as it is: oneDNN makes 255 steps of it
    # where it knows that the tensor is not negative, which onednn.py sees to.
    r = _INT8_MAX if grid.is_unsigned else grid.high
    stored = graph.add_constant(
        f"{name}.{layer.tensor_role}.scale", (scale * (_INT8_MAX / r)).astype(np.float32)
    )
    zero = _zero_point(graph)
    codes = graph.add_like(f"{mark}.codes", x)
    common = {"quant_axis": -1, "bit_length": 8, "round_type": _TIES_TO_EVEN}
    quantize = new_op(
        "quantize_linear",
        {"X": [x], "Scale": [stored], "ZeroPoint": [zero]},
        {"Y": [codes]},
        is_test=True,
        **common,
    )
    ops.append(quantize)
    ops.append(
        new_op(
            "dequantize_linear",
            {"X": [codes], "Scale": [stored], "ZeroPoint": [zero]},
            {"Y": [mark]},
            **common,
        )
    )
    graph.replace(assign, ops)
    return quantize


def _needs_clip(graph: Graph, x: str, scale: float, grid: Grid) -> bool:
    """quantize_linear saturates at -128 and +127; the symmetric grid of b bits at -r and +r."""
    if grid.low in (signed(8).low, unsigned(8).low) and grid.bits == 8:
        return False
    if grid.high != _INT8_MAX:
        return True
    return lower_bound(graph, x) < -scale * (127.5 / 127) * (1 - 1e-6)
