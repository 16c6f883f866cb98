"""PACT: a learned clipping bound before the quantizer (arXiv:1805.06085)."""

from __future__ import annotations

import paddle
from paddle import ParamAttr, Tensor, nn

from .functional import pact

# The reference recipe: start far above every activation and let a large step bring it down.
INITIAL_ALPHA = 100.0
ALPHA_LEARNING_RATE = 1000.0
SMALLEST_ALPHA = 1e-2


class Pact(nn.Layer):
    """y = x - relu(x - alpha) + relu(-alpha - x) with one learned alpha, shape [1].

    Args:
        alpha: start value.
        learning_rate: factor on the optimizer's learning rate for alpha.
    """

    def __init__(
        self, alpha: float = INITIAL_ALPHA, learning_rate: float = ALPHA_LEARNING_RATE
    ) -> None:
        super().__init__()
        self.alpha = self.create_parameter(
            [1],
            attr=ParamAttr(initializer=nn.initializer.Constant(alpha), learning_rate=learning_rate),
            dtype="float32",
        )

    def forward(self, x: Tensor) -> Tensor:
        """`x` clipped to [-alpha, alpha]."""
        if self.training:
            # A large step can carry alpha past zero, where nothing would get through any more.
            with paddle.no_grad():
                self.alpha.set_value(paddle.clip(self.alpha, min=SMALLEST_ALPHA))
        return pact(x, self.alpha.astype(x.dtype) if self.alpha.dtype != x.dtype else self.alpha)

    def extra_repr(self) -> str:
        """Current alpha, for print(net)."""
        return f"alpha={self.alpha.item():.4g}"
