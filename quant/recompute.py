"""A convolution that quantizes its input, and keeps the input as it was for the backward pass.

The gradient of a convolution needs the tensor that it has read: the fake-quantized one. What that
was made of is mostly kept anyway, by the activation that computed it. So that is what is kept here
too, and it is quantized once more in the backward pass, to the same bits: a step then needs the
memory of a float step (`docs/performance.md` has the figures).

A training loop asks for it, since one thing is lost: Paddle's PyLayers of several inputs refuse
paddle.grad for some of them only, such as the gradient of a loss for the images.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import paddle
from paddle import Tensor
from paddle.autograd import PyLayer
from paddle.nn import functional as F

from . import compat, native
from .functional import FakeQuantization, pact_gradients, quantize_dequantize


class _Wanted:
    """Whether a training loop has asked for it."""

    count = 0


@contextmanager
def recomputing_inputs() -> Iterator[None]:
    """Forward passes within need less memory until their `backward()`, and no gradient changes.

    Convolutions keep their input, and quantize it again in the backward pass, where that can be
    done: in float32, with quantizers of this package, on Paddle 2.6 with the C++ kernels.
    `paddle.grad` for some of the tensors only is refused by Paddle then.
    """
    _Wanted.count += 1
    try:
        yield
    finally:
        _Wanted.count -= 1


def can_recompute(x: Tensor, weight: Tensor) -> bool:
    """True where `conv2d` is asked for, and does what F.conv2d(fake_quant(x), weight) does."""
    return (
        _Wanted.count > 0
        and paddle.in_dynamic_mode()
        and paddle.is_grad_enabled()
        and x.dtype == weight.dtype == paddle.float32
        and (compat.has_conv2d_gradients() or native.runs_on(x))
        and not compat.autocast_is_on()
    )


def conv2d(x: Tensor, how: FakeQuantization, weight: Tensor, *settings: Any) -> Tensor:
    """F.conv2d(fake_quant(x, *how), weight, None, *settings), with the same gradients.

    Args:
        x: float32 [N, C, H, W], or channels last.
        how: its fake quantization.
        weight: float32, the fake-quantized weight.
        settings: stride, padding, dilation, groups and data_format of F.conv2d.
    """
    # A copy: the layer may be called again, and its scale move, before the backward pass.
    how = how._replace(scale=how.scale.detach().clone())
    if how.alpha is None:
        return _Conv2D.apply(x, weight, [how, settings])
    return _Conv2DPact.apply(x, weight, how.alpha, [how, settings])


class _Conv2D(PyLayer):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, how: list[Any]) -> Tensor:
        return _forward(ctx, x, weight, how)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        _, dx, dweight = _gradients(ctx, grad)
        return _wanted(ctx, dx, dweight)


class _Conv2DPact(PyLayer):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, alpha: Tensor, how: list[Any]) -> Tensor:
        return _forward(ctx, x, weight, how)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, dx, dweight = _gradients(ctx, grad)
        dx, dalpha = pact_gradients(x, ctx.how.alpha, dx)
        return *_wanted(ctx, dx, dweight), None if ctx.how.alpha.stop_gradient else dalpha


def _forward(ctx: Any, x: Tensor, weight: Tensor, how: list[Any]) -> Tensor:
    ctx.how, ctx.settings = how
    ctx.save_for_backward(x, weight)
    ctx.version = x.inplace_version
    ctx.wanted = not x.stop_gradient, not weight.stop_gradient
    codes = quantize_dequantize(x, ctx.how.scale, ctx.how.grid)
    return F.conv2d(codes, weight, None, *ctx.settings)


def _gradients(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    x, weight = ctx.saved_tensor()
    if x.inplace_version != ctx.version:
        raise RuntimeError(
            "the input of a quantized convolution was changed in place after the layer had read "
            "it, and its gradient needs the former values"
        )
    codes = quantize_dequantize(x, ctx.how.scale, ctx.how.grid)
    return x, *compat.conv2d_gradients(codes, weight, grad, *ctx.settings)


def _wanted(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
    # For an input without a gradient a PyLayer has to return None.
    return tuple(grad if wanted else None for grad, wanted in zip(gradients, ctx.wanted))
