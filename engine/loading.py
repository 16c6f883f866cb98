"""From a checkpoint to its network, float or quantized."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from paddle import nn

from quant import QAT

from .checkpoint import load_network_state
from .matching import load_into
from .task import Task

# Parts of the names that quantization adds to a network's state.
QUANTIZER_MARKS = ("._act_quant.", "._weight_quant.")


def is_quantized(names: Iterable[str]) -> bool:
    """Whether these names of tensors are those of a QAT checkpoint."""
    return any(mark in f".{name}" for name in names for mark in QUANTIZER_MARKS)


def load_network(task: Task, path: Path) -> tuple[nn.Layer, QAT | None]:
    """Build the network of a checkpoint and load it.

    Returns:
        The network, and what quantized it; None for a float checkpoint.

    Raises:
        EngineError: the file cannot be read or belongs to another network.
        ModelError, QuantError: the network cannot be built or quantized.
    """
    state = load_network_state(path)
    net = task.build_network()
    quanter = None
    if is_quantized(state):
        quanter = QAT(task.quantization)
        quanter.quantize(net, input_spec=task.input_spec())
    load_into(net, state, path)
    return net, quanter
