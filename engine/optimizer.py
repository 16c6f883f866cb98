"""Momentum SGD with L2 decay."""

from __future__ import annotations

from paddle import nn
from paddle.optimizer import Momentum
from paddle.optimizer.lr import LRScheduler
from paddle.regularizer import L2Decay


def build_optimizer(
    net: nn.Layer, schedule: LRScheduler, momentum: float, l2_decay: float
) -> Momentum:
    """Momentum SGD over the trainable parameters of a network.

    What a parameter brings along (its own regularizer, its ``optimize_attr['learning_rate']``) is
    used by Paddle in place of, or on top of, the values given here; PACT relies on it.
    """
    return Momentum(
        learning_rate=schedule,
        momentum=momentum,
        parameters=[p for p in net.parameters() if not p.stop_gradient],
        weight_decay=L2Decay(l2_decay) if l2_decay > 0 else None,
    )
