"""One training step, with the parts that it needs handed in."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import paddle
from paddle import Tensor, nn
from paddle.optimizer import Optimizer
from paddle.optimizer.lr import LRScheduler

from quant import recomputing_inputs
from quant.pact import floor_alphas

from .accumulation import Part
from .ema import LastWeights
from .loss import Criterion
from .precision import Precision


class TrainStep:
    """Gradients of one batch after the other, and then one move of the optimizer.

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
        schedule: LRScheduler,
        weights: LastWeights,
    ) -> None:
        self.network = network
        self.criterion = criterion
        self.precision = precision
        self.optimizer = optimizer
        self.schedule = schedule
        self.weights = weights

    def add(self, images: Tensor, labels: Tensor, part: Part) -> tuple[Tensor, Tensor]:
        """Run one batch forward and backward; its gradients add to those of the step.

        Args:
            images: float32 [N, C, H, W].
            labels: int64 [N, 1].
            part: the place of the batch in the step.

        Returns:
            Logits, float32 [N, K], and the mean loss of the batch, float32 [].
        """
        with self._communication(part.ends_step):
            with recomputing_inputs(), self.precision.autocast():
                logits = self.network(images)
            logits = logits.astype("float32")
            loss = self.criterion(images, logits, labels)
            self.precision.backward(loss * part.share)
        return logits, loss

    def finish(self, steps: int) -> float:
        """Move the parameters by the gradients that were added.

        Args:
            steps: steps of the stage before this one.

        Returns:
            The learning rate that was used.
        """
        lr = self.optimizer.get_lr()
        self.precision.step(self.optimizer)
        floor_alphas(self.network)
        self.optimizer.clear_grad()
        self.schedule.step()
        self.weights.update(steps)
        return lr

    def _communication(self, ends_step: bool) -> AbstractContextManager[None]:
        """Only the last batch of a step sends gradients around: the sum of them all."""
        if ends_step or not isinstance(self.network, paddle.DataParallel):
            return nullcontext()
        return self.network.no_sync()
