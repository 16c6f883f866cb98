"""Late in training: scales and BatchNorm statistics stand still, weights still learn."""

from __future__ import annotations

from typing import Any

from paddle import nn

from .convert import named_layers
from .pact import Pact
from .quantizers import ObservedQuantizer


def freeze(net: nn.Layer) -> None:
    """Stops every observer and PACT's alpha, and lets BatchNorm use its running statistics.

    It holds through train() and eval(); the learned gamma, beta and weights still train.
    """
    for _, layer in named_layers(net):
        if isinstance(layer, ObservedQuantizer):
            layer.observing = False
        elif isinstance(layer, Pact):
            layer.freeze()
        elif isinstance(layer, nn.SyncBatchNorm):
            layer._momentum = 1.0  # it always takes the batch's statistics; so none is kept
        elif is_batch_norm(layer):
            layer._use_global_stats = True


def is_batch_norm(layer: Any) -> bool:
    """True for BatchNorm of any rank, SyncBatchNorm included."""
    return hasattr(layer, "_mean") and hasattr(layer, "_variance")
