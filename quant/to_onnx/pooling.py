"""Pooling, normalisation and resizing."""

from __future__ import annotations

import numpy as np

from ..errors import ExportError
from ..graph import Op
from ..targets import FLOAT as NO_TARGET
from .convolutions import padding, to_first, to_last
from .writer import FLOAT, Writer, axes_of, converts


@converts("pool2d", "pool3d", "max_pool2d_with_index")
def pool(w: Writer, op: Op) -> None:
    """Maximum or average over windows, over all positions, or over as many windows as asked for."""
    x = op.input("X")
    rank = len(w.shape(x))
    spatial = rank - 2
    last = op.attr("data_format", "NCHW") in ("NHWC", "NDHWC")
    source = to_first(w, w.read(x), rank) if last else w.read(x)
    is_max = op.type.startswith("max") or op.attr("pooling_type") == "max"
    sizes = list(op.attr("ksize"))
    inner = w.shape(x)[1:-1] if last else w.shape(x)[2:]
    output = None if last else w.output(op)
    if op.attr("global_pooling") or (op.attr("adaptive") and all(size == 1 for size in sizes)):
        result = w.node("GlobalMaxPool" if is_max else "GlobalAveragePool", [source], output)
    elif op.attr("adaptive"):
        result = _adaptive(w, source, inner, sizes, is_max, output)
    else:
        attributes = {
            "kernel_shape": sizes,
            "strides": list(op.attr("strides")),
            "ceil_mode": int(bool(op.attr("ceil_mode"))),
            **padding(op, spatial),
        }
        if is_max:
            result = w.node("MaxPool", [source], output, **attributes)
        else:
            count = 0 if op.attr("exclusive", True) else 1
            result = w.node("AveragePool", [source], output, count_include_pad=count, **attributes)
    if last:
        to_last(w, result, rank, w.output(op))


