"""Learning-rate schedules, stepped once per batch."""

from __future__ import annotations

import math
from collections.abc import Sequence

from paddle.optimizer.lr import LambdaDecay, LRScheduler

DECAY_FACTOR = 0.1


def steps_in_epoch(num_batches: int, total_images: int | None, images_per_step: int) -> int:
    """Length of an epoch for the schedule.

    Args:
        num_batches: batches that one process really reads in an epoch.
        total_images: the user's override of the number of images, or None.
        images_per_step: images of one step, over all processes.
    """
    if total_images is None:
        return num_batches
    return math.ceil(total_images / images_per_step)


def piecewise_decay(base_lr: float, epoch_steps: int, step_epochs: Sequence[int]) -> LRScheduler:
    """``base_lr`` times 0.1 to the number of ``step_epochs`` that lie behind."""
    boundaries = [epoch * epoch_steps for epoch in step_epochs]

    def factor(step: int) -> float:
        return DECAY_FACTOR ** sum(step >= boundary for boundary in boundaries)

    return LambdaDecay(base_lr, factor)


def cosine_decay(base_lr: float, epoch_steps: int, num_epochs: int) -> LRScheduler:
    """``base_lr * (1 + cos(pi * step / last step)) / 2``, zero after the last epoch.

    The closed form of step t; Paddle's own scheduler multiplies t factors and drifts.
    """
    length = max(1, epoch_steps * num_epochs)

    def factor(step: int) -> float:
        return 0.5 * (1.0 + math.cos(math.pi * min(step, length) / length))

    return LambdaDecay(base_lr, factor)


def build_schedule(
    strategy: str, base_lr: float, epoch_steps: int, num_epochs: int, step_epochs: Sequence[int]
) -> LRScheduler:
    """The schedule that ``--lr_strategy`` names."""
    if strategy == "piecewise_decay":
        return piecewise_decay(base_lr, epoch_steps, step_epochs)
    if strategy == "cosine_decay":
        return cosine_decay(base_lr, epoch_steps, num_epochs)
    raise ValueError(f"lr_strategy is {strategy!r}; allowed: piecewise_decay, cosine_decay")
