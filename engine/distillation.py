"""Knowledge distillation: the quantized network also learns the outputs of the float one."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

import paddle
import paddle.nn.functional as F
from paddle import Tensor, nn

from .loss import Criterion


def soft_label_loss(logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """``T^2 * mean over images of KL(softmax(teacher / T) || softmax(student / T))``.

    The factor keeps the size of the gradient as T grows (Hinton et al., "Distilling the Knowledge
    in a Neural Network", arXiv:1503.02531, section 2). Theirs is the cross entropy against the
    soft labels, which differs from this by the teacher's entropy, a constant; the divergence is
    zero where both agree.

    Args:
        logits: float32 [N, K] of the network that learns.
        teacher_logits: float32 [N, K]; no gradient goes to them.
        temperature: T, above 0.

    Returns:
        A float32 tensor of shape [].
    """
    target = F.log_softmax(teacher_logits.detach() / temperature, axis=-1)
    found = F.log_softmax(logits / temperature, axis=-1)
    divergence = (target.exp() * (target - found)).sum(axis=-1)
    return divergence.mean() * temperature**2


class Distillation:
    """``(1 - w) * loss of the labels + w * soft_label_loss``.

    Args:
        teacher: the float network; put into evaluation mode, and never changed.
        label_loss: the loss without distillation.
        weight: w, in [0, 1].
        temperature: T, above 0.
        autocast: makes the context in which the teacher runs, that of the network that learns.
    """

    def __init__(
        self,
        teacher: nn.Layer,
        label_loss: Criterion,
        weight: float,
        temperature: float,
        autocast: Callable[[], AbstractContextManager[None]],
    ) -> None:
        teacher.eval()
        self._teacher = teacher
        self._label_loss = label_loss
        self._weight = weight
        self._temperature = temperature
        self._autocast = autocast

    def __call__(self, images: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
        """The loss of one batch, a float32 tensor of shape []; a `Criterion`."""
        with paddle.no_grad(), self._autocast():
            teacher_logits = self._teacher(images)
        teacher_logits = teacher_logits.astype("float32")
        soft = soft_label_loss(logits, teacher_logits, self._temperature)
        hard = self._label_loss(images, logits, labels)
        return (1.0 - self._weight) * hard + self._weight * soft