def _adaptive(
    w: Writer, x: str, inner: list[int], sizes: list[int], is_max: bool, output: str | None
) -> str:
    """Window i of n covers floor(i size / n) up to ceil((i + 1) size / n)."""
    sizes = [have if want < 1 else want for have, want in zip(inner, sizes)]
    if any(size < 0 for size in inner):
        raise ExportError(
            f"adaptive pooling to {sizes} of an input of open size {inner} has no ONNX form: give "
            "input_spec its height and width"
        )
    if all(have % want == 0 for have, want in zip(inner, sizes)):
        step = [have // want for have, want in zip(inner, sizes)]
        kind = "MaxPool" if is_max else "AveragePool"
        return w.node(kind, [x], output, kernel_shape=step, strides=step)
    for axis, (have, want) in enumerate(zip(inner, sizes)):
        last = output if axis == len(sizes) - 1 else None
        windows = [(i * have // want, -(-(i + 1) * have // want)) for i in range(want)]
        x = (
            _window_max(w, x, axis, len(sizes), windows, last)
            if is_max
            else _window_mean(w, x, axis, len(sizes), have, windows, last)
        )
    return x


def _window_max(
    w: Writer, x: str, axis: int, spatial: int, windows: list[tuple[int, int]], out: str | None
) -> str:
    """A part for each window, and a pooling over the whole of it.

    ReduceMax says the same, but OpenVINO computes it wrong where a quantizer follows.
    """
    parts = []
    for start, end in windows:
        part = w.node("Slice", [x, w.ints([start]), w.ints([end]), w.ints([axis + 2])])
        kernel = [end - start if i == axis else 1 for i in range(spatial)]
        parts.append(w.node("MaxPool", [part], kernel_shape=kernel))
    return w.node("Concat", parts, out, axis=axis + 2)


def _window_mean(
    w: Writer,
    x: str,
    axis: int,
    spatial: int,
    have: int,
    windows: list[tuple[int, int]],
    out: str | None,
) -> str:
    """An average over windows of one axis is a product with a matrix."""
    matrix = np.zeros((have, len(windows)), np.float32)
    for i, (start, end) in enumerate(windows):
        matrix[start:end, i] = 1.0 / (end - start)
    if axis == spatial - 1:
        return w.node("MatMul", [x, w.constant(matrix, "windows")], out)
    order = [*range(spatial + 2)]
    order[axis + 2], order[-1] = order[-1], order[axis + 2]
    moved = w.node("Transpose", [x], perm=order)
    product = w.node("MatMul", [moved, w.constant(matrix, "windows")])
    return w.node("Transpose", [product], out, perm=order)


def reduce(
    w: Writer, kind: str, x: str, axes: list[int], keep: bool, output: str | None = None
) -> str:
    """A reduction; its axes are an input from opset 18 on (of a sum from 13)."""
    if w.opset >= 18 or kind == "ReduceSum":
        return w.node(kind, [x, w.ints(axes)], output, keepdims=int(keep))
    return w.node(kind, [x], output, axes=axes, keepdims=int(keep))


@converts("batch_norm")
def batch_norm(w: Writer, op: Op) -> None:
    """Gamma (x - mean) / sqrt(variance + epsilon) + beta, with the running statistics."""
    x = op.input("X")
    rank = len(w.shape(x))
    last = op.attr("data_layout") == "NHWC" and rank > 2
    source = to_first(w, w.read(x), rank) if last else w.read(x)
    inputs = [source, *(w.input(op, slot) for slot in ("Scale", "Bias", "Mean", "Variance"))]
    output = None if last else w.output(op, "Y")
    result = w.node("BatchNormalization", inputs, output, epsilon=op.attr("epsilon"))
    if last:
        to_last(w, result, rank, w.output(op, "Y"))


@converts("layer_norm")
def layer_norm(w: Writer, op: Op) -> None:
    """Normalised over the axes from `begin_norm_axis` on; then times gamma plus beta."""
    x = op.input("X")
    shape = w.shape(x)
    begin = op.attr("begin_norm_axis", 1) % len(shape)
    axes = list(range(begin, len(shape)))
    source = w.read(x)
    centred = w.node("Sub", [source, reduce(w, "ReduceMean", source, axes, True)])
    variance = reduce(w, "ReduceMean", w.node("Mul", [centred, centred]), axes, True)
    noisy = w.node("Add", [variance, w.scalar(op.attr("epsilon", 1e-5), x)])
    value = w.node("Div", [centred, w.node("Sqrt", [noisy])])
    steps = [(kind, slot) for kind, slot in (("Mul", "Scale"), ("Add", "Bias")) if op.inputs(slot)]
    for kind, slot in steps:
        operand = w.input(op, slot)
        if len(axes) > 1:
            operand = w.node("Reshape", [operand, w.ints(shape[begin:])])
        value = w.node(kind, [value, operand])
    w.node("Identity", [value], w.output(op, "Y"))


@converts("instance_norm")
def instance_norm(w: Writer, op: Op) -> None:
    """Normalised over the positions of each channel of each sample."""
    x = op.input("X")
    channels = w.shape(x)[1]
    inputs = [
        w.input(op, slot) if op.inputs(slot) else w.constant(np.full(channels, value, np.float32))
        for slot, value in (("Scale", 1.0), ("Bias", 0.0))
    ]
    out = w.output(op, "Y")
    w.node("InstanceNormalization", [w.read(x), *inputs], out, epsilon=op.attr("epsilon"))


@converts("group_norm")
def group_norm(w: Writer, op: Op) -> None:
    """Normalised over the positions and channels of each group of each sample."""
    x = op.input("X")
    rank, groups = len(w.shape(x)), int(op.attr("groups"))
    last = op.attr("data_layout") == "NHWC"
    source = to_first(w, w.read(x), rank) if last else w.read(x)
    channels = w.shape(x)[-1 if last else 1]
    shape = w.node("Shape", [source])
    flat = w.node("Reshape", [source, w.ints([0, groups, -1])])
    ones, zeros = (w.constant(np.full(groups, v, np.float32)) for v in (1.0, 0.0))
    normed = w.node("InstanceNormalization", [flat, ones, zeros], epsilon=op.attr("epsilon"))
    value = w.node("Reshape", [normed, shape])
    for kind, slot in (("Mul", "Scale"), ("Add", "Bias")):
        if op.inputs(slot):
            column = w.node("Reshape", [w.input(op, slot), w.ints([channels, *[1] * (rank - 2)])])
            value = w.node(kind, [value, column])
    if last:
        to_last(w, value, rank, w.output(op, "Y"))
    else:
        w.node("Identity", [value], w.output(op, "Y"))


_MODES = {
    "nearest": "nearest",
    "bilinear": "linear",
    "linear": "linear",
    "bicubic": "cubic",
    "trilinear": "linear",
}


@converts(*(f"{mode}_interp_v2" for mode in _MODES))
def interpolate(w: Writer, op: Op) -> None:
    """Resizing to a size or by a factor."""
    x = op.input("X")
    shape = w.shape(x)
    rank = len(shape)
    last = op.attr("data_layout", "NCHW") in ("NHWC", "NDHWC", "NWC")
    source = to_first(w, w.read(x), rank) if last else w.read(x)
    mode = op.type.split("_")[0]
    attributes: dict[str, object] = {"mode": _MODES[mode]}
    if op.attr("align_corners"):
        attributes["coordinate_transformation_mode"] = "align_corners"
        if mode == "nearest":
            attributes["nearest_mode"] = "round_prefer_ceil"
    elif mode == "nearest":
        attributes["coordinate_transformation_mode"] = "asymmetric"
        attributes["nearest_mode"] = "floor"
    else:
        half = mode == "bicubic" or op.attr("align_mode", 1) == 0
        attributes["coordinate_transformation_mode"] = "half_pixel" if half else "asymmetric"
    if mode == "bicubic":
        attributes["cubic_coeff_a"] = -0.75
    lengths = _lengths(w, op, source, rank)
    if lengths is None:
        given = list(op.attr("scale") or [])
        scales = [1.0, 1.0, *(given if len(given) == rank - 2 else given * (rank - 2))]
        inputs = [source, "", w.constant(np.asarray(scales, np.float32), "scales")]
    else:
        inputs = [source, "", "", lengths]
    out = None if last else w.output(op)
    result = w.node("Resize", inputs, out, **attributes)
    if last:
        to_last(w, result, rank, w.output(op))


def _lengths(w: Writer, op: Op, source: str, rank: int) -> str | None:
    """The whole output shape, where its spatial part is known or computed; None for a factor."""
    spatial = None
    if op.inputs("OutSize"):
        spatial = w.node("Cast", [w.input(op, "OutSize")], to=7)
    elif op.inputs("SizeTensor"):
        parts = [
            w.node("Reshape", [w.node("Cast", [w.read(name)], to=7), w.ints([1])])
            for name in op.inputs("SizeTensor")
        ]
        spatial = w.node("Concat", parts, axis=0)
    else:
        fixed = [op.attr(name, -1) for name in ("out_d", "out_h", "out_w")][5 - rank :]
        fixed = fixed if rank > 3 else [op.attr("out_w", -1)]
        if all(size is not None and size > 0 for size in fixed) and not op.attr("scale"):
            spatial = w.ints(fixed)
    if spatial is None:
        return None
    head = w.node("Slice", [w.node("Shape", [source]), w.ints([0]), w.ints([2]), w.ints([0])])
    return w.node("Concat", [head, spatial], axis=0)


_REDUCE = {
    "reduce_mean": "ReduceMean",
    "reduce_sum": "ReduceSum",
    "reduce_max": "ReduceMax",
    "reduce_min": "ReduceMin",
    "reduce_amax": "ReduceMax",
    "reduce_amin": "ReduceMin",
    "reduce_prod": "ReduceProd",
    "logsumexp": "ReduceLogSumExp",
    "frobenius_norm": "ReduceL2",
}


@converts(*_REDUCE, "mean")
def reduction(w: Writer, op: Op) -> None:
    """A reduction over some axes, or over all."""
    x = op.input("X")
    rank = len(w.shape(x))
    given = op.attr("dim", op.attr("axis")) if op.type != "mean" else None
    given = [given] if isinstance(given, int) else list(given or [])
    whole = op.attr("reduce_all", False) or not given or op.type == "mean"
    axes = list(range(rank)) if whole else axes_of(given, rank)
    keep = bool(op.attr("keep_dim", op.attr("keepdim", False)))
    kind = _REDUCE.get(op.type, "ReduceMean")
    if kind in ("ReduceMax", "ReduceMin") and w.dtype(x) == FLOAT and w.target is not NO_TARGET:
        # OpenVINO (2026.4) computes it wrong where it fuses the quantizer behind it.
        w.apart(reduce(w, kind, w.read(x), axes, keep), w.output(op))
    else:
        reduce(w, kind, w.read(x), axes, keep, w.output(op))


@converts("reduce_all", "reduce_any")
def truth(w: Writer, op: Op) -> None:
    """Whether all, or any, of the values are true."""
    x = op.input("X")
    rank = len(w.shape(x))
    axes = list(range(rank)) if op.attr("reduce_all") else axes_of(op.attr("dim"), rank)
    numbers = w.node("Cast", [w.read(x)], to=1)
    kind = "ReduceMin" if op.type == "reduce_all" else "ReduceMax"
    w.node("Cast", [reduce(w, kind, numbers, axes, bool(op.attr("keep_dim")))], w.output(op), to=9)


@converts("p_norm")
def p_norm(w: Writer, op: Op) -> None:
    """(sum |x|^p)^(1/p) along an axis."""
    x, order = op.input("X"), float(op.attr("porder", 2.0))
    rank = len(w.shape(x))
    axes = list(range(rank)) if op.attr("asvector") else axes_of([op.attr("axis", -1)], rank)
    keep = bool(op.attr("keepdim", False))
    source, out = w.read(x), w.output(op)
    if order in (1.0, 2.0):
        reduce(w, "ReduceL1" if order == 1.0 else "ReduceL2", source, axes, keep, out)
        return
    size = w.node("Abs", [source])
    if order in (float("inf"), float("-inf")):
        reduce(w, "ReduceMax" if order > 0 else "ReduceMin", size, axes, keep, out)
        return
    powers = w.node("Pow", [size, w.scalar(order, x)])
    total = reduce(w, "ReduceSum", powers, axes, keep)
    w.node("Pow", [total, w.scalar(1.0 / order, x)], out)
