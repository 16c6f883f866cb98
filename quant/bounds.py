"""A lower bound of a tensor's values, read off the graph."""

from __future__ import annotations

import math

import numpy as np

from .graph import Graph, Op

# Smallest value of each activation, rounded down.
_ACTIVATIONS = {
    "relu": 0.0,
    "relu6": 0.0,
    "sigmoid": 0.0,
    "hard_sigmoid": 0.0,
    "softmax": 0.0,
    "exp": 0.0,
    "abs": 0.0,
    "square": 0.0,
    "sqrt": 0.0,
    "softplus": 0.0,
    "silu": -0.2785,
    "gelu": -0.1701,
    "mish": -0.3089,
    "tanh": -1.0,
}
# Ops whose output holds only values (or averages of values) of their input X.
_PASSING = {
    "assign",
    "reshape2",
    "transpose2",
    "flatten_contiguous_range",
    "flatten2",
    "squeeze2",
    "unsqueeze2",
    "slice",
    "strided_slice",
    "split",
    "reduce_mean",
    "reduce_max",
    "nearest_interp_v2",
    "bilinear_interp_v2",
    "channel_shuffle",
    "shuffle_channel",
    "dequantize_linear",
    "quantize_linear",
}


def lower_bound(graph: Graph, name: str, depth: int = 64) -> float:
    """A number that no value of `name` lies below; -inf where nothing is known."""
    if name in graph.constants:
        value = graph.constants[name]
        return float(np.min(value)) if value.size else 0.0
    op = graph.producer(name)
    if op is None or depth == 0:
        return -math.inf

    def of(source: str) -> float:
        return lower_bound(graph, source, depth - 1)

    if op.type in _ACTIVATIONS:
        return _ACTIVATIONS[op.type]
    if op.type in _PASSING:
        slot = "X" if op.inputs("X") else "Input"
        return of(op.input(slot))
    if op.type == "pool2d":
        # Padding takes part in an average as zeros unless `exclusive`; a maximum ignores it.
        return min(of(op.input("X")), 0.0)
    if op.type == "pad3d" or op.type == "pad2d":
        fill = float(op.attr("value", 0.0) or 0.0) if op.attr("mode") == "constant" else math.inf
        return min(of(op.input("X")), fill)
    if op.type == "dropout":
        return min(of(op.input("X")), 0.0)
    if op.type == "hard_swish":
        plain = (op.attr("threshold", 6.0), op.attr("scale", 6.0), op.attr("offset", 3.0))
        return -0.3751 if plain == (6.0, 6.0, 3.0) else -math.inf
    if op.type == "swish":
        return -0.2785 if op.attr("beta", 1.0) == 1.0 else -math.inf
    if op.type == "leaky_relu":
        slope = op.attr("alpha", 0.02)
        below = of(op.input("X"))
        return min(below * slope, 0.0) if slope >= 0 else -math.inf
    if op.type == "clip" and not op.inputs("Min"):
        return max(float(op.attr("min", -math.inf)), of(op.input("X")))
    if op.type == "concat":
        return min(of(source) for source in op.inputs("X"))
    if op.type == "elementwise_add":
        return of(op.input("X")) + of(op.input("Y"))
    if op.type == "elementwise_mul":
        return _product(of(op.input("X")), of(op.input("Y")), op)
    if op.type == "elementwise_max":
        return max(of(op.input("X")), of(op.input("Y")))
    return -math.inf


def _product(a: float, b: float, op: Op) -> float:
    if op.input("X") == op.input("Y"):
        return 0.0
    return 0.0 if a >= 0 and b >= 0 else -math.inf
