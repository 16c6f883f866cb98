"""Makes Paddle's oneDNN int8 passes compute what the simulation computes, at their full speed.

The passes keep one scale per float tensor, taken from the quantize_linear that reads it, and give
it to everything that touches the tensor. Three things then go wrong:

* Another reader of the tensor (a residual sum, a concat) gets quantized values, which training
  never gave it. So a tensor that is not read by quantizers alone gets a copy for them, behind an
  operator that saturates where the quantizer would, which changes no value of theirs.
* The scale is handed on through pooling, reshapes, slices and concats in both directions. For an
  average or a slice it does not hold, and a tensor on the way may have other readers. Those
  quantizers get such a copy too.
* A tensor after relu or relu6 is stored as u8 with 255 steps where training had 127 up to the
  scale s. Written as a clip to [0, s] it is stored as s8, which is right but slower than u8.
  Between two convolutions both can be had. relu6 is an operator that saturates, and stays u8:
  with the first convolution's results multiplied by 6 / s (in its weight scales and its bias) and
  the second's weight scales by s / 6, relu6 saturates just where the quantizer does. oneDNN is
  then told that the tensor reaches 6 * 255 / 127, so that 127 of its 255 steps span s. It is told
  by a dequantize_linear that nobody reads: the passes collect the scales of those first.

A quantizer whose grid is unsigned (see placement.py) has these 255 steps in the simulation already,
so there a plain relu does; what the passes do not know to be unsigned is told, or made so by a relu
that changes nothing.

A kernel that has fused one activation and then fuses a second forgets the first, so two in a row
that would be fused in turn are kept apart by an assign.

A convolution that fuses a residual sum runs in float unless all three tensors have a scale, so
the sum is kept apart by an identity (leaky_relu of slope 1), which oneDNN fuses at no cost.
"""

from __future__ import annotations

import numpy as np

from .graph import CONVOLUTIONS, Graph, Op, new_op

# Operators through which the passes hand a scale on.
_HANDED_ON = {
    "flatten2",
    "flatten_contiguous_range",
    "nearest_interp",
    "nearest_interp_v2",
    "pool2d",
    "reshape2",
    "shape",
    "slice",
    "split",
    "squeeze2",
    "transpose2",
    "unsqueeze2",
}
# Activations that the passes fuse into what comes before, in the order of their turns.
_FUSED_ACTIVATIONS = (
    "abs",
    "clip",
    "gelu",
    "hard_sigmoid",
    "hard_swish",
    "leaky_relu",
    "mish",
    "relu",
    "relu6",
    "sigmoid",
    "sqrt",
    "swish",
    "tanh",
)
_SIX = 6.0  # where relu6 saturates
_U8_STEPS, _S8_STEPS = 255.0, 127.0


def suit_onednn(graph: Graph, unsigned: list[Op]) -> None:
    """Rewrites the lowered graph in place; on plain CPU it computes the same values as before.

    Args:
        graph: what lower.py and layout.py made of the network.
        unsigned: the quantize_linear operators that stand for 255 unsigned steps.
    """
    for op in list(graph.ops()):
        if op.type == "quantize_linear":
            if any(op is other for other in unsigned):
                _suit_unsigned(graph, op)
                continue
            if not _scale_stays(graph, op):
                _copy_for_quantizer(graph, op)
            _suit_relus(graph, op)
    for op in list(graph.ops()):
        if op.type == "elementwise_add":
            _keep_sum_apart(graph, op)
    keep_activations_apart(graph)


def is_concatenated(graph: Graph, name: str) -> bool:
    """True where the passes hand the scale of `name` on to a concat, whose integers are signed."""
    producer = graph.producer(_root(graph, name))
    return producer is not None and producer.type == "concat"


def _suit_unsigned(graph: Graph, quantize: Op) -> None:
    """Makes sure that the passes know the quantizer's input as unsigned.

    They do where a relu (or a relu6 within a convolution) has a scale of its own; so has one whose
    result goes straight into the quantizer. One behind a pooling or a reshape is told by a
    dequantize_linear that nobody reads. Anything else goes through a relu, which changes nothing.
    """
    x = quantize.input("X")
    if _scale_stays(graph, quantize):
        root = _root(graph, x)
        producer = graph.producer(root)
        if producer is not None and _is_known_unsigned(graph, producer):
            if root != x:
                block = graph.block_of(producer)
                graph.insert_after(block, producer, _say_scale(graph, root, quantize))
            return
    copy = graph.add_like(f"{x}.unsigned", x)
    relu = new_op("relu", {"X": [x]}, {"Out": [copy]})
    graph.insert(graph.block_of(quantize), quantize, relu)
    quantize.set_input("X", [copy])


