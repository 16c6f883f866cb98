"""Which layers of a network are swapped, and the swap itself."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator
from typing import Any

from paddle import nn

from .config import QuantConfig
from .errors import ConfigError
from .layers import QuantizedLayer, base_kind, quantized_class
from .pact import Pact
from .quantizers import (
    AbsMax,
    ActivationQuantizer,
    MovingAverageAbsMax,
    WeightAbsMax,
    WeightQuantizer,
    make,
)


def named_layers(net: nn.Layer) -> Iterator[tuple[str, Any]]:
    """Every layer of the network once, the network itself included (its name is '')."""
    yield from net.named_sublayers(include_self=True)


def quantized_layers(net: nn.Layer) -> Iterator[tuple[str, Any]]:
    """Name and layer of every quantized layer, in the order of construction, shared ones once."""
    for name, layer in named_layers(net):
        if isinstance(layer, QuantizedLayer):
            yield name, layer


class Converter:
    """Builds the quantizers of one config and swaps layers in place.

    Args:
        config: how to quantize.
        weight_preprocess, act_preprocess, weight_quantize, act_quantize: classes of the user's
            own, created without arguments, that replace the built-in step.
    """

    def __init__(
        self,
        config: QuantConfig,
        weight_preprocess: type | None = None,
        act_preprocess: type | None = None,
        weight_quantize: type | None = None,
        act_quantize: type | None = None,
    ) -> None:
        self.config = config
        own = {
            "weight_preprocess": weight_preprocess,
            "act_preprocess": act_preprocess,
            "weight_quantize": weight_quantize,
            "act_quantize": act_quantize,
        }
        for name, factory in own.items():
            if factory is not None and not callable(factory):
                raise ConfigError(f"{name}={factory!r}: allowed is a class of paddle.nn.Layer")
        self._own = own

    def convert(self, net: nn.Layer) -> list[str]:
        """Swaps every layer that the config selects; returns their names.

        Raises:
            ConfigError: a name of `skip_quant` matches no layer, or nothing is left to swap.
        """
        self._check_skip_list(net)
        swapped = []
        for name, layer in list(named_layers(net)):
            if self._selected(name, layer):
                self._swap(name, layer)
                swapped.append(name)
        if not swapped and not any(True for _ in quantized_layers(net)):
            kinds = ", ".join(self.config.quantizable_layer_type)
            raise ConfigError(
                f"{type(net).__name__} holds no layer to quantize: wanted are {kinds} that are "
                "not skipped (skip_quant) and inherit their forward"
            )
        return swapped

    def _check_skip_list(self, net: nn.Layer) -> None:
        names = [name for name, _ in named_layers(net)]
        for pattern in self.config.skip_quant:
            if not any(fnmatch.fnmatchcase(name, pattern) for name in names):
                raise ConfigError(f"skip_quant names {pattern!r}, which matches no layer")

    def _selected(self, name: str, layer: nn.Layer) -> bool:
        if quantized_class(layer) is None or getattr(layer, "skip_quant", False):
            return False
        if base_kind(layer) not in self.config.quantizable_layer_type:
            return False
        return not any(fnmatch.fnmatchcase(name, p) for p in self.config.skip_quant)

    def _swap(self, name: str, layer: Any) -> None:
        cls: Any = quantized_class(layer)
        axis = cls.weight_channel_axis
        training = layer.training
        layer.__class__ = cls
        layer.quant_name = name
        layer._act_quant = self._activation_quantizer()
        layer._weight_quant = self._weight_quantizer(axis)
        for part in (layer._act_quant, layer._weight_quant):
            part.train() if training else part.eval()

    def _activation_quantizer(self) -> ActivationQuantizer:
        config = self.config
        builtin: nn.Layer
        if config.activation_quantize_type == "abs_max":
            builtin = AbsMax(config.activation_bits)
        else:
            builtin = MovingAverageAbsMax(config.activation_bits, config.moving_rate)
        pact = Pact() if config.activation_preprocess_type == "PACT" else None
        return ActivationQuantizer(
            make(self._own["act_quantize"], builtin), make(self._own["act_preprocess"], pact)
        )

    def _weight_quantizer(self, axis: int) -> WeightQuantizer:
        config = self.config
        builtin: nn.Layer
        if config.weight_quantize_type == "moving_average_abs_max":
            builtin = MovingAverageAbsMax(config.weight_bits, config.moving_rate)
        else:
            channel_wise = config.weight_quantize_type == "channel_wise_abs_max"
            builtin = WeightAbsMax(config.weight_bits, axis if channel_wise else None)
        pact = Pact() if config.weight_preprocess_type == "PACT" else None
        return WeightQuantizer(
            make(self._own["weight_quantize"], builtin),
            axis,
            make(self._own["weight_preprocess"], pact),
        )
