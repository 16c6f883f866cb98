"""The quantization config: one frozen dataclass that checks itself once."""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .errors import ConfigError
from .pact import INITS as PACT_INITS
from .targets import TARGETS

WEIGHT_TYPES = ("abs_max", "moving_average_abs_max", "channel_wise_abs_max")
ACTIVATION_TYPES = ("abs_max", "moving_average_abs_max")
PREPROCESS_TYPES = (None, "PACT")
LAYER_TYPES = ("Conv2D", "Linear")
DEPLOY_TARGETS = tuple(TARGETS)


@dataclass(frozen=True)
class QuantConfig:
    """How a network is quantized.

    Attributes:
        weight_preprocess_type: None, or 'PACT' to clip weights at a learned bound first.
        activation_preprocess_type: None, or 'PACT' (arXiv:1805.06085).
        pact_init: where PACT's alpha starts: 'reference' (100, with 1000 times the learning rate)
            or 'calibrated' (from data, with the learning rate and an L2 penalty of its own).
        pact_lr_factor: factor on the learning rate for alpha, above 0; None for that of
            `pact_init`: 1000 or 1.
        pact_l2_decay: weight of an L2 penalty on alpha, 0 or more, in place of the optimizer's;
            None for that of `pact_init`: the optimizer's or 1e-4.
        weight_quantize_type: how the scale of a weight is found.
        activation_quantize_type: how the scale of an activation is found.
        weight_bits: bits of a weight code, 2 to 16 (export: at most 8).
        activation_bits: bits of an activation code, 2 to 16 (export: at most 8).
        dtype: storage type of the exported weights; 'int8' is the only one.
        window_size: belongs to Paddle's `range_abs_max`. It is checked and has no effect on the
            three types here.
        moving_rate: rho of the moving average, 0 < rho < 1.
        quantizable_layer_type: which layers are swapped, of 'Conv2D' and 'Linear'.
        skip_quant: names (or patterns as in `fnmatch`) of layers that stay float.
        deploy_target: which engine's arithmetic the simulation follows: 'generic' (each layer's
            input by itself, on the symmetric grid of 2^b - 1 codes), 'onednn' (Paddle Inference
            with oneDNN int8: 255 unsigned steps where nothing is negative, residual sums in
            integers), 'onnxruntime' (and OpenVINO: such steps, integer results and biases),
            'openvino' (faster there where residuals are summed) or 'tensorrt' (signed integers);
            see targets.py and placement.py.

    Raises:
        ConfigError: a value is not allowed; the message names key, value and what is allowed.
    """

    weight_preprocess_type: str | None = None
    activation_preprocess_type: str | None = None
    pact_init: str = "reference"
    pact_lr_factor: float | None = None
    pact_l2_decay: float | None = None
    weight_quantize_type: str = "channel_wise_abs_max"
    activation_quantize_type: str = "moving_average_abs_max"
    weight_bits: int = 8
    activation_bits: int = 8
    dtype: str = "int8"
    window_size: int = 10000
    moving_rate: float = 0.9
    quantizable_layer_type: tuple[str, ...] = LAYER_TYPES
    skip_quant: tuple[str, ...] = ()
    deploy_target: str = "generic"

    def __post_init__(self) -> None:
        _one_of("weight_preprocess_type", self.weight_preprocess_type, PREPROCESS_TYPES)
        _one_of("activation_preprocess_type", self.activation_preprocess_type, PREPROCESS_TYPES)
        _one_of("pact_init", self.pact_init, PACT_INITS)
        _number("pact_lr_factor", self.pact_lr_factor, above=0)
        _number("pact_l2_decay", self.pact_l2_decay, low=0)
        _one_of("weight_quantize_type", self.weight_quantize_type, WEIGHT_TYPES)
        _one_of("activation_quantize_type", self.activation_quantize_type, ACTIVATION_TYPES)
        _integer("weight_bits", self.weight_bits, 2, 16)
        _integer("activation_bits", self.activation_bits, 2, 16)
        _one_of("dtype", self.dtype, ("int8",))
        _integer("window_size", self.window_size, 1, None)
        rate = self.moving_rate
        if isinstance(rate, bool) or not isinstance(rate, (int, float)) or not 0 < rate < 1:
            raise ConfigError(f"moving_rate={rate!r}: allowed is a number between 0 and 1")
        layer_types = _strings("quantizable_layer_type", self.quantizable_layer_type)
        for name in layer_types:
            _one_of("quantizable_layer_type", name, LAYER_TYPES)
        if not layer_types:
            raise ConfigError(
                f"quantizable_layer_type=[]: allowed is a non-empty list of {_quoted(LAYER_TYPES)}"
            )
        object.__setattr__(self, "quantizable_layer_type", layer_types)
        object.__setattr__(self, "skip_quant", _strings("skip_quant", self.skip_quant))
        _one_of("deploy_target", self.deploy_target, DEPLOY_TARGETS)
        if self.deploy_target != "generic" and self.activation_bits != 8:
            raise ConfigError(
                f"activation_bits={self.activation_bits} with deploy_target="
                f"{self.deploy_target!r}: that engine has 8-bit activations only"
            )

    @classmethod
    def from_dict(cls, config: Mapping[str, Any] | QuantConfig | None) -> QuantConfig:
        """The config of a dictionary; keys that are missing take their default."""
        if config is None:
            return cls()
        if isinstance(config, cls):
            return config
        if not isinstance(config, Mapping):
            raise ConfigError(
                f"config={config!r}: allowed is a dictionary, a QuantConfig or None, "
                f"not {type(config).__name__}"
            )
        known = [field.name for field in dataclasses.fields(cls)]
        for key in config:
            if key not in known:
                raise ConfigError(
                    f"unknown key {key!r}{_hint(key, known)}: allowed is {_quoted(known)}"
                )
        return cls(**config)

    def to_dict(self) -> dict[str, Any]:
        """A dictionary that `from_dict` reads back and JSON can hold."""
        values = dataclasses.asdict(self)
        return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}


def _quoted(values: Any) -> str:
    return ", ".join(repr(value) for value in values)


def _hint(value: Any, known: Any) -> str:
    names = [name for name in known if isinstance(name, str)]
    close = difflib.get_close_matches(str(value), names, n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def _one_of(key: str, value: Any, allowed: tuple[Any, ...]) -> None:
    if not any(value is item or (isinstance(item, str) and value == item) for item in allowed):
        raise ConfigError(f"{key}={value!r}{_hint(value, allowed)}: allowed is {_quoted(allowed)}")


def _integer(key: str, value: Any, low: int, high: int | None) -> None:
    ok = isinstance(value, int) and not isinstance(value, bool) and value >= low
    if not ok or (high is not None and value > high):
        upper = "or more" if high is None else f"to {high}"
        raise ConfigError(f"{key}={value!r}: allowed is an integer, {low} {upper}")


def _number(key: str, value: Any, low: float | None = None, above: float | None = None) -> None:
    """Checks a number that may be None, with one of two kinds of lower limit."""
    if value is None:
        return
    ok = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if not ok or (low is not None and value < low) or (above is not None and value <= above):
        limit = f"{low} or more" if above is None else f"above {above}"
        raise ConfigError(f"{key}={value!r}: allowed is None or a number, {limit}")


def _strings(key: str, value: Any) -> tuple[str, ...]:
    if isinstance(value, str) or not isinstance(value, (list, tuple)):
        raise ConfigError(f"{key}={value!r}: allowed is a list of strings")
    for item in value:
        if not isinstance(item, str):
            raise ConfigError(f"{key} holds {item!r}: allowed is a list of strings")
    return tuple(value)
