"""From a traced network to the int8 graph: quantize/dequantize pairs, integer weights, folded BN.

    x -> quantize_linear -> dequantize_linear -> conv2d -> elementwise_add(bias) -> ...
    int8 weight constant -> dequantize_linear ----^

Folding, per output channel, with gamma' = gamma / sqrt(variance + epsilon):

    weight' = weight * gamma'      codes' = codes * sign(gamma'),  scale' = scale * |gamma'|
    bias'   = beta + (bias - mean) * gamma'

so the integer codes stay what training simulated.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Optional

import numpy as np

from .bounds import lower_bound
from .errors import ExportError
from .functional import max_code
from .graph import Graph, Op, new_op
from .trace import Traced

_CONVOLUTIONS = ("conv2d", "depthwise_conv2d")
_INT8_MAX = 127.0


@dataclass
class QuantizedOp:
    """One convolution or matrix product of the exported graph.

    Attributes:
        layer: name of its layer in the network.
        op: the operator.
        weight: name of the int8 constant.
        input: name of the float tensor that is quantized.
        output: name of the tensor after the folded bias.
        output_of: what the output equals in the network: 'layer' or 'batch_norm'.
    """

    layer: str
    op: Op
    weight: str
    input: str
    output: str
    output_of: str


def lower(traced: Traced) -> list[QuantizedOp]:
    """Rewrites the traced graph in place; returns its quantized operators in order.

    Raises:
        ExportError: a layer has no activation scale yet, more than 8 bits, or a quantizer of the
            user's own that gives no scale.
    """
    graph, done = traced.graph, []
    weight_marks = _weight_marks(traced)
    for op in list(graph.ops()):
        found = [name for name in op.all_inputs() if name in weight_marks]
        if found:
            done.append(_lower_op(graph, op, found[0], weight_marks[found[0]]))
    quantized: dict[tuple[str, float, int], str] = {}
    for mark, layer in traced.marks.items():
        if mark not in weight_marks:
            _quantize_input(graph, mark, layer, quantized)
    graph.prune()
    return done


def _weight_marks(traced: Traced) -> dict[str, Any]:
    """Marks that stand for a weight: an assign of a constant."""
    marks = {}
    for name, layer in traced.marks.items():
        producer = traced.graph.producer(name)
        if producer is not None and producer.input("X") == layer.weight.name:
            marks[name] = layer
    return marks


@dataclass
class _Tail:
    """What follows a product and folds into it: a bias and a BatchNorm, both optional."""

    bias: Optional[np.ndarray]
    batch_norm: Optional[Op]
    ops: list[Op]
    output: str


def _lower_op(graph: Graph, op: Op, mark: str, layer: Any) -> QuantizedOp:
    is_conv = op.type in _CONVOLUTIONS
    if not is_conv and op.type != "matmul_v2":
        raise ExportError(f"layer {layer.quant_name}: {op.type} has no int8 form")
    codes, scale = _codes(layer)
    channels = scale.shape[0]
    product = op.output("Output" if is_conv else "Out")
    tail = _tail(graph, op, product, channels)
    output = tail.output
    bias = np.zeros(channels) if tail.bias is None else tail.bias.astype(np.float64)
    gain = np.ones(channels)
    if tail.batch_norm is not None:
        gain, bias = _fold(graph, tail.batch_norm, bias)
    axis = layer.weight_channel_axis
    shape = [1] * codes.ndim
    shape[axis] = channels
    codes = (codes * np.where(gain < 0, -1, 1).reshape(shape)).astype(np.int8)
    codes = np.where((scale * np.abs(gain) > 0).reshape(shape), codes, 0).astype(np.int8)
    scale = (scale.astype(np.float64) * np.abs(gain)).astype(np.float32)

    source = graph.producer(op.input("Input" if is_conv else "X"))
    if not is_conv and _has_known_rows(graph, op.input("X")):
        op, product = _as_convolution(graph, op, tail)
        codes, axis = np.ascontiguousarray(codes.T)[:, :, None, None], 0
    elif not is_conv:
        # Stored transposed, so that oneDNN's passes leave it to a float kernel instead of taking
        # its scales along the wrong axis (see _as_convolution).
        codes, axis = np.ascontiguousarray(codes.T), 0
        op.set_attr("trans_y", True)
    weight = _place_weight(graph, op, mark, layer, codes, scale, axis)
    quantized_input = source.input("X") if source is not None and source.type == "assign" else ""
    _place_bias(graph, op, tail, bias.astype(np.float32), product)
    return QuantizedOp(
        layer.quant_name,
        op,
        weight,
        quantized_input,
        output,
        "layer" if tail.batch_norm is None else "batch_norm",
    )


def _codes(layer: Any) -> tuple[np.ndarray, np.ndarray]:
    """Codes and per-channel scales on the int8 grid: value = code * scale / 127."""
    name = layer.quant_name or type(layer).__name__
    bits = layer._weight_quant.bits
    if bits > 8:
        raise ExportError(f"layer {name}: weight_bits={bits} does not fit int8; allowed is 2 to 8")
    try:
        codes, scale = layer._weight_quant.codes_and_scales(layer.weight)
    except ValueError as error:
        raise ExportError(f"layer {name}: {error}") from None
    if not np.isfinite(scale).all():
        raise ExportError(f"layer {name}: its weight holds NaN or Inf")
    return codes, (scale * (_INT8_MAX / max_code(bits))).astype(np.float32)


def _tail(graph: Graph, op: Op, product: str, channels: int) -> _Tail:
    tail = _Tail(None, None, [], product)
    axis = _channel_axis(graph, op, product)
    following = _only_reader(graph, tail.output)
    if following is not None and following.type == "elementwise_add":
        value = _bias_value(graph, following, tail.output, axis, channels)
        if value is not None:
            tail.bias = value
            tail.ops.append(following)
            tail.output = following.output("Out")
            following = _only_reader(graph, tail.output)
    if following is not None and following.type == "batch_norm":
        rank = len(graph.shape(product) or [])
        channel_last = following.attr("data_layout") == "NHWC" or rank == 2
        fits = axis == (rank - 1 if channel_last else 1)
        names = [following.input(slot) for slot in ("Scale", "Bias", "Mean", "Variance")]
        known = all(name in graph.constants for name in names)
        frozen = following.attr("is_test") or following.attr("use_global_stats")
        if fits and known and frozen and following.input("X") == tail.output:
            tail.batch_norm = following
            tail.ops.append(following)
            tail.output = following.output("Y")
    return tail


def _only_reader(graph: Graph, name: str) -> Optional[Op]:
    return graph.consumers(name)[0] if graph.is_private(name) else None


def _channel_axis(graph: Graph, op: Op, product: str) -> int:
    rank = len(graph.shape(product) or [])
    if op.type in _CONVOLUTIONS and op.attr("data_format") != "NHWC":
        return 1
    return rank - 1


def _bias_value(
    graph: Graph, add: Op, product: str, axis: int, channels: int
) -> Optional[np.ndarray]:
    """The constant that `add` adds per channel, shape [channels]; None where it is none."""
    if add.input("X") != product:
        return None
    name = add.input("Y")
    maker = graph.producer(name)
    if maker is not None and maker.type in ("reshape2", "unsqueeze2"):
        name = maker.input("X")
    if name not in graph.constants or graph.constants[name].size != channels:
        return None
    rank = len(graph.shape(product) or [])
    shape = graph.shape(add.input("Y")) or []
    at = add.attr("axis", -1)
    start = rank - len(shape) if at == -1 else at
    if [i + start for i, size in enumerate(shape) if size != 1] not in ([axis], []):
        return None
    if channels == 1 and shape != [1] and axis - start not in range(len(shape)):
        return None
    return graph.constants[name].reshape([-1])


def _fold(graph: Graph, norm: Op, bias: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """gamma' and bias' of a BatchNorm, in float64."""
    gamma, beta, mean, variance = (
        graph.constants[norm.input(slot)].astype(np.float64)
        for slot in ("Scale", "Bias", "Mean", "Variance")
    )
    gain = gamma / np.sqrt(variance + norm.attr("epsilon"))
    return gain, beta + (bias - mean) * gain


def _has_known_rows(graph: Graph, x: str) -> bool:
    """True where x [..., in] can be reshaped to rows and back: one size at most is open."""
    shape = graph.shape(x) or []
    return len(shape) >= 2 and shape[-1] > 0 and sum(size < 0 for size in shape) <= 1


def _as_convolution(graph: Graph, matmul: Op, tail: _Tail) -> tuple[Op, str]:
    """x [..., in] @ w [in, out] as a 1x1 convolution of rows [n, in, 1, 1]; returns it.

    Paddle's oneDNN passes find the scales of a matrix [in, out] along the wrong axis (they take
    the maxima of runs of `in` values of its memory), and those of a convolution along the right
    one. Whatever followed the product follows the reshaped convolution.
    """
    x, mark, product = matmul.input("X"), matmul.input("Y"), matmul.output("Out")
    inputs = (graph.shape(x) or [])[-1]
    shape = list(graph.shape(product) or [])
    rows = graph.add_shaped(f"{x}.rows", [-1, inputs, 1, 1])
    columns = graph.add_shaped(f"{product}.rows", [-1, shape[-1], 1, 1])
    convolution = new_op(
        "conv2d",
        {"Input": [rows], "Filter": [mark]},
        {"Output": [columns]},
        data_format="NCHW",
        padding_algorithm="EXPLICIT",
        groups=1,
    )
    convolution.set_ints("strides", [1, 1])
    convolution.set_ints("paddings", [0, 0])
    convolution.set_ints("dilations", [1, 1])
    if -1 not in shape:
        shape[0] = -1
    # The rows are what is quantized: engines look for the quantizer right before the convolution.
    marked = graph.producer(x)
    if marked is not None and marked.type == "assign":
        source = _before_flattening(graph, marked.input("X"))
        if source is None:
            reshaped_in = _reshape(graph, marked.input("X"), rows, [-1, inputs, 1, 1])
            graph.insert(graph.block_of(marked), marked, reshaped_in)
            source = rows
        marked.set_input("X", [source])
        convolution.set_input("Input", [x])
        new = [convolution]
    else:
        new = [_reshape(graph, x, rows, [-1, inputs, 1, 1]), convolution]
    if tail.ops:
        # The folded bias is added to the rows, and its result has the tail's name.
        final = graph.add_shaped(f"{tail.output}.rows", [-1, shape[-1], 1, 1])
        reshaped_out = _reshape(graph, final, tail.output, shape)
        graph.replace(tail.ops[-1], [tail.ops[-1], reshaped_out])
        tail.output = final
    else:
        reshaped_out = _reshape(graph, columns, product, shape)
    graph.replace(matmul, new if tail.ops else [*new, reshaped_out])
    return convolution, columns


def _before_flattening(graph: Graph, name: str) -> str | None:
    """The tensor [n, in, 1, 1] of which `name` [n, in] is the flattened form, if it is one."""
    flatten = graph.producer(name)
    kinds = ("flatten_contiguous_range", "flatten2", "reshape2", "squeeze2")
    if flatten is None or flatten.type not in kinds or flatten.inputs("ShapeTensor"):
        return None
    shape, source = graph.shape(name) or [], graph.shape(flatten.input("X")) or []
    same = len(shape) == 2 and len(source) == 4 and source[2:] == [1, 1] and source[1] == shape[1]
    return flatten.input("X") if same and source[1] > 0 else None


def _reshape(graph: Graph, source: str, target: str, shape: list[int]) -> Op:
    kept = graph.add_shaped(f"{target}.xshape", [0, *(graph.shape(source) or [])])
    op = new_op("reshape2", {"X": [source]}, {"Out": [target], "XShape": [kept]})
    op.set_ints("shape", shape)
    return op


def _place_weight(
    graph: Graph, op: Op, mark: str, layer: Any, codes: np.ndarray, scale: np.ndarray, axis: int
) -> str:
    """Stores codes and scales, and lets `op` read their dequantize_linear."""
    base = layer.weight.name
    weight = graph.add_constant(f"{base}.int8", codes)
    scales = graph.add_constant(f"{base}.scale", scale)
    zero = graph.add_constant(f"{base}.zero_point", np.zeros(1, np.float32))
    value = graph.add_like(f"{base}.dequantized", weight)
    dequantize = new_op(
        "dequantize_linear",
        {"X": [weight], "Scale": [scales], "ZeroPoint": [zero]},
        {"Y": [value]},
        quant_axis=axis,
        bit_length=8,
        round_type=0,
    )
    graph.insert(graph.block_of(op), op, dequantize)
    op.rename_input(mark, value)
    return weight


def _place_bias(graph: Graph, op: Op, tail: _Tail, bias: np.ndarray, product: str) -> None:
    """One elementwise_add of a vector [channels] along the channel axis, in place of the tail.

    oneDNN's passes fuse just this form into the convolution, and then what follows it; a bias
    reshaped to [1, channels, 1, 1] stays an operator of its own, and costs more than the kernel.
    """
    if not tail.ops:
        return
    name = graph.add_constant(f"{product}.bias", bias)
    add = new_op(
        "elementwise_add",
        {"X": [product], "Y": [name]},
        {"Out": [tail.output]},
        axis=_channel_axis(graph, op, product),
    )
    graph.replace(tail.ops[-1], [add])
    for old in tail.ops[:-1]:
        graph.remove(old)


def _quantize_input(
    graph: Graph, mark: str, layer: Any, quantized: dict[tuple[str, float, int], str]
) -> None:
    """Replaces the assign that marks a layer's input by quantize_linear and dequantize_linear.

    Layers that read the same tensor with the same scale share the pair; `quantized` remembers it.
    """
    assign = graph.producer(mark)
    if assign is None:
        return
    name = layer.quant_name or type(layer).__name__
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
    except ValueError as error:
        raise ExportError(f"layer {name}: {error}") from None
    if not np.isfinite(scale).all():
        raise ExportError(f"layer {name}: its activation scale is {scale[0]}")
    x, ops = assign.input("X"), []
    r = max_code(quantizer.bits)
    key = (x, float(scale[0]), r)
    if key in quantized and graph.block_of(assign) is graph.blocks[0]:
        graph.redirect(mark, quantized[key])
        graph.remove(assign)
        return
    quantized[key] = mark
    if _needs_clip(graph, x, float(scale[0]), r):
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
    stored = graph.add_constant(f"{mark}.scale", (scale * (_INT8_MAX / r)).astype(np.float32))
    zero = graph.add_constant(f"{mark}.zero_point", np.zeros(1, np.float32))
    codes = graph.add_like(f"{mark}.codes", x)
    common = {"quant_axis": -1, "bit_length": 8, "round_type": 0}
    ops.append(
        new_op(
            "quantize_linear",
            {"X": [x], "Scale": [stored], "ZeroPoint": [zero]},
            {"Y": [codes]},
            is_test=True,
            **common,
        )
    )
    ops.append(
        new_op(
            "dequantize_linear",
            {"X": [codes], "Scale": [stored], "ZeroPoint": [zero]},
            {"Y": [mark]},
            **common,
        )
    )
    graph.replace(assign, ops)


def _needs_clip(graph: Graph, x: str, scale: float, r: int) -> bool:
    """quantize_linear saturates at -128 and +127; the simulation at -r and +r."""
    if r != 127:
        return True
    return lower_bound(graph, x) < -scale * (127.5 / 127) * (1 - 1e-6)
