"""Activation scales from a few batches of data, without training."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import paddle
from paddle import Tensor, nn

from .convert import named_layers
from .errors import QuantError
from .modes import evaluating
from .quantizers import ObservedQuantizer


def as_inputs(net: nn.Layer, batch: Any) -> list[Tensor]:
    """The network's inputs of one batch, as tensors.

    A batch is an array or tensor, or a tuple or list that starts with the inputs: of (image,
    label) the first item is taken, and as many items as `net.forward` takes without a default.
    """
    if isinstance(batch, (list, tuple)):
        if not batch:
            raise QuantError("a batch is an empty tuple: wanted is an input, or (input, ...)")
        items = list(batch[0]) if isinstance(batch[0], (list, tuple)) else batch[: _arity(net)]
    else:
        items = [batch]
    return [x if isinstance(x, Tensor) else paddle.to_tensor(np.asarray(x)) for x in items]


def _arity(net: nn.Layer) -> int:
    """How many inputs `net.forward` asks for; 1 where its signature does not tell."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = inspect.signature(net.forward).parameters.values()
    wanted = [p for p in parameters if p.kind in kinds and p.default is inspect.Parameter.empty]
    return max(1, len(wanted))


def calibrate(net: nn.Layer, batches: Iterable[Any]) -> int:
    """Runs the float network on `batches` in evaluation mode while every observer looks on.

    The statistics are those of training (moving average or largest), started afresh.

    Raises:
        QuantError: there is no batch.
    """
    count = 0
    with _observing_float_network(net), evaluating(net), paddle.no_grad():
        for batch in batches:
            net(*as_inputs(net, batch))
            count += 1
    if not count:
        raise QuantError("calibrate got no batch: at least one is needed")
    return count


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
def _observing_float_network(net: nn.Layer) -> Iterator[None]:
    observers = [layer for _, layer in named_layers(net) if isinstance(layer, ObservedQuantizer)]
    for layer in observers:
        layer.reset()
        layer.calibrating = True
    try:
        with fake_quant_off(net):
            yield
    finally:
        for layer in observers:
            layer.calibrating = False