def _root(graph: Graph, name: str) -> str:
    """Where `name` comes from by way of operators that hand a scale on."""
    producer = graph.producer(name)
    while producer is not None and producer.type in _HANDED_ON:
        name = _source(producer)
        producer = graph.producer(name)
    return name


def _is_known_unsigned(graph: Graph, op: Op) -> bool:
    if op.type == "relu6":
        return _is_convolution_result(graph, op.input("X"))
    return op.type == "relu"


def _scale(graph: Graph, quantize: Op) -> float:
    return float(graph.constants[quantize.input("Scale")][0])


def _scale_stays(graph: Graph, quantize: Op) -> bool:
    """True where the tensor, and all that its scale is handed on to, may have that scale."""
    return _scale(graph, quantize) > 0 and _handed_well(graph, quantize.input("X"))


def _handed_well(graph: Graph, name: str) -> bool:
    if not graph.is_private(name):
        return False
    producer = graph.producer(name)
    if producer is None:
        return True
    if producer.type == "concat":
        return all(_handed_well(graph, source) for source in producer.inputs("X"))
    if producer.type not in _HANDED_ON:
        return True
    if producer.type in ("slice", "split", "shape"):
        return False
    if producer.type == "pool2d" and producer.attr("pooling_type") != "max":
        return False
    return _handed_well(graph, _source(producer))


def _source(op: Op) -> str:
    """The tensor that an operator of `_HANDED_ON` passes on."""
    return op.input("Input" if op.inputs("Input") else "X")


def _copy_for_quantizer(graph: Graph, quantize: Op) -> None:
    x, scale = quantize.input("X"), _scale(graph, quantize)
    copy = graph.add_like(f"{x}.saturated", x)
    # Codes reach down to -128; where the network stops at -127, lower.py has seen to it.
    saturate = new_op("clip", {"X": [x]}, {"Out": [copy]}, min=-scale * 128 / 127, max=scale)
    graph.insert(graph.block_of(quantize), quantize, saturate)
    quantize.set_input("X", [copy])


def _suit_relus(graph: Graph, quantize: Op) -> None:
    """Gives every relu whose output gets this quantizer's scale a form that keeps the steps."""
    x, scale = quantize.input("X"), _scale(graph, quantize)
    if scale <= 0:
        return
    for relu in _relus_above(graph, x):
        limit = min(scale, _SIX) if relu.type == "relu6" else scale
        direct = relu.output("Out") == x and limit == scale
        factors = _between_convolutions(graph, relu, quantize) if direct else None
        if factors is not None:
            _use_relu6(graph, relu, quantize, factors)
        else:
            outputs = {"Out": relu.outputs("Out")}
            clip = new_op("clip", {"X": relu.inputs("X")}, outputs, min=0.0, max=limit)
            graph.replace(relu, [clip])


def _relus_above(graph: Graph, name: str) -> list[Op]:
    """The relus that `name` comes from by way of operators that hand a scale on."""
    producer = graph.producer(name)
    if producer is None or not graph.is_private(name):
        return []
    if producer.type in ("relu", "relu6"):
        return [producer]
    if producer.type == "concat":
        return [relu for source in producer.inputs("X") for relu in _relus_above(graph, source)]
    if producer.type not in _HANDED_ON:
        return []
    return _relus_above(graph, _source(producer))


def _use_relu6(
    graph: Graph, relu: Op, quantize: Op, factors: tuple[list[str], Op, list[str]]
) -> None:
    x, scale = quantize.input("X"), _scale(graph, quantize)
    before, dequantize, after = factors
    for name in before:
        _multiply(graph, name, _SIX / scale)
    for name in after:
        _multiply(graph, name, scale / _SIX)
    six = graph.add_constant(f"{x}.scale", np.array([_SIX], np.float32))
    quantize.set_input("Scale", [six])
    dequantize.set_input("Scale", [six])
    bounded = new_op("relu6", {"X": relu.inputs("X")}, {"Out": [x]})
    hint = graph.add_constant(f"{x}.u8_scale", np.array([_SIX * _U8_STEPS / _S8_STEPS], np.float32))
    graph.replace(relu, [bounded, _say_scale(graph, x, quantize, hint)])


