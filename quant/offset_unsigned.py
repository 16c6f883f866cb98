"""Writes 255 unsigned steps for Paddle's plain CPU operators, which know signed integers only.

With the step d = s / 255 the codes 0 to 255 are those from -128 to 127, shifted by 128:

    x -> x - 128 d -> quantize_linear, dequantize_linear of step d -> + 128 d

128 is even, so ties round as they would without the shift.
"""

from __future__ import annotations

import numpy as np

from .graph import Graph, Op, new_op

_SHIFT, _STEPS, _INT8_MAX = 128.0, 255.0, 127.0


def offset_unsigned(graph: Graph, unsigned: list[Op]) -> None:
    """Rewrites the lowered graph in place.

    Args:
        graph: what lower.py made of the network.
        unsigned: the quantize_linear operators that stand for 255 unsigned steps.
    """
    for quantize in unsigned:
        (dequantize,) = graph.consumers(quantize.output("Y"))
        x, y = quantize.input("X"), dequantize.output("Y")
        step = float(graph.constants[quantize.input("Scale")][0]) / _STEPS
        scale = graph.add_constant(f"{x}.step", np.array([step * _INT8_MAX], np.float32))
        below, above = graph.add_like(f"{x}.below", x), graph.add_like(f"{x}.above", x)
        quantize.set_input("X", [below])
        dequantize.set_output("Y", [above])
        for op in (quantize, dequantize):
            op.set_input("Scale", [scale])
        block = graph.block_of(quantize)
        graph.insert(block, quantize, _shifted(x, below, -_SHIFT * step))
        graph.insert_after(block, dequantize, _shifted(above, y, _SHIFT * step))


def _shifted(x: str, y: str, by: float) -> Op:
    return new_op("scale", {"X": [x]}, {"Out": [y]}, scale=1.0, bias=by, bias_after_scale=True)
