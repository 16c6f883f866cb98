"""The training loss: cross entropy with label smoothing."""

from __future__ import annotations

from collections.abc import Callable

import paddle
import paddle.nn.functional as F
from paddle import Tensor

# Images [N, C, H, W], float32 logits [N, K] and labels [N, 1] of a batch to its mean loss, [].
Criterion = Callable[[Tensor, Tensor, Tensor], Tensor]


def classification_loss(logits: Tensor, labels: Tensor, smoothing: float = 0.0) -> Tensor:
    """Mean cross entropy of a batch against smoothed labels.

    The target of an image is ``1 - eps + eps / K`` for its class and ``eps / K`` for each of the
    other ``K - 1`` classes (Szegedy et al., "Rethinking the Inception Architecture for Computer
    Vision", arXiv:1512.00567, section 7).

    Args:
        logits: float tensor of shape [N, K].
        labels: int64 tensor of shape [N] or [N, 1] with values in [0, K).
        smoothing: eps, in [0, 1).

    Returns:
        A float tensor of shape [].
    """
    labels = labels.reshape([-1])
    if smoothing == 0.0:
        return F.cross_entropy(logits, labels)
    log_probabilities = F.log_softmax(logits, axis=-1)
    own_class = paddle.take_along_axis(log_probabilities, labels.unsqueeze(-1), axis=-1)
    # (1 - eps) * log p[label] + eps / K * sum(log p): the target above without the [N, K] array.
    return -((1.0 - smoothing) * own_class.mean() + smoothing * log_probabilities.mean())


def label_criterion(smoothing: float) -> Criterion:
    """`classification_loss` with that smoothing, as a training step calls it."""
    return lambda images, logits, labels: classification_loss(logits, labels, smoothing)
