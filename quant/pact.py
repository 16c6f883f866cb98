"""PACT: a learned clipping bound before the quantizer (arXiv:1805.06085).

It can start in two ways (`QuantConfig.pact_init`):

'reference'     alpha = 100 in every layer and 1000 times the learning rate, as in PaddleSlim. No
                value reaches 100, so no gradient does either: at first the optimizer's L2 penalty
                alone brings alpha down.
'calibrated'    alpha is where clipping costs as much as rounding gains on the calibration batches
                (`clip_search.py`), so the gradient of the loss moves it from the first step on. It
                has the learning rate of the weights and an L2 penalty of its own, as in the paper,
                whose loss holds alpha^2.
"""

from __future__ import annotations

import paddle
from paddle import ParamAttr, Tensor, nn
from paddle.regularizer import L2Decay

from . import distributed
from .clip_search import Magnitudes
from .functional import pact

INITS = ("reference", "calibrated")

# The reference recipe: start far above every activation and let a large step bring it down.
REFERENCE_ALPHA = 100.0
REFERENCE_LEARNING_RATE = 1000.0

# PaddleSlim's static-graph demo of PACT has this penalty; the paper trains alpha like a weight.
CALIBRATED_LEARNING_RATE = 1.0
CALIBRATED_L2_DECAY = 1e-4

SMALLEST_ALPHA = 1e-2
# An alpha of exactly zero has no value yet and clips nothing. It is a value and not a flag beside
# it, so that checkpoints carry it.
NOT_SET = 0.0


class Pact(nn.Layer):
    """y = x - relu(x - alpha) + relu(-alpha - x) with one learned alpha, shape [1].

    Attributes:
        may_be_unset: whether alpha may be `NOT_SET` and wait for data; False once it was seen not
            to be.

    Args:
        alpha: start value; `NOT_SET` waits for `start_at`, or for the first training batch.
        learning_rate: factor on the optimizer's learning rate for alpha.
        l2_decay: weight of an L2 penalty on alpha, in place of the optimizer's; None keeps that.
        clip_bits: width of a code for which a start from data is found (`Magnitudes.best_clip`);
            None starts at the largest magnitude.
    """

    def __init__(
        self,
        alpha: float = REFERENCE_ALPHA,
        learning_rate: float = REFERENCE_LEARNING_RATE,
        l2_decay: float | None = None,
        clip_bits: int | None = None,
    ) -> None:
        super().__init__()
        self.clip_bits = clip_bits
        self.starts_from_data = alpha == NOT_SET
        self.may_be_unset = self.starts_from_data
        self.alpha = self.create_parameter(
            [1],
            attr=ParamAttr(
                initializer=nn.initializer.Constant(alpha),
                learning_rate=learning_rate,
                regularizer=None if l2_decay is None else L2Decay(l2_decay),
            ),
            dtype="float32",
        )

    def bound(self) -> Tensor:
        """Where values are clipped: alpha, but at least `SMALLEST_ALPHA`; infinity if not set.

        A large step of the optimizer can carry alpha past zero, where nothing would get through
        any more, neither values nor gradients.
        """
        floored = self.floored()
        return paddle.where(floored == NOT_SET, paddle.full_like(floored, float("inf")), floored)

    def start_at(self, seen: Magnitudes) -> None:
        """Sets alpha from data; of several ranks, to the largest that one of them finds.

        Every rank must call it. It does nothing where no rank has seen a value other than 0.
        """
        found = seen.largest if self.clip_bits is None else seen.best_clip(self.clip_bits)
        largest = distributed.max_over_ranks(paddle.to_tensor([found], dtype="float32"))
        if largest.item() > 0:
            with paddle.no_grad():
                self.alpha.set_value(paddle.clip(largest, min=SMALLEST_ALPHA))

    def forget_start(self) -> None:
        """Waits for data again, as before the first training batch."""
        with paddle.no_grad():
            self.alpha.set_value(paddle.full_like(self.alpha, NOT_SET))
        self.may_be_unset = True

    def freeze(self) -> None:
        """Lets alpha stand still from now on.

        Its learning rate becomes zero. The gradient still flows, since in a job of several
        processes every parameter has to have one.
        """
        self.alpha.optimize_attr["learning_rate"] = 0.0

    def alpha_for(self, x: Tensor) -> Tensor:
        """Where `x` is clipped, shape [1], with a gradient for alpha in training."""
        if not self.training:
            return self.bound()
        self._start_if_unset(x)
        # The floored value with the gradient of alpha, which can so climb back. The bracket is
        # exactly 0; alpha + (floored - alpha) would round the floor away below a large -alpha.
        return self.floored() + (self.alpha - self.alpha.detach())

    def forward(self, x: Tensor) -> Tensor:
        """`x` clipped to [-alpha, alpha]."""
        alpha = self.alpha_for(x)
        return pact(x, alpha.astype(x.dtype) if alpha.dtype != x.dtype else alpha)

    def floored(self) -> Tensor:
        """Alpha, but at least `SMALLEST_ALPHA`, without a gradient; `NOT_SET` stays."""
        alpha = self.alpha.detach()
        return paddle.where(alpha == NOT_SET, alpha, paddle.clip(alpha, min=SMALLEST_ALPHA))

    def _start_if_unset(self, x: Tensor) -> None:
        if not self.may_be_unset:
            return
        if self.alpha.item() == NOT_SET:
            seen = Magnitudes()
            if bool(paddle.isfinite(x).all()):  # else a later batch has to tell
                seen.add(x)
            self.start_at(seen)
        self.may_be_unset = self.alpha.item() == NOT_SET

    def extra_repr(self) -> str:
        """Current alpha, for print(net)."""
        alpha = self.alpha.item()
        return "alpha=not set" if alpha == NOT_SET else f"alpha={alpha:.4g}"


def floor_alphas(net: nn.Layer) -> None:
    """Lifts every alpha that a step has carried below `SMALLEST_ALPHA` back to it.

    Call it after ``optimizer.step()``: checkpoints and averages of weights then hold the value that
    clips. Without it only the forward pass, the export and the report see the floor.
    """
    for layer in net.sublayers(include_self=True):
        if isinstance(layer, Pact):
            with paddle.no_grad():
                layer.alpha.set_value(layer.floored())
