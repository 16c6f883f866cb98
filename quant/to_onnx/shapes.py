"""Operators that move, join, cut and make tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..errors import ExportError
from ..graph import DTYPES, Op
from .writer import Writer, axes_of, converts

_NAMES = {number: name for name, number in DTYPES.items()}
_INT64 = 7


def _as_int64(w: Writer, name: str, shape: Sequence[int] | None = None) -> str:
    value = w.node("Cast", [w.read(name)], to=_INT64)
    return value if shape is None else w.node("Reshape", [value, w.ints(shape)])


def _vector(w: Writer, op: Op, slot: str, list_slot: str, attribute: str) -> str:
    """A vector of int64 that is an attribute, a tensor, or a list of tensors of one number."""
    if op.inputs(list_slot):
        parts = [_as_int64(w, name, [1]) for name in op.inputs(list_slot)]
        return parts[0] if len(parts) == 1 else w.node("Concat", parts, axis=0)
    if slot and op.inputs(slot):
        return _as_int64(w, op.input(slot), [-1])
    return w.ints(op.attr(attribute))


@converts("reshape2")
def reshape(w: Writer, op: Op) -> None:
    """0 keeps an axis, -1 takes what is left, as in ONNX."""
    shape = _vector(w, op, "Shape", "ShapeTensor", "shape")
    w.node("Reshape", [w.input(op), shape], w.output(op))


@converts("transpose2")
def transpose(w: Writer, op: Op) -> None:
    """Permuted axes."""
    w.node("Transpose", [w.input(op)], w.output(op), perm=list(op.attr("axis")))


@converts("flatten_contiguous_range", "flatten2")
def flatten(w: Writer, op: Op) -> None:
    """Axes from start to stop as one."""
    x = op.input("X")
    shape = w.shape(x)
    rank = len(shape)
    if op.type == "flatten2":
        w.node("Flatten", [w.read(x)], w.output(op), axis=op.attr("axis", 1))
        return
    start, stop = axes_of([op.attr("start_axis", 1), op.attr("stop_axis", -1)], rank)
    if (start, stop) == (1, rank - 1):
        w.node("Flatten", [w.read(x)], w.output(op), axis=1)
        return
    if all(size >= 0 for size in shape[stop + 1 :]):
        new = [0] * start + [-1] + shape[stop + 1 :]
        w.node("Reshape", [w.read(x), w.ints(new)], w.output(op))
        return
    sizes = w.node("Shape", [w.read(x)])
    tail = w.node("Slice", [sizes, w.ints([stop + 1]), w.ints([rank]), w.ints([0])])
    new_shape = w.node("Concat", [w.ints([0] * start + [-1]), tail], axis=0)
    w.node("Reshape", [w.read(x), new_shape], w.output(op))


@converts("squeeze2")
def squeeze(w: Writer, op: Op) -> None:
    """Without axes of size 1."""
    shape = w.shape(op.input("X"))
    axes = axes_of(op.attr("axes") or range(len(shape)), len(shape))
    axes = [axis for axis in axes if shape[axis] == 1]
    if axes:
        w.node("Squeeze", [w.input(op), w.ints(axes)], w.output(op))
    else:
        w.same(op, w.input(op))


@converts("unsqueeze2")
def unsqueeze(w: Writer, op: Op) -> None:
    """With new axes of size 1, which are inserted one after the other."""
    rank = len(w.shape(op.input("X")))
    axes: list[int] = []
    for axis in op.attr("axes"):
        at = axis if axis >= 0 else axis + rank + len(axes) + 1
        axes = [other + (other >= at) for other in axes] + [at]
    w.node("Unsqueeze", [w.input(op), w.ints(sorted(axes))], w.output(op))


@converts("slice", "strided_slice")
def cut(w: Writer, op: Op) -> None:
    """Parts of some axes; `decrease_axis` then drops axes of size 1."""
    x = op.input("Input")
    starts = _vector(w, op, "StartsTensor", "StartsTensorList", "starts")
    ends = _vector(w, op, "EndsTensor", "EndsTensorList", "ends")
    inputs = [w.read(x), starts, ends, w.ints(op.attr("axes"))]
    if op.type == "strided_slice":
        inputs.append(_vector(w, op, "StridesTensor", "StridesTensorList", "strides"))
    dropped = list(op.attr("decrease_axis") or [])
    if not dropped:
        w.node("Slice", inputs, w.output(op))
        return
    part = w.node("Slice", inputs)
    # A scalar of Paddle 2.6 has the shape [1].
    if len(dropped) == len(w.shape(x)) and w.shape(op.output("Out")) == [1]:
        w.node("Reshape", [part, w.ints([1])], w.output(op))
    else:
        w.node("Squeeze", [part, w.ints(dropped)], w.output(op))


@converts("split")
def split(w: Writer, op: Op) -> None:
    """Parts of one axis, of equal or given sizes."""
    x = op.input("X")
    shape, names = w.shape(x), op.outputs("Out")
    (axis,) = axes_of([op.attr("axis", 0)], len(shape))
    sections = list(op.attr("sections") or [])
    if not sections:
        if shape[axis] < 0:
            raise ExportError(f"split of axis {axis} of an open size has no ONNX form here")
        sections = [shape[axis] // len(names)] * len(names)
    if -1 in sections:
        sections[sections.index(-1)] = shape[axis] - sum(size for size in sections if size >= 0)
    outputs = [w.define(name) for name in names]
    w.nodes_with("Split", [w.read(x), w.ints(sections)], outputs, axis=axis)


@converts("unbind", "unstack")
def unbind(w: Writer, op: Op) -> None:
    """Slices of one axis, without that axis."""
    x = op.input("X")
    (axis,) = axes_of([op.attr("axis", 0)], len(w.shape(x)))
    names = op.outputs("Out") or op.outputs("Y")
    for i, name in enumerate(names):
        index = w.constant(np.asarray(i, np.int64), "index")
        w.node("Gather", [w.read(x), index], w.define(name), axis=axis)


@converts("concat")
def concat(w: Writer, op: Op) -> None:
    """Tensors joined along an axis."""
    names = op.inputs("X")
    rank = max(len(w.shape(name)) for name in names)
    (axis,) = axes_of([op.attr("axis", 0)], rank)
    w.node("Concat", [w.read(name) for name in names], w.output(op), axis=axis)


@converts("stack")
def stack(w: Writer, op: Op) -> None:
    """Tensors joined along a new axis."""
    axis = op.attr("axis", 0)
    (axis,) = axes_of([axis], len(w.shape(op.input("X"))) + 1)
    parts = [w.node("Unsqueeze", [w.read(name), w.ints([axis])]) for name in op.inputs("X")]
    w.node("Concat", parts, w.output(op, "Y"), axis=axis)


@converts("expand_v2")
def expand(w: Writer, op: Op) -> None:
    """Axes of size 1 repeated; -1 keeps an axis, which in ONNX a size of 1 does."""
    if op.inputs("Shape") or op.inputs("expand_shapes_tensor"):
        shape = _vector(w, op, "Shape", "expand_shapes_tensor", "shape")
        kept = w.node("Equal", [shape, w.ints([-1])])
        shape = w.node("Where", [kept, w.ints([1]), shape])
    else:
        shape = w.ints([1 if size == -1 else size for size in op.attr("shape")])
    w.node("Expand", [w.input(op), shape], w.output(op))


@converts("expand_as_v2")
def expand_as(w: Writer, op: Op) -> None:
    """To the shape of another tensor."""
    if op.inputs("Y"):
        shape = w.node("Shape", [w.input(op, "Y")])
    else:
        shape = w.ints([1 if size == -1 else size for size in op.attr("target_shape")])
    w.node("Expand", [w.input(op), shape], w.output(op))


@converts("tile")
def tile(w: Writer, op: Op) -> None:
    """Copies along each axis."""
    rank = len(w.shape(op.input("X")))
    x = w.input(op)
    if op.inputs("RepeatTimes") or op.inputs("repeat_times_tensor"):
        times = _vector(w, op, "RepeatTimes", "repeat_times_tensor", "repeat_times")
    else:
        given = list(op.attr("repeat_times"))
        if len(given) > rank:
            x = w.node("Unsqueeze", [x, w.ints(range(len(given) - rank))])
        times = w.ints([1] * (rank - len(given)) + given)
    w.node("Tile", [x, times], w.output(op))


@converts("pad3d", "pad")
def pad(w: Writer, op: Op) -> None:
    """Values around a tensor."""
    x = op.input("X")
    rank = len(w.shape(x))
    given = list(op.attr("paddings"))
    if op.type == "pad":
        begins, ends = given[0::2], given[1::2]
        mode, value = "constant", op.attr("pad_value", 0.0)
    else:
        # Pairs (begin, end) of the spatial axes, the last axis first.
        pairs = list(zip(given[0::2], given[1::2]))[: rank - 2][::-1]
        spatial = ([b for b, _ in pairs], [e for _, e in pairs])
        first = op.attr("data_format", "NCDHW")[1] == "C"
        begins, ends = ([0, 0, *side] if first else [0, *side, 0] for side in spatial)
        mode, value = op.attr("mode", "constant"), op.attr("value", 0.0)
    if mode == "circular":
        w.same(op, _wrapped(w, w.read(x), begins, ends))
        return
    kind = {"constant": "constant", "reflect": "reflect", "replicate": "edge"}[mode]
    inputs = [w.read(x), w.ints([*begins, *ends])]
    if kind == "constant":
        inputs.append(w.scalar(value, x))
    w.node("Pad", inputs, w.output(op), mode=kind)


def _wrapped(w: Writer, x: str, begins: list[int], ends: list[int]) -> str:
    """A tensor continued by itself: its last values before it, its first ones after it."""
    for axis, (begin, end) in enumerate(zip(begins, ends)):
        parts = [x]
        if begin:
            bounds = [w.ints([-begin]), w.ints([2**31 - 1]), w.ints([axis])]
            parts.insert(0, w.node("Slice", [x, *bounds]))
        if end:
            parts.append(w.node("Slice", [x, w.ints([0]), w.ints([end]), w.ints([axis])]))
        if len(parts) > 1:
            x = w.node("Concat", parts, axis=axis)
    return x


@converts("shape")
def shape_of(w: Writer, op: Op) -> None:
    """The sizes of a tensor, int32 (int64 where Paddle says so)."""
    sizes = w.node("Shape", [w.input(op, "Input")])
    if w.dtype(op.output("Out")) == "int64":
        w.same(op, sizes)
    else:
        w.node("Cast", [sizes], w.output(op), to=6)


@converts("fill_constant")
def fill(w: Writer, op: Op) -> None:
    """A tensor of one value."""
    dtype = _NAMES[op.attr("dtype")]
    text = op.attr("str_value")
    value = np.asarray(float(text) if text else op.attr("value", 0.0)).astype(dtype)
    if op.inputs("ShapeTensor") or op.inputs("ShapeTensorList"):
        shape = _vector(w, op, "ShapeTensor", "ShapeTensorList", "shape")
        w.node("Expand", [w.constant(value, "value"), shape], w.output(op))
        return
    w.same(op, w.constant(np.full(op.attr("shape"), value, dtype), "filled"))


@converts("fill_any_like", "fill_zeros_like")
def fill_like(w: Writer, op: Op) -> None:
    """A tensor of one value in the shape of another."""
    dtype = w.dtype(op.output("Out"))
    value = w.constant(np.asarray(op.attr("value", 0.0)).astype(dtype), "value")
    w.node("Expand", [value, w.node("Shape", [w.input(op)])], w.output(op))


@converts("fill_constant_batch_size_like")
def fill_batch(w: Writer, op: Op) -> None:
    """A tensor of one value with as many samples as another."""
    dtype = _NAMES[op.attr("dtype")]
    text = op.attr("str_value")
    value = w.constant(np.asarray(float(text) if text else op.attr("value", 0.0)).astype(dtype))
    shape = list(op.attr("shape"))
    of, to = op.attr("input_dim_idx", 0), op.attr("output_dim_idx", 0)
    sizes = w.node("Shape", [w.input(op, "Input")])
    count = w.node("Slice", [sizes, w.ints([of]), w.ints([of + 1]), w.ints([0])])
    parts = [w.ints([size]) for size in shape]
    parts[to] = count
    w.node("Expand", [value, w.node("Concat", parts, axis=0)], w.output(op))


@converts("assign_value")
def assign_value(w: Writer, op: Op) -> None:
    """A constant."""
    dtype = _NAMES[op.attr("dtype")]
    lists = ("fp32_values", "int32_values", "int64_values", "bool_values", "values")
    values: list[Any] = next((op.attr(name) for name in lists if op.attr(name)), [])
    w.same(op, w.constant(np.asarray(values, dtype).reshape(op.attr("shape")), "value"))


@converts("range")
def arange(w: Writer, op: Op) -> None:
    """Numbers from start up to end."""
    inputs = [w.node("Reshape", [w.input(op, s), w.ints([])]) for s in ("Start", "End", "Step")]
    w.node("Range", inputs, w.output(op))


@converts("arg_max", "arg_min")
def arg_extreme(w: Writer, op: Op) -> None:
    """Where the largest or smallest value is, the first of equal ones."""
    from onnx import helper

    x = w.input(op)
    keep, axis = int(bool(op.attr("keepdims"))), int(op.attr("axis", -1))
    if op.attr("flatten"):
        x, axis = w.node("Reshape", [x, w.ints([-1])]), 0
    kind = "ArgMax" if op.type == "arg_max" else "ArgMin"
    dtype = w.dtype(op.output("Out"))
    if dtype == "int64":
        w.node(kind, [x], w.output(op), axis=axis, keepdims=keep)
        return
    index = w.node(kind, [x], axis=axis, keepdims=keep)
    w.node("Cast", [index], w.output(op), to=helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))


@converts("top_k_v2")
def top_k(w: Writer, op: Op) -> None:
    """The k largest values and where they are."""
    k = _as_int64(w, op.input("K"), [1]) if op.inputs("K") else w.ints([op.attr("k")])
    outputs = [w.output(op, "Out"), w.output(op, "Indices")]
    axis, largest = op.attr("axis", -1), int(op.attr("largest", True))
    w.nodes_with("TopK", [w.input(op), k], outputs, axis=axis, largest=largest, sorted=1)


@converts("flip", "reverse")
def flip(w: Writer, op: Op) -> None:
    """Axes backwards."""
    axes = list(op.attr("axis"))
    count = len(axes)
    bounds = [w.ints([-1] * count), w.ints([-(2**62)] * count), w.ints(axes), w.ints([-1] * count)]
    w.node("Slice", [w.input(op), *bounds], w.output(op))


@converts("roll")
def roll(w: Writer, op: Op) -> None:
    """Values moved along axes, those at the end to the beginning."""
    x = op.input("X")
    value, shape = w.read(x), w.shape(x)
    for by, axis in zip(op.attr("shifts"), axes_of(op.attr("axis"), len(shape))):
        at, end = w.ints([-by]), w.ints([2**62])
        if shape[axis] > 0:
            at = w.ints([-by % shape[axis]])
        tail = w.node("Slice", [value, at, end, w.ints([axis])])
        head = w.node("Slice", [value, w.ints([0]), at, w.ints([axis])])
        value = w.node("Concat", [tail, head], axis=axis)
    w.same(op, value)


@converts("pixel_shuffle")
def pixel_shuffle(w: Writer, op: Op) -> None:
    """Channels to positions."""
    by = op.attr("upscale_factor")
    w.node("DepthToSpace", [w.input(op)], w.output(op), blocksize=by, mode="CRD")


@converts("shuffle_channel", "channel_shuffle")
def channel_shuffle(w: Writer, op: Op) -> None:
    """Channels of all groups in turn."""
    x = op.input("X")
    groups = op.attr("group" if op.type == "shuffle_channel" else "groups", 1)
    channels = w.shape(x)[1]
    sizes = w.node("Shape", [w.read(x)])
    parts = w.node("Reshape", [w.read(x), w.ints([0, groups, channels // groups, -1])])
    mixed = w.node("Transpose", [parts], perm=[0, 2, 1, 3])
    w.node("Reshape", [mixed, sizes], w.output(op))


@converts("one_hot_v2")
def one_hot(w: Writer, op: Op) -> None:
    """1 at the index, 0 elsewhere."""
    depth = w.ints([op.attr("depth")])
    values = w.constant(np.asarray([0, 1], w.dtype(op.output("Out"))), "off_on")
    w.node("OneHot", [w.input(op), depth, values], w.output(op), axis=-1)
