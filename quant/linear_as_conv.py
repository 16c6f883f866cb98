"""Linear as a 1x1 convolution: the one form whose scales oneDNN's passes find."""

from __future__ import annotations

from .fold import Tail
from .graph import Graph, Op, new_op


def has_known_rows(graph: Graph, x: str) -> bool:
    """True where x [..., in] can be reshaped to rows and back: one size at most is open."""
    shape = graph.shape(x) or []
    return len(shape) >= 2 and shape[-1] > 0 and sum(size < 0 for size in shape) <= 1


def as_convolution(graph: Graph, matmul: Op, tail: Tail) -> tuple[Op, str]:
    """Turns x [..., in] @ w [in, out] into a 1x1 convolution of rows [n, in, 1, 1].

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
