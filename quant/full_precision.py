"""float32 arithmetic within a mixed-precision forward pass."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import paddle
from paddle import Tensor


def without_autocast() -> AbstractContextManager[None]:
    """A context in which paddle.amp.auto_cast leaves every operator alone.

    Level O1 casts no operator of a fake quantizer down when its inputs are float32. O2 casts most
    of them, and float16 neither holds the constant that `round_half_even` rounds with nor r / s of
    a small scale.
    """
    # Mixed precision of a static graph is decided elsewhere, and auto_cast is an error there.
    return paddle.amp.auto_cast(enable=False) if paddle.in_dynamic_mode() else nullcontext()


def in_float32(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """`function` of `x` in float32, the result in the type of `x`.

    The gradient comes and goes in the type of `x`.
    """
    if x.dtype == paddle.float32:
        return function(x)
    return function(x.astype("float32")).astype(x.dtype)
