"""Which layers of a network are swapped, and the swap itself."""

from __future__ import annotations

import difflib
import fnmatch
import warnings
from collections.abc import Iterator
from typing import Any

from paddle import nn

from .config import QuantConfig
from .errors import ConfigError
from .grid import signed
from .layers import QuantizedLayer, base_kind, quantized_class
from .pact import CALIBRATED_L2_DECAY, CALIBRATED_LEARNING_RATE, NOT_SET, Pact
from .quantizers import (
    AbsMax,
    ActivationQuantizer,
    MovingAverageAbsMax,
    ObservedQuantizer,
    WeightAbsMax,
    WeightQuantizer,
    make,
)
from .targets import TARGETS


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
        skipped = self._skipped_names(net)
        swapped, left = [], []
        for name, layer in list(named_layers(net)):
            if name in skipped or not self._wanted(layer):
                continue
            if quantized_class(layer) is None:
                left.append(f"{name} ({type(layer).__name__})")
                continue
            self._swap(name, layer)
            swapped.append(name)
        if left:
            warnings.warn(
                f"left float, since their class has a forward of its own: {', '.join(left)}",
                stacklevel=3,
            )
        if not swapped and not any(True for _ in quantized_layers(net)):
            kinds = ", ".join(self.config.quantizable_layer_type)
            raise ConfigError(
                f"{type(net).__name__} holds no layer to quantize: wanted are {kinds} that are "
                "not skipped (skip_quant) and inherit their forward"
            )
        return swapped

    def _skipped_names(self, net: nn.Layer) -> set[str]:
        """Layers with `skip_quant`, or named by the config, and all that they hold."""
        layers = list(named_layers(net))
        chosen = {name for name, layer in layers if getattr(layer, "skip_quant", False)}
        for pattern in self.config.skip_quant:
            matches = {name for name, _ in layers if fnmatch.fnmatchcase(name, pattern)}
            if not matches:
                close = difflib.get_close_matches(pattern, [name for name, _ in layers], n=1)
                hint = f" (did you mean {close[0]!r}?)" if close else ""
                raise ConfigError(f"skip_quant names {pattern!r}, which matches no layer{hint}")
            chosen |= matches
        return {
            name
            for name, _ in layers
            if any(name == top or top == "" or name.startswith(f"{top}.") for top in chosen)
        }

    def _wanted(self, layer: nn.Layer) -> bool:
        """True for a float layer of the types that the config selects."""
        if not isinstance(layer, (nn.Conv2D, nn.Linear)) or isinstance(layer, QuantizedLayer):
            return False
        return base_kind(layer) in self.config.quantizable_layer_type

    def _swap(self, name: str, layer: Any) -> None:
        cls: Any = quantized_class(layer)
        axis = cls.weight_channel_axis
        training = layer.training
        layer.__class__ = cls
        layer.quant_name = name
        layer.target = TARGETS[self.config.deploy_target]
        layer.is_placed = not layer.target.needs_graph
        layer._act_quant = self._activation_quantizer()
        layer._weight_quant = self._weight_quantizer(axis)
        for part in (layer._act_quant, layer._weight_quant):
            part.train() if training else part.eval()

    def _pact(self, clip_bits: int | None) -> Pact:
        config = self.config
        options: dict[str, Any] = {"clip_bits": clip_bits}
        if config.pact_init == "calibrated":
            options.update(
                alpha=NOT_SET, learning_rate=CALIBRATED_LEARNING_RATE, l2_decay=CALIBRATED_L2_DECAY
            )
        if config.pact_lr_factor is not None:
            options["learning_rate"] = config.pact_lr_factor
        if config.pact_l2_decay is not None:
            options["l2_decay"] = config.pact_l2_decay
        return Pact(**options)

    def _activation_quantizer(self) -> ActivationQuantizer:
        config = self.config
        builtin: ObservedQuantizer
        if config.activation_quantize_type == "abs_max":
            builtin = AbsMax(config.activation_bits)
        else:
            builtin = MovingAverageAbsMax(config.activation_bits, config.moving_rate)
        if TARGETS[config.deploy_target].saturates_low:
            builtin.grid = signed(config.activation_bits)
        pact = None
        if config.activation_preprocess_type == "PACT":
            pact = self._pact(clip_bits=config.activation_bits)
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
        # A weight starts unclipped: its outliers are few, seldom far out, and cost no range of
        # other channels where each has its own scale.
        pact = self._pact(clip_bits=None) if config.weight_preprocess_type == "PACT" else None
        return WeightQuantizer(
            make(self._own["weight_quantize"], builtin),
            axis,
            make(self._own["weight_preprocess"], pact),
            TARGETS[config.deploy_target].int8_channels,
        )
