"""One training step, with the parts that it needs handed in."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import paddle
from paddle import Tensor, nn
from paddle.optimizer import Optimizer

from quant import recomputing_inputs
from quant.pact import floor_alphas

from . import distributed, termination
from .accumulation import Part
from .agreement import any_of_all
from .ema import LastWeights
from .finite import (
    BufferCopies,
    first_nonfinite_gradient,
    first_nonfinite_layer,
    gradients_are_finite,
)
from .loss import Criterion
from .precision import Precision


class Finished(NamedTuple):
    """How a step ended; the same on all processes."""

    lr: float
    """Its learning rate."""
    fault: str | None
    """Why the parameters were not moved: what is not finite, and where that began."""
    stops: bool
    """Whether a process was asked to end."""


class TrainStep:
    """Gradients of one batch after the other, and then one move of the optimizer.

    A step with a loss or a gradient that is not finite leaves no trace: the parameters are not
    moved, and running statistics and observers are put back as they were before it.

    Args:
        network: the network as training calls it (a DataParallel in a job of several processes).
        criterion: the loss of a batch.
        precision: the arithmetic.
        optimizer: moves the parameters.
        schedule: its learning rate, moved on once per step.
        weights: what is evaluated and saved.
    """

    def __init__(
        self,
        network: nn.Layer,
        criterion: Criterion,
        precision: Precision,
        optimizer: Optimizer,
        schedule: paddle.optimizer.lr.LRScheduler,
        weights: LastWeights,
    ) -> None:
        self.network = network
        self.criterion = criterion
        self.precision = precision
        self.optimizer = optimizer
        self.schedule = schedule
        self.weights = weights
        self._begin()

    def _begin(self) -> None:
        self._before: BufferCopies | None = None
        self._images: Tensor | None = None
        self._loss: Tensor | None = None
        self._found_bad = False

    def add(self, images: Tensor, labels: Tensor, part: Part) -> tuple[Tensor, Tensor]:
        """Run one batch forward and backward; its gradients add to those of the step.

        Args:
            images: float32 [N, C, H, W].
            labels: int64 [N, 1].
            part: the place of the batch in the step.

        Returns:
            Logits, float32 [N, K], and the mean loss of the batch, float32 [].
        """
        if self._before is None:
            self._before = BufferCopies(self.network)
        with self._communication(part.ends_step):
            with recomputing_inputs(), self.precision.autocast():
                logits = self.network(images)
            logits = logits.astype("float32")
            loss = self.criterion(images, logits, labels)
            self.precision.backward(loss * part.share)
        if not self._found_bad:
            self._images, self._loss = images, loss
            # A batch that others follow is looked at now, as only one is kept; the last one waits
            # for the gradients, so that the device is asked once per step.
            self._found_bad = not part.ends_step and not bool(paddle.isfinite(loss))
        return logits, loss

    def finish(self, steps: int) -> Finished:
        """Move the parameters by the gradients that were added (a collective call).

        Args:
            steps: steps of the stage before this one.
        """
        lr = self.optimizer.get_lr()
        bad, stops = any_of_all(self._is_bad(), termination.requested())
        fault = self._undo() if bad else None
        if fault is None:
            self.precision.step(self.optimizer)
            floor_alphas(self.network)
            self.weights.update(steps)
        self.optimizer.clear_grad()
        self.schedule.step()
        self._begin()
        return Finished(lr, fault, stops)

    def _is_bad(self) -> Tensor:
        assert self._loss is not None
        finite = paddle.isfinite(self._loss).all()
        # float16 scales the loss until gradients fit, and has a rule of its own for when not.
        if not self.precision.scales_loss:
            finite = finite & gradients_are_finite(self.network)
        return ~finite

    def _undo(self) -> str:
        """Put back what the step has changed; returns what is not finite, and where that began.

        All processes come here, each with a batch of its own.
        """
        assert self._before is not None and self._images is not None and self._loss is not None
        net = self.weights.trained
        self._before.restore()
        with self.precision.autocast():
            layer = first_nonfinite_layer(net, self._images)
        self._before.restore()
        loss = float(self._loss)
        own = f"the loss is {loss}" if not math.isfinite(loss) else ""
        if own or layer:
            own = f"{own or 'a gradient is not finite'}: {layer or 'in the loss itself'}"
        # The gradients are averages: what one process spoilt is not finite on all.
        told = next(filter(None, distributed.texts_of_all(own)), None)
        return told or f"a gradient is not finite: {first_nonfinite_gradient(net)}"

    def _communication(self, ends_step: bool) -> AbstractContextManager[None]:
        """Only the last batch of a step sends gradients around: the sum of them all."""
        if ends_step or not isinstance(self.network, paddle.DataParallel):
            return nullcontext()
        return self.network.no_sync()
