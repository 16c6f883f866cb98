"""Activation scales from a few batches of data, without training."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import paddle
from paddle import Tensor, nn

from .clip_search import Magnitudes
from .convert import named_layers, quantized_layers
from .errors import QuantError
from .modes import evaluating
from .pact import Pact
from .quantizers import ObservedQuantizer


def as_inputs(net: nn.Layer, batch: Any) -> list[Tensor]:
    """The network's inputs of one batch, as tensors (float64 arrays become float32).

    A batch is an array or tensor, or a tuple or list that starts with the inputs: of (image,
    label) the first item is taken, and as many items as `net.forward` takes without a default.

    Raises:
        QuantError: the batch is something else.
    """
    if isinstance(batch, (list, tuple)):
        if not batch:
            raise QuantError("a batch is an empty tuple: wanted is an input, or (input, ...)")
        items = list(batch[0]) if isinstance(batch[0], (list, tuple)) else batch[: _arity(net)]
    else:
        items = [batch]
    return [_as_tensor(item) for item in items]


def _as_tensor(item: Any) -> Tensor:
    if isinstance(item, Tensor):
        return item
    array = np.asarray(item)
    if array.dtype == np.float64:
        array = array.astype(np.float32)
    if array.dtype.kind not in "biuf":
        raise QuantError(f"a batch holds a {type(item).__name__}: wanted is an array or a tensor")
    return paddle.to_tensor(array)


def each(batches: Iterable[Any]) -> Iterator[Any]:
    """The batches; a single array in their place is an error, since its rows are no batches.

    Raises:
        QuantError: `batches` is an array or tensor, or cannot be iterated over.
    """
    if isinstance(batches, (np.ndarray, Tensor, dict)) or not hasattr(batches, "__iter__"):
        raise QuantError(
            f"batches is a {type(batches).__name__}: wanted is an iterable of batches, as [array]"
        )
    return iter(batches)


def _arity(net: nn.Layer) -> int:
    """How many inputs `net.forward` asks for; 1 where its signature does not tell."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = inspect.signature(net.forward).parameters.values()
    wanted = [p for p in parameters if p.kind in kinds and p.default is inspect.Parameter.empty]
    return max(1, len(wanted))


def calibrate(net: nn.Layer, batches: Iterable[Any]) -> int:
    """Runs the float network on `batches` in evaluation mode while every observer looks on.

    The statistics are those of training (moving average or largest), started afresh. Where PACT
    starts from data, alpha is set as well.

    Raises:
        QuantError: there is no batch, or a layer's input is not finite; the scales are then what
            they were.
    """
    count = 0
    pact = _observing_for_pact(net)
    with pact, _observing_float_network(net), evaluating(net), paddle.no_grad():
        for batch in each(batches):
            net(*as_inputs(net, batch))
            count += 1
        if not count:
            raise QuantError("calibrate got no batch: at least one is needed")
        _check_finite(net)
    return count


def _check_finite(net: nn.Layer) -> None:
    for name, layer in quantized_layers(net):
        for observer in layer.sublayers():
            if isinstance(observer, ObservedQuantizer) and not _is_finite(observer.scale):
                raise QuantError(
                    f"calibrate: the input of {f'layer {name}' if name else 'the network'} holds "
                    "NaN or Inf; the batches, weights or BatchNorm's statistics hold some, or what "
                    "is computed from them grows too large"
                )


def _is_finite(x: Tensor) -> bool:
    return bool(paddle.isfinite(x).all())


@contextmanager
def fake_quant_off(net: nn.Layer, off: bool = True) -> Iterator[None]:
    """Lets every quantizer of `net` hand its input through (or, off=False, quantize)."""
    switched = [x for _, x in named_layers(net) if hasattr(x, "fake_quant_enabled")]
    before = [layer.fake_quant_enabled for layer in switched]
    for layer in switched:
        layer.fake_quant_enabled = not off
    try:
        yield
    finally:
        for layer, enabled in zip(switched, before):
            layer.fake_quant_enabled = enabled


@contextmanager
def _observing_for_pact(net: nn.Layer) -> Iterator[None]:
    """Counts the magnitudes that reach each PACT which starts from data; in the end sets alpha."""
    seen: list[tuple[Pact, Magnitudes]] = []
    hooks = []
    for name, layer in quantized_layers(net):
        for quantizer in (layer._act_quant, layer._weight_quant):
            pact = quantizer.preprocess
            if isinstance(pact, Pact) and pact.starts_from_data:
                magnitudes = Magnitudes()
                seen.append((pact, magnitudes))
                hooks.append(quantizer.register_forward_pre_hook(_counting(name, magnitudes)))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
    for pact, magnitudes in seen:
        pact.start_at(magnitudes)


def _counting(name: str, magnitudes: Magnitudes) -> Any:
    def hook(_: Any, args: Any) -> None:
        try:
            magnitudes.add(args[0])
        except QuantError as error:
            raise QuantError(f"calibrate, layer {name}: {error}") from error

    return hook


@contextmanager
def _observing_float_network(net: nn.Layer) -> Iterator[None]:
    observers = [layer for _, layer in named_layers(net) if isinstance(layer, ObservedQuantizer)]
    before = [[buffer.clone() for buffer in layer.buffers()] for layer in observers]
    for layer in observers:
        layer.reset()
        layer.calibrating = True
    try:
        with fake_quant_off(net):
            yield
    except BaseException:
        for layer, values in zip(observers, before):
            for buffer, value in zip(layer.buffers(), values):
                buffer.set_value(value)
        raise
    finally:
        for layer in observers:
            layer.calibrating = False
