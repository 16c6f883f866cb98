"""A bias as an int8 kernel adds it: an integer on the grid of the products.

    step = (input scale / input steps) * (weight scale / 127)         per output channel
    bias <- round(bias / step) * step

where the weight and bias are those after folding the BatchNorm, gamma' = gamma / sqrt(var + eps):

    gamma' * (conv + b - mean) + beta = gamma' * (conv + b~),   b~ = b - mean + beta / gamma'

so the rounding can be done before the BatchNorm, on b~ with the step of the unfolded weight.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import paddle
from paddle import Tensor, nn

from .functional import abs_max

# A larger integer would leave no room for the sum of the products in 32 bits; such a bias is float.
LARGEST = 2.0**30


class IntegerBias:
    """Rounds the bias of one layer, in evaluation.

    In training the statistics of BatchNorm move with every batch, and with them what is rounded.

    Args:
        norm: the BatchNorm that folds into the layer, if there is one.
    """

    def __init__(self, norm: nn.Layer | None) -> None:
        self.norm: Any = norm

    @paddle.no_grad()
    def rounded(self, layer: Any, weight: Tensor) -> Tensor:
        """The bias that gives what the kernel gives, shape [channels].

        Args:
            layer: the quantized layer.
            weight: its fake-quantized weight.
        """
        axis = layer.weight_channel_axis
        steps = abs_max(weight, axis).reshape([-1]) / 127.0
        steps = steps * float(layer._act_quant.scale_numpy()[0] / layer._act_quant.grid.high)
        bias = paddle.zeros_like(steps) if layer.bias is None else layer.bias
        whole = bias + self._shift(bias)
        codes = paddle.round(whole / steps)
        error = codes * steps - whole
        fits = paddle.isfinite(error) & (codes.abs() <= LARGEST)
        return bias + paddle.where(fits, error, paddle.zeros_like(error))

    def _shift(self, like: Tensor) -> Tensor:
        """What the BatchNorm adds to the bias: beta / gamma' - mean; infinite where gamma is 0."""
        norm = self.norm
        if norm is None:
            return paddle.zeros_like(like)
        gain = 1.0 / paddle.sqrt(norm._variance + norm._epsilon)
        if norm.weight is not None:
            gain = gain * norm.weight
        shift = -norm._mean
        return shift if norm.bias is None else shift + norm.bias / gain


def round_bias(bias: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """A folded bias on the grid of its steps, float64; what does not fit stays as it is."""
    with np.errstate(divide="ignore", invalid="ignore"):
        codes = np.rint(bias / steps)
        rounded = codes * steps
    fits = np.isfinite(rounded) & (np.abs(codes) <= LARGEST)
    return np.where(fits, rounded, bias)
