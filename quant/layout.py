"""NHWC networks in NCHW: oneDNN's int8 convolution of Paddle reads channels first only.

Each NHWC convolution, pooling and BatchNorm is turned into its NCHW form between two transposes.
Transposes are then moved down through operators that do not care about layout, and a pair that
undoes itself is dropped, so a chain of layers is left with one transpose at each end.
"""

from __future__ import annotations

from .graph import Graph, Op, new_op

_TO_FIRST, _TO_LAST = [0, 3, 1, 2], [0, 2, 3, 1]
_SLOTS = {
    "conv2d": ("Input", "Output", "data_format"),
    "depthwise_conv2d": ("Input", "Output", "data_format"),
    "pool2d": ("X", "Out", "data_format"),
    "batch_norm": ("X", "Y", "data_layout"),
}
_POINTWISE = {
    "abs", "assign", "clip", "dequantize_linear", "dropout", "elu", "exp", "gelu",
    "hard_sigmoid", "hard_swish", "leaky_relu", "mish", "quantize_linear", "relu", "relu6",
    "sigmoid", "silu", "softplus", "sqrt", "square", "swish", "tanh",
}  # fmt: skip


def channels_first(graph: Graph) -> None:
    """Rewrites `graph` in place; nothing happens to a graph without NHWC operators."""
    rewritten = False
    for op in list(graph.ops()):
        slots = _SLOTS.get(op.type)
        if slots is None or op.attr(slots[2]) != "NHWC":
            continue
        if len(graph.shape(op.output(slots[1])) or []) != 4:
            continue
        _wrap(graph, op, *slots)
        rewritten = True
    if rewritten:
        _sink(graph)


def _wrap(graph: Graph, op: Op, in_slot: str, out_slot: str, layout: str) -> None:
    source, target = op.input(in_slot), op.output(out_slot)
    block = graph.block_of(op)
    first_in = graph.add_permuted(f"{source}.nchw", source, _TO_FIRST)
    first_out = graph.add_permuted(f"{target}.nchw", target, _TO_FIRST)
    graph.insert(block, op, _transpose(source, first_in, _TO_FIRST))
    op.set_input(in_slot, [first_in])
    op.set_output(out_slot, [first_out])
    op.set_attr(layout, "NCHW")
    graph.insert_after(block, op, _transpose(first_out, target, _TO_LAST))


def _transpose(source: str, target: str, axis: list[int]) -> Op:
    op = new_op("transpose2", {"X": [source]}, {"Out": [target]})
    op.set_ints("axis", axis)
    return op


def _axis(op: Op) -> list[int]:
    return list(op.attr("axis", [])) if op.type == "transpose2" else []


def _sink(graph: Graph) -> None:
    changed = True
    while changed:
        changed = False
        for op in list(graph.ops()):
            if _axis(op) == _TO_LAST:
                changed = _move_down(graph, op) or changed
            elif _axis(op) == _TO_FIRST:
                changed = _move_before_quantizer(graph, op) or changed
    graph.prune()


def _move_before_quantizer(graph: Graph, transpose: Op) -> bool:
    """Moves a to-first transpose before the quantizer of the network's input.

    Engines look for the quantizer right before the convolution.
    """
    name = transpose.input("X")
    producer = graph.producer(name)
    if producer is None or producer.type not in ("quantize_linear", "dequantize_linear"):
        return False
    readers = graph.consumers(name)
    if name in graph.outputs or any(_axis(reader) != _TO_FIRST for reader in readers):
        return False
    for reader in readers:
        if reader is not transpose:
            graph.redirect(reader.output("Out"), transpose.output("Out"))
            graph.remove(reader)
    source = producer.input("X")
    first = graph.add_permuted(f"{source}.nchw", source, _TO_FIRST)
    graph.insert(graph.block_of(producer), producer, _transpose(source, first, _TO_FIRST))
    producer.set_input("X", [first])
    producer.set_output("Y", transpose.outputs("Out"))
    graph.remove(transpose)
    return True


def _move_down(graph: Graph, transpose: Op) -> bool:
    """Moves a to-last transpose past its readers where that is possible."""
    source, name = transpose.input("X"), transpose.output("Out")
    if name in graph.outputs:
        return False
    moved = False
    for reader in graph.consumers(name):
        if _axis(reader) == _TO_FIRST:
            graph.redirect(reader.output("Out"), source)
            graph.remove(reader)
            moved = True
        elif reader.type in _POINTWISE and reader.inputs("X") == [name]:
            _swap(graph, reader, {"X": [source]})
            moved = True
        elif _adds_to_channels(graph, reader, name):
            reader.set_attr("axis", 1)
            _swap(graph, reader, {"X": [source]})
            moved = True
        elif reader.type in ("elementwise_add", "elementwise_mul", "concat"):
            moved = _through_join(graph, reader) or moved
    if not graph.consumers(name):
        graph.remove(transpose)
    return moved


def _adds_to_channels(graph: Graph, op: Op, name: str) -> bool:
    """True for a bias: a vector that is added along the last of four axes."""
    if op.type != "elementwise_add" or op.input("X") != name or op.attr("axis", -1) not in (-1, 3):
        return False
    bias = op.input("Y")
    return bias in graph.constants and graph.constants[bias].ndim == 1


def _through_join(graph: Graph, op: Op) -> bool:
    """add(T(a), T(b)) = T(add(a, b)), the same for mul; concat changes its axis."""
    names = op.inputs("X") + op.inputs("Y")
    sources = []
    for name in names:
        producer = graph.producer(name)
        if producer is None or _axis(producer) != _TO_LAST:
            return False
        sources.append(producer.input("X"))
    if op.type == "concat":
        axis = op.attr("axis")
        if op.inputs("AxisTensor") or not isinstance(axis, int):
            return False
        op.set_attr("axis", _TO_LAST[axis % 4])
        _swap(graph, op, {"X": sources})
    else:
        shapes = [graph.shape(name) for name in names]
        if shapes[0] != shapes[1]:
            return False
        _swap(graph, op, {"X": sources[:1], "Y": sources[1:]})
    return True


def _swap(graph: Graph, op: Op, inputs: dict[str, list[str]]) -> None:
    """Lets `op` read channels-first inputs, and a transpose follow it."""
    slot_out = "Y" if op.type in ("quantize_linear", "dequantize_linear") else "Out"
    target = op.output(slot_out)
    first = graph.add_permuted(f"{target}.nchw", target, _TO_FIRST)
    for slot, names in inputs.items():
        op.set_input(slot, names)
    op.set_output(slot_out, [first])
    graph.insert_after(graph.block_of(op), op, _transpose(first, target, _TO_LAST))
