"""What folds into a convolution or matrix product: its bias and a BatchNorm.

Per output channel, with gamma' = gamma / sqrt(variance + epsilon):

    weight' = weight * gamma'      codes' = codes * sign(gamma'),  scale' = scale * |gamma'|
    bias'   = beta + (bias - mean) * gamma'

so the integer codes stay what training simulated.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from .graph import CONVOLUTIONS, Graph, Op


@dataclass
class Tail:
    """What follows a product and folds into it.

    Attributes:
        output: name of the tensor after it.
        bias: the constant that is added per channel, if any.
        batch_norm: the BatchNorm in evaluation mode, if any.
        ops: the operators that are replaced by one addition.
    """

    output: str
    bias: np.ndarray | None = None
    batch_norm: Op | None = None
    ops: list[Op] = field(default_factory=list)


def find_tail(graph: Graph, op: Op, product: str, channels: int) -> Tail:
    """The tail of `op`, whose result `product` has `channels` channels."""
    tail = Tail(product)
    axis = channel_axis(graph, op, product)
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


def _only_reader(graph: Graph, name: str) -> Op | None:
    return graph.consumers(name)[0] if graph.is_private(name) else None


def channel_axis(graph: Graph, op: Op, product: str) -> int:
    """The axis of `product` along which its output channels lie."""
    rank = len(graph.shape(product) or [])
    if op.type in CONVOLUTIONS and op.attr("data_format") != "NHWC":
        return 1
    return rank - 1


def _bias_value(graph: Graph, add: Op, product: str, axis: int, channels: int) -> np.ndarray | None:
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


def fold(graph: Graph, norm: Op, bias: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Gain (gamma') and bias' of a BatchNorm, in float64."""
    gamma, beta, mean, variance = (
        graph.constants[norm.input(slot)].astype(np.float64)
        for slot in ("Scale", "Bias", "Mean", "Variance")
    )
    gain = gamma / np.sqrt(variance + norm.attr("epsilon"))
    return gain, beta + (bias - mean) * gain
