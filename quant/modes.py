"""Evaluation mode for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from paddle import nn

from .convert import named_layers


@contextmanager
def evaluating(net: nn.Layer) -> Iterator[None]:
    """Puts `net` into evaluation mode, and each of its layers back as it was afterwards."""
    before = [(layer, layer.training) for _, layer in named_layers(net)]
    net.eval()
    try:
        yield
    finally:
        for layer, training in before:
            layer.training = training
