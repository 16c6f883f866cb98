"""Operators of two tensors, and products of matrices."""

from __future__ import annotations

import numpy as np

from ..graph import Op
from .quantizers import integer_bias
from .writer import Writer, converts

_BINARY = {
    "elementwise_add": "Add",
    "elementwise_sub": "Sub",
    "elementwise_mul": "Mul",
    "elementwise_div": "Div",
    "elementwise_max": "Max",
    "elementwise_min": "Min",
    "elementwise_pow": "Pow",
    "maximum": "Max",
    "minimum": "Min",
    "equal": "Equal",
    "less_than": "Less",
    "less_equal": "LessOrEqual",
    "greater_than": "Greater",
    "greater_equal": "GreaterOrEqual",
    "logical_and": "And",
    "logical_or": "Or",
    "logical_xor": "Xor",
}


@converts(*_BINARY, "not_equal", "elementwise_mod", "elementwise_floordiv")
def binary(w: Writer, op: Op) -> None:
    """Element by element, the second tensor aligned at `axis` of the first."""
    x, y = w.input(op, "X"), _aligned(w, op)
    if op.type == "not_equal":
        w.node("Not", [w.node("Equal", [x, y])], w.output(op))
    elif op.type in ("elementwise_mod", "elementwise_floordiv"):
        _floored(w, op, x, y)
    elif op.type == "elementwise_div" and w.dtype(op.input("X")).startswith("int"):
        # Paddle divides integers towards zero, as ONNX does.
        w.node("Div", [x, y], w.output(op))
    else:
        w.node(_BINARY[op.type], [x, y], w.output(op))


def _floored(w: Writer, op: Op, x: str, y: str) -> None:
    """Quotient towards minus infinity, or what it leaves, which has the sign of y."""
    if w.dtype(op.input("X")).startswith("float"):
        quotient = w.node("Floor", [w.node("Div", [x, y])])
        if op.type == "elementwise_floordiv":
            w.node("Identity", [quotient], w.output(op))
        else:
            w.node("Sub", [x, w.node("Mul", [quotient, y])], w.output(op))
        return
    rest = w.node("Mod", [x, y])
    if op.type == "elementwise_mod":
        w.node("Identity", [rest], w.output(op))
    else:
        w.node("Div", [w.node("Sub", [x, rest]), y], w.output(op))


def _aligned(w: Writer, op: Op) -> str:
    """The second tensor with axes of size 1 at its end, where `axis` asks for them."""
    x_rank, y_rank = len(w.shape(op.input("X"))), len(w.shape(op.input("Y")))
    axis = op.attr("axis", -1)
    y = w.input(op, "Y")
    missing = 0 if axis in (-1, None) else x_rank - axis - y_rank
    if missing <= 0 or y_rank == 0:
        return y
    if op.input("Y") in w.graph.constants:
        value = w.graph.constants[op.input("Y")]
        return w.constant(value.reshape([*value.shape, *[1] * missing]), op.input("Y"))
    return w.node("Unsqueeze", [y, w.ints(range(y_rank, y_rank + missing))])


@converts("where")
def where(w: Writer, op: Op) -> None:
    """X where the condition holds, Y elsewhere."""
    w.node("Where", [w.input(op, slot) for slot in ("Condition", "X", "Y")], w.output(op))


@converts("sum")
def add_all(w: Writer, op: Op) -> None:
    """The sum of several tensors."""
    w.node("Sum", [w.read(name) for name in op.inputs("X")], w.output(op))


@converts("matmul_v2", "bmm")
def matmul(w: Writer, op: Op) -> None:
    """X @ y, either of them transposed; a quantized Linear of rows with its bias inside."""
    if _as_gemm(w, op):
        return
    x, y = (
        _transposed(w, op.input(slot), bool(op.attr(flag, False)))
        for slot, flag in (("X", "trans_x"), ("Y", "trans_y"))
    )
    w.node("MatMul", [x, y], w.output(op))


def _as_gemm(w: Writer, op: Op) -> bool:
    out = op.output("Out")
    readers = w.graph.consumers(out)
    if w.target.onnx_bias != "int32":
        return False
    if len(w.shape(op.input("X"))) != 2 or not w.graph.is_private(out):
        return False
    add = readers[0]
    if add.type != "elementwise_add" or add.input("X") != out or op.attr("trans_x"):
        return False
    value = w.graph.constants.get(add.input("Y"))
    if value is None or value.shape != (w.shape(out)[1],) or op.attr("trans_y"):
        return False
    bias = integer_bias(w, (op.input("X"), op.input("Y")), value)
    if bias is None:
        return False
    w.done.add(id(add))
    w.node("Gemm", [w.input(op, "X"), w.input(op, "Y"), bias], w.output(add))
    return True


