"""Top1, Top5 and loss, counted over images."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import paddle
from paddle import Tensor

from . import distributed

# Stands for the first choice where the scores have no order.
NO_CHOICE = -1


def rank_of_label(logits: Tensor, labels: Tensor) -> Tensor:
    """How many classes come before the right one when sorted by score.

    Of equal scores the lower class number comes first, so that ties (which are common among
    int8 results) have one answer on every engine. A row that holds a NaN has no order: its label
    comes last.

    Args:
        logits: float tensor of shape [N, K].
        labels: int64 tensor of shape [N] or [N, 1].

    Returns:
        int64 tensor of shape [N]; 0 means that the label is the network's first choice.
    """
    labels = labels.reshape([-1, 1])
    own = paddle.take_along_axis(logits, labels, axis=1)
    classes = paddle.arange(logits.shape[1], dtype="int64").unsqueeze(0)
    before = (logits > own) | ((logits == own) & (classes < labels))
    rank = before.astype("int64").sum(axis=1)
    has_nan = paddle.isnan(logits).any(axis=1)
    return paddle.where(has_nan, paddle.full_like(rank, logits.shape[1]), rank)


def first_choice(logits: Tensor) -> Tensor:
    """The class with the highest score, the lowest number of equals: int64 tensor of shape [N].

    A row that holds a NaN has no order, so it has no first choice: `NO_CHOICE`.
    """
    chosen = logits.argmax(axis=1)
    has_nan = paddle.isnan(logits).any(axis=1)
    return paddle.where(has_nan, paddle.full_like(chosen, NO_CHOICE), chosen)


@dataclass
class Metrics:
    """Fractions of 1 and means over ``num_images`` images."""

    loss: float | None
    top1: float
    top5: float
    num_images: int

    def accuracies(self) -> dict[str, float]:
        """The two figures of ``summary.json``."""
        return {"top1": self.top1, "top5": self.top5}


@dataclass
class MetricSums:
    """Running sums over batches of any size.

    Sums stay on the device until they are asked for, so that a training step need not wait.
    """

    _sums: list[Tensor] = field(default_factory=list)

    def add(self, logits: Tensor, labels: Tensor, loss: Tensor | None = None) -> None:
        """Count one batch.

        Args:
            logits: float tensor of shape [N, K].
            labels: int64 tensor of shape [N] or [N, 1].
            loss: the batch's mean loss, shape [] or [1]; None where there is none.
        """
        with paddle.no_grad():
            self.add_ranks(rank_of_label(logits, labels), int(logits.shape[1]), loss)

    def add_ranks(self, ranks: Tensor, num_classes: int, loss: Tensor | None = None) -> None:
        """Count one batch whose `rank_of_label` is known.

        Args:
            ranks: int64 tensor of shape [N].
            num_classes: K, the number of scores that they were taken from.
            loss: as in `add`.
        """
        with paddle.no_grad():
            images = float(ranks.shape[0])
            mean_loss = paddle.zeros([]) if loss is None else loss.detach().reshape([])
            row = [
                paddle.full([], images, "float64"),
                (ranks < 1).astype("float64").sum(),
                # With fewer than five classes every rank is below 5, unless a NaN made it K.
                (ranks < min(5, num_classes)).astype("float64").sum(),
                mean_loss.astype("float64") * images,
            ]
            self._sums.append(paddle.stack(row))

    def take(self) -> list[float]:
        """Images, right at Top1, right at Top5 and loss times images, over all processes.

        What was counted is replaced by these sums, on rank 0; so who begins with them (`begin`)
        goes on adding the very same numbers in the same order (a collective call).
        """
        total = distributed.sum_over_ranks(self._total())
        self.begin(total.tolist())
        return total.tolist()

    def begin(self, total: list[float]) -> None:
        """Start from what `take` gave; other ranks than 0 start from nothing."""
        self._sums = [paddle.to_tensor(total, dtype="float64")] if distributed.is_main() else []

    def _total(self) -> np.ndarray:
        if not self._sums:
            return np.zeros(4)
        return paddle.stack(self._sums).sum(axis=0).numpy()

    def result(self, with_loss: bool = True) -> Metrics:
        """Figures over all images that every process has counted so far (a collective call)."""
        images, top1, top5, loss = distributed.sum_over_ranks(self._total())
        count = max(images, 1.0)
        return Metrics(
            loss=float(loss / count) if with_loss else None,
            top1=float(top1 / count),
            top5=float(top5 / count),
            num_images=int(images),
        )
