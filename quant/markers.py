"""While a network is traced for export, quantized layers leave marks instead of fake quant.

Around each quantized layer the trace then holds

    x       -> quantize_linear(activation scale) -> dequantize_linear -> conv2d / matmul
    codes   -> dequantize_linear(weight scales)  -> its weight

with the integer codes as an int8 constant: the graph that the exported file stores.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from paddle import Tensor


class _Trace:
    """The emitter of the trace that runs, if any (one at a time)."""

    emit: Any | None = None


def tracing() -> bool:
    """True while a network is traced for export."""
    return _Trace.emit is not None


@contextmanager
def emitting(emit: Any) -> Iterator[None]:
    """Lets `emit(layer, x) -> (x, weight)` stand in for the quantizers of every layer."""
    _Trace.emit = emit
    try:
        yield
    finally:
        _Trace.emit = None


def mark(layer: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """Input and weight of a layer, as the running trace marks them."""
    assert _Trace.emit is not None
    return _Trace.emit(layer, x)
