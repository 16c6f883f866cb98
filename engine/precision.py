"""Mixed precision: in which arithmetic a training step runs, and how float16 gets by.

Only training comes by here; evaluation, export and the check of the exported file are float32.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext

import paddle
from paddle import Tensor
from paddle.amp import GradScaler
from paddle.optimizer import Optimizer

from .errors import EngineError

# As in PyTorch's GradScaler and Paddle's.
FIRST_LOSS_SCALE = 2.0**16
LOSS_SCALE_FACTOR = 2.0
STEPS_BEFORE_GROWTH = 2000
SMALLEST_LOSS_SCALE = 1.0


class Precision:
    """float32 throughout.

    Attributes:
        scales_loss: whether gradients may overflow now and then, which `step` then deals with.
    """

    scales_loss = False

    def autocast(self) -> AbstractContextManager[None]:
        """The context in which the network runs forward."""
        return nullcontext()

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of a loss to those of the parameters."""
        loss.backward()

    def step(self, optimizer: Optimizer) -> None:
        """Let the optimizer use the gradients."""
        optimizer.step()

    def state(self) -> dict[str, float]:
        """What a resumed run and a line of ``metrics.jsonl`` have to hold."""
        return {}

    def restore(self, state: Mapping[str, float]) -> None:
        """Go on from a `state`."""

    def note(self) -> str:
        """What a line of the log says of it, after its other figures."""
        return ""


class BFloat16(Precision):
    """Convolutions and matrix products in bfloat16, which has the range of float32."""

    dtype = "bfloat16"

    def autocast(self) -> AbstractContextManager[None]:
        """Level O1: operators that are safe in 16 bits get their inputs cast, no other does."""
        return paddle.amp.auto_cast(level="O1", dtype=self.dtype)


class Float16(BFloat16):
    """The same in float16, whose gradients need a scaled loss not to vanish.

    The loss is multiplied by s and the gradients are divided by it. Where a gradient is not finite
    the step is skipped and s halved; after 2000 good steps in a row s doubles. (Micikevicius et
    al., "Mixed Precision Training", arXiv:1710.03740, section 3.2.)

    The rule is kept here, and Paddle's GradScaler only scales, unscales and skips: its own rule
    ends with a TypeError at the first skipped step where numpy is 2.4 (Paddle 2.6.2 and 3.3.1), and
    prints from every process.
    """

    dtype = "float16"
    scales_loss = True

    def __init__(self) -> None:
        self.scale = FIRST_LOSS_SCALE
        self.good_steps = 0
        self.skipped_steps = 0
        self._scaler = GradScaler(init_loss_scaling=self.scale, use_dynamic_loss_scaling=False)

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of the scaled loss."""
        self._scaler.scale(loss).backward()

    def step(self, optimizer: Optimizer) -> None:
        """Unscale the gradients and step, or skip if one of them is not finite.

        Processes of one job decide alike, as their gradients have been averaged.

        Raises:
            EngineError: the gradients are not finite, however small the loss is made.
        """
        self._scaler.step(optimizer)
        if bool(self._scaler._found_inf):  # there is no public way to ask
            self.skipped_steps += 1
            self.good_steps = 0
            self._set_scale(self.scale / LOSS_SCALE_FACTOR)
        else:
            self.good_steps += 1
            if self.good_steps == STEPS_BEFORE_GROWTH:
                self.good_steps = 0
                self._set_scale(self.scale * LOSS_SCALE_FACTOR)

    def _set_scale(self, scale: float) -> None:
        if scale < SMALLEST_LOSS_SCALE:
            raise EngineError(
                f"the gradients are not finite in float16 even with a loss scale of {self.scale}; "
                "a smaller --lr (--fp32_lr in the float stage) or --amp_dtype=bfloat16 may help"
            )
        self.scale = scale
        self._scaler.set_init_loss_scaling(scale)  # which sets the current one

    def state(self) -> dict[str, float]:
        """The scale, the good steps since it last changed, and all steps that were skipped."""
        return {
            "loss_scale": self.scale,
            "good_steps": self.good_steps,
            "skipped_steps": self.skipped_steps,
        }

    def restore(self, state: Mapping[str, float]) -> None:
        """Go on from a `state`; an empty one, of a stage that has no step yet, changes nothing.

        That a state is of this arithmetic, `engine.resume` has seen to.
        """
        if not state:
            return
        self._set_scale(float(state["loss_scale"]))
        self.good_steps = int(state["good_steps"])
        self.skipped_steps = int(state["skipped_steps"])

    def note(self) -> str:
        """The scale, and how many steps were skipped so far."""
        return f", loss scale {self.scale:g}, {self.skipped_steps} steps skipped"


def build_precision(dtype: str | None) -> Precision:
    """The arithmetic of one stage: None for float32, or what `usable_dtype` returns."""
    if dtype is None:
        return Precision()
    return Float16() if dtype == "float16" else BFloat16()


def usable_dtype(amp: bool, wish: str) -> tuple[str | None, str | None]:
    """The 16-bit type that ``--amp`` and ``--amp_dtype`` ask for, if this device has it.

    Args:
        amp: the flag.
        wish: ``"auto"``, ``"float16"`` or ``"bfloat16"``.

    Returns:
        The type, or None for float32; and one line of warning if the device cannot do it.
    """
    if not amp:
        return None, None
    device = paddle.device.get_device().partition(":")[0]
    dtype = wish if wish != "auto" else ("float16" if device == "gpu" else "bfloat16")
    if _takes_effect(dtype):
        return dtype, None
    return None, (
        f"Paddle {paddle.__version__} has no mixed precision in {dtype} on this {device}; "
        "--amp trains in float32"
    )


def _takes_effect(dtype: str) -> bool:
    """Ask Paddle itself: it ignores auto_cast, with a warning, where it cannot do it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with paddle.no_grad(), paddle.amp.auto_cast(level="O1", dtype=dtype):
            product = paddle.matmul(paddle.ones([1, 1]), paddle.ones([1, 1]))
    return str(product.dtype).rpartition(".")[2] == dtype
