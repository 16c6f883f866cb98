"""Conv2D and Linear with a fake-quantized input and weight.

A layer is quantized in place by giving it the class below: the object stays the same, and with
it its parameters, their names and optimizer settings, its hooks, and every reference to it.
"""

from __future__ import annotations

from enum import Enum
from typing import Any

from paddle import Tensor, nn
from paddle.nn import functional as F

from . import markers, recompute
from .full_precision import in_float32, without_autocast
from .integer_bias import IntegerBias
from .quantizers import ActivationQuantizer, WeightQuantizer
from .targets import Target


class InputRole(Enum):
    """Who quantizes a layer's input, where several readers of one tensor share a quantizer."""

    QUANTIZES = "observes and quantizes its input"
    FOLLOWS = "quantizes its input with what the first reader has observed"
    GIVEN = "its input comes quantized from the layer that computes it"


class TensorQuantizer:
    """What quantizes one tensor: the input or the output of the layer of the name."""

    _act_quant: ActivationQuantizer
    quant_name: str
    tensor_role: str

    def quantized(self, x: Tensor) -> Tensor:
        """`x` as this quantizer leaves it, in float and in the type of `x`."""
        if markers.tracing():
            return markers.mark_tensor(self, x)
        with without_autocast():
            return self._quantize(x)

    def _quantize(self, x: Tensor, observe: bool = True) -> Tensor:
        return in_float32(lambda value: self._act_quant(value, observe), x)


class ResultQuantizer(TensorQuantizer, nn.Layer):
    """Quantizes what a layer's kernel returns, BatchNorm and relu included.

    It is a sublayer of the quantized layer, so its scale is part of the state dict; a hook applies
    it (placement.py).
    """

    tensor_role = "output"

    def __init__(self, layer_name: str, quantizer: ActivationQuantizer) -> None:
        super().__init__()
        self.quant_name = layer_name
        self._act_quant = quantizer


class QuantizedLayer(TensorQuantizer):
    """What both quantized layers share. `_act_quant` and `_weight_quant` are sublayers."""

    weight: Tensor
    bias: Tensor | None
    _weight_quant: WeightQuantizer
    target: Target
    input_role: InputRole = InputRole.QUANTIZES
    is_placed: bool = True
    integer_bias: IntegerBias | None = None
    tensor_role = "input"

    @property
    def result_quantizer(self) -> ResultQuantizer | None:
        """What quantizes this layer's result, where the target needs that."""
        return self._sub_layers.get("_result_quant")  # type: ignore[attr-defined]

    def quantized_operands(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Input and weight as the integer kernel will see them, in float.

        Both are computed in float32, mixed precision or not, and returned in the type of `x` and
        of the weight.
        """
        if markers.tracing():
            if self.input_role is not InputRole.GIVEN:
                x = markers.mark_tensor(self, x)
            return x, markers.mark_weight(self)
        with without_autocast():
            if self.input_role is not InputRole.GIVEN:
                x = self._quantize(x, observe=self.input_role is InputRole.QUANTIZES)
            return x, in_float32(self._weight_quant, self.weight)

    def bias_with(self, weight: Tensor) -> Tensor | None:
        """The bias that goes with a fake-quantized weight, rounded where the kernel rounds it."""
        if self.integer_bias is None or self.training or markers.tracing():  # type: ignore[attr-defined]
            return self.bias
        if not getattr(self._weight_quant.quantizer, "fake_quant_enabled", True):
            return self.bias
        return self.integer_bias.rounded(self, weight)


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
        settings = self._stride, padding, self._dilation, self._groups, self._data_format
        if self._keeps_input(x):
            how = self._act_quant.prepare(x, observe=self.input_role is InputRole.QUANTIZES)
            weight = self._weight_quant(self.weight)
            y = recompute.conv2d(x, how, weight, *settings)
            bias = self.bias_with(weight)
            if bias is None:
                return y
            return y + bias.reshape([-1, 1, 1] if self._data_format == "NCHW" else [-1])
        x, weight = self.quantized_operands(x)
        return F.conv2d(x, weight, self.bias_with(weight), *settings)

    def _keeps_input(self, x: Tensor) -> bool:
        """True where the input, and not its quantized copy, is kept for the backward pass."""
        return (
            not markers.tracing()
            and self.input_role is not InputRole.GIVEN
            and self._act_quant.can_prepare()
            and recompute.can_recompute(x, self.weight)
        )


class QuantizedLinear(QuantizedLayer, nn.Linear):
    """y = fake_quant(x) @ fake_quant(weight) + bias, weight [in, out], x [..., in]."""

    weight_channel_axis = 1

    def forward(self, input: Tensor) -> Tensor:
        """Input and output as in the float layer, whose parameter has this name."""
        x, weight = self.quantized_operands(input)
        return F.linear(x, weight, self.bias_with(weight))


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
