"""Size and work of a network, counted the way that papers count them.

Parameters are the values that training changes: weights, biases, scale and shift of BatchNorm; its
running mean and variance are not among them. A multiply-add is one multiplication of an input by a
weight together with the addition of the product, in a convolution or a Linear. What adding a bias,
BatchNorm (which folds into the convolution before it), activations, pooling, the gate's product and
residual sums cost is not counted; "FLOPs" that count multiplication and addition apart are twice as
many.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import paddle
from paddle import Tensor, nn


class Cost(NamedTuple):
    """What one network costs."""

    parameters: int
    """Trainable values."""
    multiply_adds: int
    """Of convolutions and Linears, for one image."""


def cost(net: nn.Layer, input_shape: tuple[int, int, int]) -> Cost:
    """Count parameters and multiply-adds; runs the network once on zeros.

    Args:
        net: made of ``paddle.nn`` layers; products of tensors outside of Conv2D and Linear are not
            seen. It is in the same mode afterwards as before.
        input_shape: ``(channels, height, width)`` of one image.
    """
    total = 0

    def add(layer: nn.Layer, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal total
        # Conv2D: [out, in / groups, kernel, kernel]; Linear: [in, out].
        shape = layer.weight.shape
        per_value = shape[0] if isinstance(layer, nn.Linear) else int(np.prod(shape[1:]))
        total += int(np.prod(output.shape)) * per_value

    counted = [layer for layer in net.sublayers() if isinstance(layer, (nn.Conv2D, nn.Linear))]
    hooks = [layer.register_forward_post_hook(add) for layer in counted]
    # Layers can be in different modes (a frozen BatchNorm), so each gets its own one back.
    modes = [(layer, layer.training) for layer in net.sublayers(include_self=True)]
    net.eval()
    try:
        with paddle.no_grad():
            net(paddle.zeros([1, *input_shape]))
    finally:
        for layer, training in modes:
            layer.training = training
        for hook in hooks:
            hook.remove()
    parameters = [p for p in net.parameters() if not p.stop_gradient]
    return Cost(sum(int(np.prod(p.shape)) for p in parameters), total)
