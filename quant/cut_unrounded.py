"""Writes a cut to the ends of a grid for operators that would round as well.

A quantizer that does not round stands in the lowered graph like any other: in an ONNX file it is
the kernel that leaves the rounding out. Paddle's operators always round, so for them it becomes

    x -> clip(low s / high, s)
"""

from __future__ import annotations

from .graph import Graph, new_op
from .lower import Lowered


def cut_unrounded(graph: Graph, lowered: Lowered) -> None:
    """Rewrites the lowered graph in place; what it replaces leaves `lowered.unsigned`."""
    for quantize in lowered.unrounded:
        (dequantize,) = graph.consumers(quantize.output("Y"))
        scale = float(graph.constants[quantize.input("Scale")][0])
        is_unsigned = any(op is quantize for op in lowered.unsigned)
        cut = new_op(
            "clip",
            {"X": [quantize.input("X")]},
            {"Out": [dequantize.output("Y")]},
            min=0.0 if is_unsigned else scale * -128.0 / 127.0,
            max=scale,
        )
        graph.replace(quantize, [cut])
        graph.remove(dequantize)
    lowered.unsigned = [
        op for op in lowered.unsigned if not any(op is cut for cut in lowered.unrounded)
    ]
