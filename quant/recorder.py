"""Notes what goes into and comes out of each quantized layer while its network runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import paddle
from paddle import Tensor, nn

from .convert import named_layers, quantized_layers
from .freeze import is_batch_norm

ULP = 2.0**-23


@dataclass
class LayerCall:
    """One call of a quantized layer.

    Attributes:
        name: the layer.
        layer: the layer itself.
        x: its input before the quantizer (after it, where the tensor came quantized).
        quantized: its input as the product reads it.
        y: what it returns.
        noise: the largest change of `y` with one ulp of noise on `quantized`: its own float floor.
        normalized: what the BatchNorm returned that read `y`; None where none did.
        normalized_noise: the largest change of that.
        has_activation: the BatchNorm has an activation inside, so its sum is not to be seen.
    """

    name: str
    layer: Any
    x: np.ndarray
    quantized: np.ndarray
    y: np.ndarray
    noise: float = 0.0
    normalized: np.ndarray | None = None
    normalized_noise: float = 0.0
    has_activation: bool = False


@contextmanager
def recording(net: nn.Layer, with_noise: bool) -> Iterator[list[LayerCall]]:
    """Fills a list with every call of a quantized layer, in order; `net` computes as without.

    Args:
        net: a quantized network in evaluation mode.
        with_noise: also run each layer (and the BatchNorm after it) alone on its own input with a
            relative error of one ulp, random sign.
    """
    recorder = _Recorder(with_noise)
    hooks = []
    layers = list(quantized_layers(net))
    for name, layer in layers:
        layer.__dict__["quantized_operands"] = recorder.operands_of(layer)
        hooks.append(layer.register_forward_post_hook(recorder.after_layer(name)))
    for _, layer in named_layers(net):
        if is_batch_norm(layer):
            hooks.append(layer.register_forward_post_hook(recorder.after_batch_norm))
    function = nn.functional.batch_norm
    nn.functional.batch_norm = recorder.batch_norm_function(function)
    try:
        yield recorder.calls
    finally:
        nn.functional.batch_norm = function
        for _, layer in layers:
            del layer.__dict__["quantized_operands"]
        for hook in hooks:
            hook.remove()


class _Recorder:
    def __init__(self, with_noise: bool) -> None:
        self.calls: list[LayerCall] = []
        self._with_noise = with_noise
        self._rng = np.random.default_rng(0)
        self._operands: dict[int, tuple[Tensor, Tensor, Tensor]] = {}
        self._instead: tuple[Tensor, Tensor] | None = None
        # By the id of a layer's result, which is kept so that the id stays its own.
        self._results: dict[int, tuple[Tensor, LayerCall, Tensor | None]] = {}

    def operands_of(self, layer: Any) -> Any:
        original = layer.quantized_operands

        def quantized_operands(x: Tensor) -> tuple[Tensor, Tensor]:
            if self._instead is not None:
                return self._instead
            quantized, weight = original(x)
            self._operands[id(layer)] = x, quantized, weight
            return quantized, weight

        return quantized_operands

    def after_layer(self, name: str) -> Any:
        def hook(layer: Any, _: Any, output: Tensor) -> None:
            x, quantized, weight = self._operands.pop(id(layer))

            def alone(value: Tensor) -> Tensor:
                self._instead = value, weight
                try:
                    return layer.forward(x)
                finally:
                    self._instead = None

            own = alone(quantized) if _others_hook(layer) else output
            call = LayerCall(name, layer, x.numpy(), quantized.numpy(), own.numpy())
            noisy = None
            if self._with_noise:
                noisy = alone(self._one_ulp_off(quantized))
                call.noise = _largest_change(own, noisy)
            self.calls.append(call)
            self._results[id(output)] = output, call, noisy

        return hook

    def after_batch_norm(self, layer: Any, args: Any, output: Tensor) -> None:
        found = self._results.get(id(args[0])) if args else None
        if found is not None:
            own = layer.forward(args[0]) if _others_hook(layer) else output
            self._normalized(found, own, layer.forward)
            found[1].has_activation = bool(getattr(layer, "_act", None))

    def batch_norm_function(self, function: Any) -> Any:
        def batch_norm(x: Tensor, *args: Any, **options: Any) -> Tensor:
            output = function(x, *args, **options)
            found = self._results.get(id(x))
            if found is not None:
                self._normalized(found, output, lambda noisy: function(noisy, *args, **options))
            return output

        return batch_norm

    def _normalized(self, found: tuple[Tensor, LayerCall, Any], output: Tensor, norm: Any) -> None:
        _, call, noisy = found
        call.normalized = output.numpy()
        if noisy is not None:
            call.normalized_noise = _largest_change(output, norm(noisy))

    def _one_ulp_off(self, x: Tensor) -> Tensor:
        signs = self._rng.integers(0, 2, size=x.shape, dtype=np.int8) * 2 - 1
        return x * paddle.to_tensor(1 + ULP * signs.astype(np.float32))


def _others_hook(layer: Any) -> bool:
    """Whether more than our own hook sees the result: one may have quantized it already."""
    return len(layer._forward_post_hooks) > 1


def _largest_change(a: Tensor, b: Tensor) -> float:
    return float(np.abs(a.numpy() - b.numpy()).max()) if a.size else 0.0