def _between_convolutions(
    graph: Graph, relu: Op, quantize: Op
) -> tuple[list[str], Op, list[str]] | None:
    """The constants that scale what comes before `relu` and what reads the quantized tensor."""
    before: list[str] = []
    name = relu.input("X")
    producer = graph.producer(name)
    if producer is not None and producer.type == "elementwise_add":
        bias = producer.input("Y")
        if bias not in graph.constants or not graph.is_private(bias) or not graph.is_private(name):
            return None
        before.append(bias)
        name = producer.input("X")
        producer = graph.producer(name)
    scales = _weight_scales(graph, producer)
    if scales is None or not graph.is_private(name):
        return None
    before.append(scales)
    codes = quantize.output("Y")
    readers = graph.consumers(codes)
    if len(readers) != 1 or readers[0].type != "dequantize_linear":
        return None
    value = readers[0].output("Y")
    after = [_weight_scales(graph, op) for op in graph.consumers(value)]
    if not after or None in after or value in graph.outputs:
        return None
    return before, readers[0], [name for name in after if name is not None]


def _weight_scales(graph: Graph, convolution: Op | None) -> str | None:
    """Name of the scales of a quantized convolution's weight, where nothing else reads them."""
    if convolution is None or convolution.type not in CONVOLUTIONS:
        return None
    weight = graph.producer(convolution.input("Filter"))
    if weight is None or weight.type != "dequantize_linear":
        return None
    name = weight.input("Scale")
    alone = graph.is_private(name) and graph.is_private(weight.output("Y"))
    return name if alone else None


def _multiply(graph: Graph, constant: str, factor: float) -> None:
    value = graph.constants[constant].astype(np.float64) * factor
    graph.constants[constant] = value.astype(np.float32)


def _say_scale(graph: Graph, x: str, quantize: Op, scale: str | None = None) -> Op:
    """A dequantize_linear of `x` that nobody reads: oneDNN's passes take the scale from it."""
    return new_op(
        "dequantize_linear",
        {
            "X": [x],
            "Scale": quantize.inputs("Scale") if scale is None else [scale],
            "ZeroPoint": quantize.inputs("ZeroPoint"),
        },
        {"Y": [graph.add_like(f"{x}.unread", x)]},
        quant_axis=-1,
        bit_length=8,
        round_type=0,
    )


def keep_activations_apart(graph: Graph) -> None:
    """Puts an assign between two activations that the passes would fuse into one kernel.

    The second, fused in a later turn, would take the place of the first. That is so in float too.
    """
    for op in list(graph.ops()):
        if op.type not in _FUSED_ACTIVATIONS:
            continue
        x = op.input("X")
        producer = graph.producer(x)
        if producer is None or not graph.is_private(x):
            continue
        if producer.type not in _FUSED_ACTIVATIONS[: _FUSED_ACTIVATIONS.index(op.type)]:
            continue
        apart = graph.add_like(f"{x}.apart", x)
        assign = new_op("assign", {"X": [x]}, {"Out": [apart]})
        graph.insert(graph.block_of(op), op, assign)
        op.set_input("X", [apart])


def _keep_sum_apart(graph: Graph, add: Op) -> None:
    if any(name in graph.constants for name in add.all_inputs()):
        return
    if any(_is_quantized(graph, name) for name in add.all_inputs()):
        return  # a residual that is an integer tensor, as placement.py arranges it
    for slot in ("X", "Y"):
        name = add.input(slot)
        if _is_convolution_result(graph, name) and graph.is_private(name):
            apart = graph.add_like(f"{name}.apart", name)
            identity = new_op("leaky_relu", {"X": [name]}, {"Out": [apart]}, alpha=1.0)
            graph.insert(graph.block_of(add), add, identity)
            add.set_input(slot, [apart])


def _is_quantized(graph: Graph, name: str) -> bool:
    producer = graph.producer(name)
    return producer is not None and producer.type == "dequantize_linear"


def _is_convolution_result(graph: Graph, name: str) -> bool:
    producer = graph.producer(name)
    if producer is not None and producer.type == "elementwise_add":
        if producer.input("Y") in graph.constants:
            producer = graph.producer(producer.input("X"))
    return producer is not None and producer.type in CONVOLUTIONS
