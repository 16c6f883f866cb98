"""Conv2D and Linear with a fake-quantized input and weight.

A layer is quantized in place by giving it the class below: the object stays the same, and with
it its parameters, their names and optimizer settings, its hooks, and every reference to it.
"""

from __future__ import annotations

from enum import Enum
from typing import Any

from paddle import Tensor, nn
from paddle.nn import functional as F

from . import markers
from .full_precision import in_float32, without_autocast
from .quantizers import ActivationQuantizer, WeightQuantizer
from .targets import Target


class InputRole(Enum):
    """Who quantizes a layer's input, where several readers of one tensor share a quantizer."""

    QUANTIZES = "observes and quantizes its input"
    FOLLOWS = "quantizes its input with what the first reader has observed"
    GIVEN = "its input comes quantized from the layer that computes it"


class QuantizedLayer:
    """What both quantized layers share. `_act_quant` and `_weight_quant` are sublayers."""

    weight: Tensor
    bias: Tensor | None
    _act_quant: ActivationQuantizer
    _weight_quant: WeightQuantizer
    quant_name: str
    target: Target
    input_role: InputRole = InputRole.QUANTIZES
    is_placed: bool = True

    def quantized_operands(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Input and weight as the integer kernel will see them, in float.

        Both are computed in float32, mixed precision or not, and returned in the type of `x` and
        of the weight.
        """
        if markers.tracing():
            if self.input_role is not InputRole.GIVEN:
                x = markers.mark_input(self, x)
            return x, markers.mark_weight(self)
        with without_autocast():
            if self.input_role is not InputRole.GIVEN:
                x = self._quantize(x, observe=self.input_role is InputRole.QUANTIZES)
            return x, in_float32(self._weight_quant, self.weight)

    def quantized_input(self, x: Tensor) -> Tensor:
        """`x` as this layer's input quantizer leaves it, wherever that is applied."""
        if markers.tracing():
            return markers.mark_input(self, x)
        with without_autocast():
            return self._quantize(x)

    def _quantize(self, x: Tensor, observe: bool = True) -> Tensor:
        return in_float32(lambda value: self._act_quant(value, observe), x)


class QuantizedConv2D(QuantizedLayer, nn.Conv2D):
    """y = conv2d(fake_quant(x), fake_quant(weight)) + bias. Layout as in nn.Conv2D."""

    weight_channel_axis = 0

    def forward(self, x: Tensor) -> Tensor:
        """Input and output as in the float layer."""
        padding = self._padding
        if self._padding_mode != "zeros":
            # Padding with values of x first changes no value and no maximum, and leaves the
            # quantizer right before the convolution, where engines look for it.
            x = F.pad(
                x,
                self._reversed_padding_repeated_twice,
                mode=self._padding_mode,
                data_format=self._data_format,
            )
            padding = 0
        x, weight = self.quantized_operands(x)
        return F.conv2d(
            x,
            weight,
            bias=self.bias,
            stride=self._stride,
            padding=padding,
            dilation=self._dilation,
            groups=self._groups,
            data_format=self._data_format,
        )


class QuantizedLinear(QuantizedLayer, nn.Linear):
    """y = fake_quant(x) @ fake_quant(weight) + bias, weight [in, out], x [..., in]."""

    weight_channel_axis = 1

    def forward(self, input: Tensor) -> Tensor:
        """Input and output as in the float layer, whose parameter has this name."""
        x, weight = self.quantized_operands(input)
        return F.linear(x, weight, self.bias)


_BY_BASE: dict[type, type] = {nn.Conv2D: QuantizedConv2D, nn.Linear: QuantizedLinear}
_quantized_subclasses: dict[type, type] = {}


def quantized_class(layer: nn.Layer) -> type | None:
    """The class that `layer` gets, or None where it must stay as it is.

    A subclass of Conv2D or Linear is quantized when it inherits `forward`; one with a forward
    of its own computes something else, so it is left alone.
    """
    cls = type(layer)
    if issubclass(cls, QuantizedLayer):
        return None
    for base, quantized in _BY_BASE.items():
        if cls is base:
            return quantized
        if issubclass(cls, base) and cls.forward is base.forward:  # type: ignore[attr-defined]
            if cls not in _quantized_subclasses:
                members: dict[str, Any] = {"__doc__": quantized.__doc__, "__module__": __name__}
                _quantized_subclasses[cls] = type(
                    f"Quantized{cls.__name__}", (quantized, cls), members
                )
            return _quantized_subclasses[cls]
    return None


def base_kind(layer: nn.Layer) -> str:
    """'Conv2D' or 'Linear': the name by which the config calls this layer's type."""
    return "Conv2D" if isinstance(layer, nn.Conv2D) else "Linear"
