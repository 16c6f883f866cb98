"""BatchNorm statistics of a trained network, measured anew."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import paddle
from paddle import Tensor, nn

from quant.freeze import is_batch_norm
from quant.modes import evaluating

from . import distributed


@paddle.no_grad()
def reestimate(net: nn.Layer, batches: Iterable[list[Tensor]]) -> int:
    """Replace the running statistics of every BatchNorm by plain means over some batches.

    ``mean = mean over batches of the batch's mean`` and ``variance = mean over batches of the
    batch's variance``, each batch counting the same, over all processes (a collective call). While
    this runs BatchNorm normalizes with the statistics of the batch, as in training, and all else is
    as in evaluation: no observer observes and nothing is dropped.

    The moving average of training still holds what the weights of earlier steps gave, and the
    weights of a quantized network jump between two values of their grid (Nagel et al., "Overcoming
    Oscillations in Quantization-Aware Training", arXiv:2203.11086).

    Args:
        net: the network, changed in place.
        batches: lists that start with images [N, C, H, W]; this process's share.

    Returns:
        The number of batches of this process; 0 if there are none, or the network has no
        BatchNorm, and then nothing has changed.
    """
    layers = [layer for layer in net.sublayers(include_self=True) if is_batch_norm(layer)]
    count = 0
    if not layers:
        return count
    with evaluating(net), _with_statistics_of_the_batch(layers):
        for images, *_ in batches:
            for layer in layers:
                # Paddle: new = momentum * old + (1 - momentum) * batch. This is the running mean.
                layer._momentum = count / (count + 1)
            net(images)
            count += 1
    distributed.average_batch_norm(net)
    return count


@contextmanager
def _with_statistics_of_the_batch(layers: list[Any]) -> Iterator[None]:
    before = [(layer._momentum, getattr(layer, "_use_global_stats", None)) for layer in layers]
    for layer in layers:
        layer.training = True
        layer._use_global_stats = None  # a frozen one would go on with its running statistics
    try:
        yield
    finally:
        for layer, (momentum, use_global_stats) in zip(layers, before):
            layer._momentum, layer._use_global_stats = momentum, use_global_stats
