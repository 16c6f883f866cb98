"""Linear as a 1x1 convolution: the one form whose scales oneDNN's passes find."""

from __future__ import annotations

import numpy as np

from .fold import Tail
from .graph import Graph, Op, new_op


def has_rows(graph: Graph, x: str) -> bool:
    """True where x [..., in] has rows: two axes or more."""
    return len(graph.shape(x) or []) >= 2


def as_convolution(graph: Graph, matmul: Op, tail: Tail, inputs: int) -> tuple[Op, str]:
    """Turns x [..., in] @ w [in, out] into a 1x1 convolution of rows [n, in, 1, 1].

    `inputs` is the number of input features, which the traced shape of x may leave open.

    Paddle's oneDNN passes find the scales of a matrix [in, out] along the wrong axis (they take
    the maxima of runs of `in` values of its memory), and those of a convolution along the right
    one. Whatever followed the product follows the reshaped convolution.
    """
    x, mark, product = matmul.input("X"), matmul.input("Y"), matmul.output("Out")
    marked = graph.producer(x)
    if marked is not None and (marked.type != "assign" or not graph.is_private(x)):
        marked = None
    original = x if marked is None else marked.input("X")
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
    # The rows are what is quantized: engines look for the quantizer right before the convolution.
    if marked is not None:
        source = _before_flattening(graph, original)
        if source is None:
            whole = _unflattened(graph, original)
            reshaped_in = _reshape(graph, whole, rows, [-1, inputs, 1, 1])
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
        back = _reshape_back(graph, final, tail.output, shape, original)
        graph.replace(tail.ops[-1], [tail.ops[-1], *back])
        tail.output = final
    else:
        new += _reshape_back(graph, columns, product, shape, original)
    graph.replace(matmul, new)
    return convolution, columns


def _reshape_back(graph: Graph, source: str, target: str, shape: list[int], x: str) -> list[Op]:
    """Gives rows [n, out, 1, 1] the leading axes of `x` again; `shape` is what they should get.

    Where more than one axis is open, their sizes are taken from `x` when the model runs.
    """
    if sum(size < 0 for size in shape) <= 1:
        # One axis is always left open, so that the file takes any number of samples.
        return [_reshape(graph, source, target, shape if -1 in shape else [-1, *shape[1:]])]
    rank = len(shape)
    sizes = graph.add_integers(f"{target}.sizes", [rank])
    leading = graph.add_integers(f"{target}.leading", [rank - 1])
    full = graph.add_integers(f"{target}.shape", [rank])
    last = graph.add_constant(f"{target}.features", np.array([shape[-1]], np.int32))
    take = new_op("slice", {"Input": [sizes]}, {"Out": [leading]})
    for name, values in (("axes", [0]), ("starts", [0]), ("ends", [rank - 1])):
        take.set_ints(name, values)
    take.set_ints("infer_flags", [1])
    take.set_ints("decrease_axis", [])
    back = _reshape(graph, source, target, [-1, *shape[1:-1], shape[-1]])
    back.set_input("Shape", [full])
    return [
        new_op("shape", {"Input": [x]}, {"Out": [sizes]}),
        take,
        new_op("concat", {"X": [leading, last]}, {"Out": [full]}, axis=0),
        back,
    ]


def _before_flattening(graph: Graph, name: str) -> str | None:
    """The tensor [n, in, 1, 1] of which `name` [n, in] is the flattened form, if it is one."""
    flatten = graph.producer(name)
    kinds = ("flatten_contiguous_range", "flatten2", "reshape2", "squeeze2")
    if flatten is None or flatten.type not in kinds or flatten.inputs("ShapeTensor"):
        return None
    shape, source = graph.shape(name) or [], graph.shape(flatten.input("X")) or []
    same = len(shape) == 2 and len(source) == 4 and source[2:] == [1, 1] and source[1] == shape[1]
    return flatten.input("X") if same and source[1] > 0 else None


def _unflattened(graph: Graph, name: str) -> str:
    """The tensor [n, ...] of which `name` [n, in] is the flattened form, else `name` itself."""
    flatten = graph.producer(name)
    if flatten is None or flatten.type != "flatten_contiguous_range":
        return name
    is_whole = flatten.attr("start_axis") == 1 and len(graph.shape(name) or []) == 2
    return flatten.input("X") if is_whole else name


def _reshape(graph: Graph, source: str, target: str, shape: list[int]) -> Op:
    kept = graph.add_shaped(f"{target}.xshape", [0, *(graph.shape(source) or [])])
    op = new_op("reshape2", {"X": [source]}, {"Out": [target], "XShape": [kept]})
    op.set_ints("shape", shape)
    return op
