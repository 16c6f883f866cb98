"""Which batches of an epoch make up one training step, and how much each of them counts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Part:
    """The place of one batch in its training step.

    Attributes:
        share: its images over those of the step, of this process; the shares of a step sum to 1.
        ends_step: whether the optimizer moves after it.
    """

    share: float
    ends_step: bool


def parts_of_epoch(
    num_images: int, batch_size: int, batches_per_step: int, start_batch: int = 0
) -> Iterator[Part]:
    """One `Part` for each batch of an epoch, from ``start_batch`` on.

    Steps are counted from the start of the epoch. The last one has what is left: fewer batches, of
    which the last may be shorter. The gradient of a step is ``sum(share_i * gradient_i)``, which is
    the gradient of the mean loss over its images, so that it is that of one large batch.

    Args:
        num_images: images that this process sees in an epoch.
        batch_size: images per batch.
        batches_per_step: ``--accumulate_steps``.
        start_batch: batches to leave out; a multiple of ``batches_per_step``.
    """
    images_per_step = batch_size * batches_per_step
    for batch in range(start_batch, -(-num_images // batch_size)):
        first = batch * batch_size
        in_batch = min(batch_size, num_images - first)
        step_begin = first - first % images_per_step
        step_end = min(step_begin + images_per_step, num_images)
        yield Part(in_batch / (step_end - step_begin), first + in_batch == step_end)
