"""Learning-rate schedules, stepped once per training step.

A schedule is a factor of the full learning rate for each step t of a stage, counted from 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from paddle.optimizer.lr import LambdaDecay, LRScheduler

DECAY_FACTOR = 0.1

Factor = Callable[[int], float]


def steps_in_epoch(
    num_batches: int, total_images: int | None, images_per_batch: int, batches_per_step: int = 1
) -> int:
    """Length of an epoch for the schedule.

    Args:
        num_batches: batches that one process really reads in an epoch.
        total_images: the user's override of the number of images, or None.
        images_per_batch: images of one batch, over all processes.
        batches_per_step: batches whose gradients make up one step.
    """
    if total_images is not None:
        num_batches = math.ceil(total_images / images_per_batch)
    return math.ceil(num_batches / batches_per_step)


def piecewise_decay(epoch_steps: int, step_epochs: Sequence[int]) -> Factor:
    """0.1 to the number of ``step_epochs`` that lie behind."""
    boundaries = [epoch * epoch_steps for epoch in step_epochs]
    return lambda step: DECAY_FACTOR ** sum(step >= boundary for boundary in boundaries)


def cosine_decay(first_step: int, last_step: int) -> Factor:
    """``(1 + cos(pi * (t - first) / (last - first))) / 2``, zero from the last step on.

    The closed form of step t; Paddle's own scheduler multiplies t factors and drifts.
    """
    length = max(1, last_step - first_step)

    def factor(step: int) -> float:
        return 0.5 * (1.0 + math.cos(math.pi * min(step - first_step, length) / length))

    return factor


def warmup(steps: int, then: Factor) -> Factor:
    """``(t + 1) / steps`` while t < steps, and after that ``then(t)``.

    So the first step has the smallest rate, which is not zero, and the last of the warm-up the full
    one (Goyal et al., "Accurate, Large Minibatch SGD", arXiv:1706.02677, section 2.2).
    """
    return lambda step: (step + 1) / steps if step < steps else then(step)


def build_schedule(
    strategy: str,
    base_lr: float,
    epoch_steps: int,
    num_epochs: int,
    step_epochs: Sequence[int],
    warmup_epochs: float = 0.0,
) -> LRScheduler:
    """The schedule that ``--lr_strategy`` names, after a warm-up.

    The warm-up takes ``round(warmup_epochs * epoch_steps)`` steps. The cosine then falls over what
    is left of the stage; the epochs of piecewise_decay count from the start of the stage, warm-up
    or not.
    """
    warmup_steps = round(warmup_epochs * epoch_steps)
    if strategy == "piecewise_decay":
        factor = piecewise_decay(epoch_steps, step_epochs)
    elif strategy == "cosine_decay":
        factor = cosine_decay(warmup_steps, epoch_steps * num_epochs)
    else:
        raise ValueError(f"lr_strategy is {strategy!r}; allowed: piecewise_decay, cosine_decay")
    return LambdaDecay(base_lr, warmup(warmup_steps, factor))
