"""Uniform fake quantization with zero point 0.

NumPy reference, s being the scale (the largest value that is represented), low and high the
first and last code of the grid (see grid.py; -r and r = 2^(b-1) - 1 in the plain simulation):

    q = np.clip(np.rint(x / s * high), low, high)      # rint rounds half to even
    y = q * s / high                                   # s = 0 gives y = 0
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import paddle
from paddle import Tensor
from paddle.autograd import PyLayer

from . import native
from .grid import Grid, symmetric

# Adding and subtracting 1.5 * 2^23 leaves a float32 below 2^22 rounded half to even by the
# float unit itself. paddle.round rounds halves away from zero on some builds.
_ROUND_MAGIC = 12582912.0

# Below this a scale counts as zero: r / s must stay finite for every width, and Paddle's
# quantize_linear kernel changes its formula at the same bound.
_TINY = 1e-30


def round_half_even(x: Tensor) -> Tensor:
    """Rounds float32 values with |x| < 2^22 to the nearest integer, halves to the even one."""
    return (x + _ROUND_MAGIC) - _ROUND_MAGIC


def quantize(x: Tensor, scale: Tensor, grid: Grid) -> Tensor:
    """Codes of `x` as float32: clip(round(x / s * high), low, high); rounded if the grid `rounds`.

    Args:
        x: float32, any shape.
        scale: float32, broadcastable to `x`; zero marks a tensor (or channel) that is all zero.
        grid: the codes.
    """
    r = float(grid.high)
    # (r * (1 / s)) * x, in this order, is what Paddle's quantize_linear kernel computes: the
    # same order keeps the simulation and the exported file on the same side of every step.
    positive = scale > _TINY
    inverse = r * paddle.reciprocal(paddle.where(positive, scale, paddle.ones_like(scale)))
    inverse = paddle.where(positive, inverse, paddle.zeros_like(inverse))
    # Clip first: rounding by addition needs small values, and the outcome is the same.
    codes = paddle.clip(x * inverse, float(grid.low), r)
    return round_half_even(codes) if grid.rounds else codes


def dequantize(codes: Tensor, scale: Tensor, grid: Grid) -> Tensor:
    """Values of codes: q * s / high."""
    # By a tensor: some versions of Paddle multiply by the reciprocal of a number instead.
    return codes * scale / paddle.full([1], float(grid.high), dtype="float32")


def quantize_dequantize(x: Tensor, scale: Tensor, grid: Grid) -> Tensor:
    """The values of the codes of `x`, without a gradient; float32."""
    if native.runs_on(x):
        return native.fake_quant(x, scale, grid)
    return dequantize(quantize(x, scale, grid), scale, grid)


class _FakeQuant(PyLayer):
    """The gradient is handed through unchanged (STE), so nothing is kept for it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, how: list[Any]) -> Tensor:
        return quantize_dequantize(x, *how)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad


class _FakeQuantPact(PyLayer):
    """The saturation of a scale that is at most alpha is the clip at alpha."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, alpha: Tensor, how: list[Any]) -> Tensor:
        _keep_for_pact(ctx, x, alpha)
        return quantize_dequantize(x, *how)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        return _pact_backward(ctx, grad)


class _Pact(PyLayer):
    @staticmethod
    def forward(ctx: Any, x: Tensor, alpha: Tensor) -> Tensor:
        _keep_for_pact(ctx, x, alpha)
        return paddle.maximum(paddle.minimum(x, alpha), -alpha)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        return _pact_backward(ctx, grad)


def _keep_for_pact(ctx: Any, x: Tensor, alpha: Tensor) -> None:
    ctx.save_for_backward(x, alpha)
    ctx.wanted = not x.stop_gradient, not alpha.stop_gradient


def _pact_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
    x, alpha = ctx.saved_tensor()
    # For an input without a gradient a PyLayer has to return None.
    dx, dalpha = (g if w else None for g, w in zip(pact_gradients(x, alpha, grad), ctx.wanted))
    return dx, dalpha


def pact_gradients(x: Tensor, alpha: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients for `x` and for `alpha`, shape [1], of what `pact` gives.

    dx = grad where |x| <= alpha, else 0; dalpha = sum(grad where x > alpha)
    - sum(grad where x < -alpha).
    """
    if native.runs_on(x) and grad.dtype == paddle.float32:
        return native.pact_backward(x, alpha, grad)
    none = paddle.zeros_like(grad)
    above, below = x > alpha, x < -alpha
    inside = paddle.logical_not(paddle.logical_or(above, below))
    dalpha = paddle.where(above, grad, none).sum() - paddle.where(below, grad, none).sum()
    return paddle.where(inside, grad, none), dalpha.reshape([1]).astype(alpha.dtype)


class FakeQuantization(NamedTuple):
    """How one tensor is fake quantized: the arguments of `fake_quant` but for the tensor."""

    scale: Tensor
    grid: Grid
    alpha: Tensor | None = None


def fake_quant(x: Tensor, scale: Tensor, grid: Grid, alpha: Tensor | None = None) -> Tensor:
    """Fake quantization with a straight-through gradient: dy/dx = 1 everywhere, none for s.

    Args:
        x: float tensor of any shape; the arithmetic is float32.
        scale: float32 tensor, one number or one per index of an axis, broadcastable to `x`.
        grid: the codes, of 2 to 16 bits.
        alpha: where PACT clips, shape [1], not below `scale`; the gradient is then PACT's
            (`pact_gradients`).

    Source: Bengio et al., arXiv:1308.3432 (straight-through estimator); the identity gradient is
    that of Paddle's fake_quantize_dequantize ops.
    """
    dtype = x.dtype
    if dtype != paddle.float32:
        x = x.astype("float32")
    how = [scale.detach(), grid]
    y = _FakeQuant.apply(x, how) if alpha is None else _FakeQuantPact.apply(x, alpha, how)
    return y if dtype == paddle.float32 else y.astype(dtype)


def pact(x: Tensor, alpha: Tensor) -> Tensor:
    """PACT on both sides (arXiv:1805.06085): y = x - relu(x - alpha) + relu(-alpha - x).

    That is `x` clipped to [-alpha, alpha]; d y / d alpha is 1 above alpha, -1 below -alpha, else 0.
    """
    return _Pact.apply(x, alpha)


def abs_max(x: Tensor, axis: int | None = None) -> Tensor:
    """max|x| as float32: shape [1], or broadcastable to `x` with one value per index of `axis`."""
    x = x.detach()
    if x.dtype != paddle.float32:
        x = x.astype("float32")
    if native.runs_on(x):
        return native.abs_max(x, axis)
    if axis is None:
        return x.abs().max().reshape([1])
    others = [i for i in range(len(x.shape)) if i != axis]
    return x.abs().max(axis=others, keepdim=True) if others else x.abs()


def codes_numpy(x: np.ndarray, scale: np.ndarray, bits: int) -> np.ndarray:
    """`quantize` on the symmetric grid, in NumPy float32 and in the same order; int8 up to 8 bits.

    Args:
        x: float32 weights.
        scale: float32, broadcastable to `x`.
        bits: width of a code.
    """
    r = np.float32(symmetric(bits).high)
    scale = scale.astype(np.float32)
    positive = scale > _TINY
    inverse = np.where(positive, r * (np.float32(1) / np.where(positive, scale, 1)), 0)
    codes = np.rint(np.clip(x.astype(np.float32) * inverse.astype(np.float32), -r, r))
    return codes.astype(np.int8 if bits <= 8 else np.int16)