def _transposed(w: Writer, name: str, wanted: bool) -> str:
    rank = len(w.shape(name))
    if not wanted or rank < 2:
        return w.read(name)
    order = [*range(rank - 2), rank - 1, rank - 2]
    return w.node("Transpose", [w.read(name)], perm=order)


@converts("mul")
def mul(w: Writer, op: Op) -> None:
    """X as a matrix times y as a matrix."""
    x, y = op.input("X"), op.input("Y")
    rows, columns = op.attr("x_num_col_dims", 1), op.attr("y_num_col_dims", 1)
    left = w.node("Flatten", [w.read(x)], axis=rows)
    right = w.node("Flatten", [w.read(y)], axis=columns)
    product = w.node("MatMul", [left, right])
    shape = w.shape(op.output("Out"))
    w.node("Reshape", [product, w.ints([0, *shape[1:]])], w.output(op))


@converts("mv")
def matrix_vector(w: Writer, op: Op) -> None:
    """X @ vector."""
    w.node("MatMul", [w.input(op, "X"), w.input(op, "Vec")], w.output(op))


@converts("dot")
def dot(w: Writer, op: Op) -> None:
    """The sum of products along the last axis."""
    product = w.node("Mul", [w.input(op, "X"), w.input(op, "Y")])
    w.node("ReduceSum", [product, w.ints([-1])], w.output(op), keepdims=0)


@converts("addmm")
def addmm(w: Writer, op: Op) -> None:
    """Beta input + alpha x @ y."""
    x = op.input("X")
    product = w.node("MatMul", [w.read(x), w.input(op, "Y")])
    scaled = w.node("Mul", [product, w.scalar(op.attr("Alpha", 1.0), x)])
    base = w.node("Mul", [w.input(op, "Input"), w.scalar(op.attr("Beta", 1.0), x)])
    w.node("Add", [base, scaled], w.output(op))


@converts("einsum")
def einsum(w: Writer, op: Op) -> None:
    """A sum of products, as its equation says."""
    operands = [w.read(name) for name in op.inputs("Operands")]
    w.node("Einsum", operands, w.output(op), equation=op.attr("equation"))


@converts("cumsum")
def cumsum(w: Writer, op: Op) -> None:
    """Running sums along an axis."""
    x = w.input(op)
    if op.attr("flatten", False):
        x = w.node("Reshape", [x, w.ints([-1])])
    axis = w.constant(np.asarray(op.attr("axis", -1), np.int64), "axis")
    exclusive, reverse = int(op.attr("exclusive", False)), int(op.attr("reverse", False))
    w.node("CumSum", [x, axis], w.output(op), exclusive=exclusive, reverse=reverse)


@converts("index_select", "gather")
def gather(w: Writer, op: Op) -> None:
    """Slices along an axis, chosen by index."""
    axis = op.attr("dim" if op.type == "index_select" else "axis", 0)
    if op.inputs("Axis") and op.input("Axis") in w.graph.constants:
        axis = int(w.graph.constants[op.input("Axis")].reshape([-1])[0])
    w.node("Gather", [w.input(op), w.input(op, "Index")], w.output(op), axis=axis or 0)


@converts("gather_nd")
def gather_nd(w: Writer, op: Op) -> None:
    """Slices, chosen by tuples of indices."""
    index = w.node("Cast", [w.input(op, "Index")], to=7)
    w.node("GatherND", [w.input(op), index], w.output(op))


@converts("take_along_axis")
def take_along_axis(w: Writer, op: Op) -> None:
    """Elements along an axis, chosen by index."""
    inputs = [w.input(op, "Input"), w.input(op, "Index")]
    w.node("GatherElements", inputs, w.output(op, "Result"), axis=op.attr("Axis", 0))


@converts("lookup_table_v2")
def embedding(w: Writer, op: Op) -> None:
    """Rows of a table."""
    w.node("Gather", [w.input(op, "W"), w.input(op, "Ids")], w.output(op), axis=0)
