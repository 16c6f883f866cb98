"""While a network is traced, quantized layers leave marks instead of fake quantizing.

A mark is an operator that changes nothing (`assign`), on each tensor that is quantized (a layer's
input, for some targets its output) and on the weight of each quantized layer. The export puts the
quantizers there:

    x       -> quantize_linear(activation scale) -> dequantize_linear -> conv2d / matmul
    codes   -> dequantize_linear(weight scales)  -> its weight

with the integer codes as an int8 constant.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from paddle import Tensor


class Emitter(Protocol):
    """Leaves the marks of one trace."""

    def mark_tensor(self, quantizer: Any, x: Tensor) -> Tensor:
        """`x`, marked as what `quantizer` quantizes: a layer (its input) or a result quantizer."""

    def mark_weight(self, layer: Any) -> Tensor:
        """The weight of `layer`, marked."""


class _Trace:
    """The emitter of the trace that runs, if any (one at a time)."""

    emitter: Emitter | None = None


def tracing() -> bool:
    """True while a network is traced."""
    return _Trace.emitter is not None


@contextmanager
def emitting(emitter: Emitter) -> Iterator[None]:
    """Lets `emitter` stand in for the quantizers of every layer."""
    _Trace.emitter = emitter
    try:
        yield
    finally:
        _Trace.emitter = None


def mark_tensor(quantizer: Any, x: Tensor) -> Tensor:
    """`x`, marked in the running trace as what `quantizer` quantizes."""
    assert _Trace.emitter is not None
    return _Trace.emitter.mark_tensor(quantizer, x)


def mark_weight(layer: Any) -> Tensor:
    """The weight of `layer`, marked in the running trace."""
    assert _Trace.emitter is not None
    return _Trace.emitter.mark_weight(layer)
