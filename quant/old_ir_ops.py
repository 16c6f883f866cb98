"""Paddle 3 binds some functions (sigmoid, sum, matmul ...) to kernels that its old IR cannot call.

`paddle._C_ops.sigmoid` of 3.3 takes tensors and values of the new IR only, so a network that uses
it cannot be traced in the old one. While a trace runs, these functions append the operator that
the old IR has for them; called with anything but a variable of the old IR they stay as they are.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import paddle
from paddle.base.framework import Variable
from paddle.base.layer_helper import LayerHelper

_UNARY = (
    "abs acos acosh asin asinh atan atanh ceil cos cosh erf exp expm1 floor log log10 log1p log2 "
    "reciprocal round rsqrt sigmoid sign sin sinh sqrt square tan tanh logical_not"
).split()
_TESTS = {"isfinite": "isfinite_v2", "isinf": "isinf_v2", "isnan": "isnan_v2"}
_ELEMENTWISE = {
    "multiply": "elementwise_mul",
    "maximum": "elementwise_max",
    "minimum": "elementwise_min",
}
_COMPARE = ("greater_than", "logical_and", "logical_or", "logical_xor")
_REDUCE = {
    "sum": "reduce_sum",
    "amax": "reduce_amax",
    "amin": "reduce_amin",
    "all": "reduce_all",
    "any": "reduce_any",
}


def _append(
    op_type: str,
    inputs: dict[str, Any],
    attrs: dict[str, Any] | None = None,
    dtype: Any = None,
    extra_outputs: tuple[str, ...] = (),
) -> Any:
    first = next(iter(inputs.values()))
    helper = LayerHelper(op_type)
    out = helper.create_variable_for_type_inference(dtype=dtype or first.dtype)
    outputs = {"Out": out}
    for slot in extra_outputs:
        outputs[slot] = helper.create_variable_for_type_inference(dtype=first.dtype)
    helper.append_op(type=op_type, inputs=inputs, outputs=outputs, attrs=attrs or {})
    return out


def _unary(op_type: str, dtype: Any = None) -> Callable[..., Any]:
    def build(x: Any, name: str | None = None, **unused: Any) -> Any:
        return _append(op_type, {"X": x}, dtype=dtype)

    return build


def _binary(op_type: str, attrs: dict[str, Any], dtype: Any = None) -> Callable[..., Any]:
    def build(x: Any, y: Any, name: str | None = None, **unused: Any) -> Any:
        return _append(op_type, {"X": x, "Y": y}, attrs, dtype)

    return build


def _axes(x: Any, axis: Any) -> tuple[list[int], bool]:
    """The axes of a reduction, and whether these are all of them."""
    if axis is None or axis == [] or axis == ():
        return [0], True
    axes = list(axis) if isinstance(axis, (list, tuple)) else [axis]
    return axes, len(axes) == len(x.shape)


def _reduce(op_type: str, dtype: Any = None) -> Callable[..., Any]:
    def build(
        x: Any, axis: Any = None, keepdim: Any = False, name: str | None = None, **other: Any
    ) -> Any:
        if op_type == "reduce_sum" and not isinstance(keepdim, bool):
            # paddle.sum(x, axis, dtype, keepdim) has a dtype in this place.
            other.setdefault("dtype", keepdim)
            keepdim = name if isinstance(name, bool) else False
        axes, reduce_all = _axes(x, axis)
        attrs = {"dim": axes, "keep_dim": bool(keepdim), "reduce_all": reduce_all}
        if other.get("dtype") is not None:
            x = paddle.cast(x, other["dtype"])
        return _append(op_type, {"X": x}, attrs, dtype)

    return build


def _logsumexp(x: Any, axis: Any = None, keepdim: bool = False, name: Any = None) -> Any:
    axes, reduce_all = _axes(x, axis)
    attrs = {"axis": axes, "keepdim": keepdim, "reduce_all": reduce_all}
    return _append("logsumexp", {"X": x}, attrs)


def _matmul(
    x: Any, y: Any, transpose_x: bool = False, transpose_y: bool = False, name: Any = None
) -> Any:
    return _append("matmul_v2", {"X": x, "Y": y}, {"trans_x": transpose_x, "trans_y": transpose_y})


def _arg(op_type: str) -> Callable[..., Any]:
    def build(
        x: Any, axis: Any = None, keepdim: bool = False, dtype: Any = "int64", name: Any = None
    ) -> Any:
        number = paddle.base.framework.convert_np_dtype_to_dtype_(dtype)
        attrs = {
            "axis": 0 if axis is None else axis,
            "keepdims": keepdim,
            "flatten": axis is None,
            "dtype": number,
        }
        return _append(op_type, {"X": x}, attrs, dtype)

    return build


def _gelu(x: Any, approximate: Any = False, name: Any = None) -> Any:
    return _append("gelu", {"X": x}, {"approximate": approximate in (True, "tanh")})


def _softplus(x: Any, beta: float = 1.0, threshold: float = 20.0, name: Any = None) -> Any:
    return _append("softplus", {"X": x}, {"beta": float(beta), "threshold": float(threshold)})


def _expand_as(x: Any, y: Any, name: Any = None) -> Any:
    return _append("expand_as_v2", {"X": x, "Y": y}, {"target_shape": list(y.shape)})


def _roll(x: Any, shifts: Any, axis: Any = None, name: Any = None) -> Any:
    shifts = list(shifts) if isinstance(shifts, (list, tuple)) else [shifts]
    axis = [] if axis is None else list(axis) if isinstance(axis, (list, tuple)) else [axis]
    return _append("roll", {"X": x}, {"shifts": shifts, "axis": axis})


def _triangle(lower: bool) -> Callable[..., Any]:
    def build(x: Any, diagonal: int = 0, name: Any = None) -> Any:
        return _append("tril_triu", {"X": x}, {"diagonal": diagonal, "lower": lower})

    return build


def _normalize(
    x: Any, p: float = 2, axis: int = 1, epsilon: float = 1e-12, name: Any = None, **unused: Any
) -> Any:
    norm = paddle.norm(x, p=p, axis=axis, keepdim=True)
    return paddle.divide(x, paddle.clip(norm, min=epsilon))


def _builders() -> dict[str, Callable[..., Any]]:
    table: dict[str, Callable[..., Any]] = {name: _unary(name) for name in _UNARY}
    table.update({name: _unary(op, "bool") for name, op in _TESTS.items()})
    table.update({name: _binary(op, {"axis": -1}) for name, op in _ELEMENTWISE.items()})
    table.update({name: _binary(name, {"axis": -1}, "bool") for name in _COMPARE})
    table.update({name: _reduce(op) for name, op in _REDUCE.items()})
    table["logical_not"] = _unary("logical_not", "bool")
    table.update({name: _reduce(_REDUCE[name], "bool") for name in ("all", "any")})
    table.update(dot=_binary("dot", {}), bmm=_binary("bmm", {}), matmul=_matmul, gelu=_gelu)
    table.update(argmax=_arg("arg_max"), argmin=_arg("arg_min"), logsumexp=_logsumexp)
    table.update(softplus=_softplus, expand_as=_expand_as, roll=_roll)
    table.update(tril=_triangle(True), triu=_triangle(False))
    return table


# Names under which Paddle 3 takes the same arguments as PyTorch does.
_ALIASES = {"input": "x", "other": "y", "dim": "axis", "keepdims": "keepdim", "mat2": "y"}


def _dispatch(original: Callable[..., Any], build: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        if not any(isinstance(a, Variable) for a in (*args, *kwargs.values())):
            return original(*args, **kwargs)
        return build(*args, **{_ALIASES.get(k, k): v for k, v in kwargs.items() if k != "out"})

    return call


def _method(build: Callable[..., Any]) -> Callable[..., Any]:
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        return build(self, *args, **{_ALIASES.get(k, k): v for k, v in kwargs.items()})

    return call


@contextmanager
def callable_in_old_ir() -> Iterator[None]:
    """Lets the functions above, and the methods of their names, work on variables of the old IR.

    As methods of a variable they are built-in functions there, which lose the variable.
    """
    table = _builders()
    functions = {
        id(function): (function, table[name])
        for name in table
        if (function := getattr(paddle._C_ops, name, None)) is not None
    }
    normalize = paddle.nn.functional.normalize
    functions[id(normalize)] = (normalize, _normalize)
    undo: list[tuple[Any, str, Any]] = []
    try:
        # Modules of Paddle import these functions by name, so each holds a reference of its own.
        for module in _paddle_modules():
            for key, value in list(vars(module).items()):
                if id(value) in functions:
                    undo.append((module, key, value))
                    setattr(module, key, _dispatch(*functions[id(value)]))
        for name, build in table.items():
            value = getattr(Variable, name, None)
            if inspect.isbuiltin(value):
                undo.append((Variable, name, value))
                setattr(Variable, name, _method(build))
        yield
    finally:
        for owner, key, value in undo:
            setattr(owner, key, value)


def _paddle_modules() -> list[Any]:
    names = [name for name in sys.modules if name == "paddle" or name.startswith("paddle.")]
    return [sys.modules[name] for name in names if inspect.ismodule(sys.modules[name])]
