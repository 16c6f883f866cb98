"""From a checkpoint to its network, float or quantized."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from paddle import nn

from quant import QAT, QuantConfig

from .checkpoint import load_network_state
from .errors import EngineError
from .matching import load_into
from .run_file import find_run
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
        EngineError: the file cannot be read, belongs to another network, or was quantized
            otherwise than the task says.
        ModelError, QuantError: the network cannot be built or quantized.
    """
    state = load_network_state(path)
    net = task.build_network()
    quanter = None
    if is_quantized(state):
        _check_quantization(task, path)
        quanter = QAT(task.quantization)
        quanter.quantize(net, input_spec=task.input_spec())
    load_into(net, state, path)
    return net, quanter


def _check_quantization(task: Task, path: Path) -> None:
    """A network that is quantized otherwise than it was trained is not the one that was trained."""
    known = find_run(path)
    if known.values.get("quantization") is None:
        return
    trained = QuantConfig.from_dict(known.values["quantization"]).to_dict()
    for key, value in task.quantization.to_dict().items():
        if value != trained[key]:
            raise EngineError(
                f"{path} is a QAT checkpoint, trained with {key} {trained[key]} ({known.source}), "
                f"and the flags say {value}; leave that flag out"
            )
