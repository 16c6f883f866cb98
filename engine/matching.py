"""Put weights into a network: all of them, or, where that was asked for, all that fit."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from paddle import nn

from models import with_current_names

from .errors import EngineError
from .printable import first, shown

# How many tensors one line names before it only counts: more than two networks of this project have
# together, so that only a hostile file's list ends early.
LISTED = 2000


class Loaded(NamedTuple):
    """What became of a network's tensors."""

    loaded: int
    """How many were set."""
    total: int
    """How many it has."""
    mismatches: list[str]
    """What does not match, one entry per tensor with its name and shapes."""


def load_into(
    net: nn.Layer,
    state: Mapping[str, np.ndarray],
    source: str | Path,
    allow_partial: bool = False,
) -> Loaded:
    """Set the parameters and buffers of a network from a state.

    Args:
        net: the network, changed in place.
        state: arrays by the names of ``net.state_dict()``, or by those of Paddle 1.x where the
            network had some, of the same shapes. Floats of another width are converted.
        source: where the state came from, for error messages.
        allow_partial: whether what matches is set even if other tensors do not match.

    Returns:
        How many tensors were set, and what does not match: nothing unless ``allow_partial``.

    Raises:
        EngineError: names, shapes or types do not match, or, with ``allow_partial``, less than half
            of the network's tensors would be set; the network is unchanged.
    """
    targets = net.state_dict()
    state = with_current_names(net, state)
    matching = [
        name for name in targets if name in state and _misfit(state[name], targets[name]) is None
    ]
    mismatches = _mismatches(targets, state)
    if mismatches and (not allow_partial or len(matching) * 2 < len(targets)):
        reason = _refusal(targets, state, mismatches, allow_partial, len(matching))
        raise EngineError(f"{source}: {reason}")
    values = {name: state[name].astype(_dtype(targets[name])) for name in matching}
    for name, value in values.items():
        targets[name].set_value(value)
    return Loaded(len(matching), len(targets), mismatches)


def _dtype(tensor: Any) -> str:
    return str(tensor.dtype).rpartition(".")[2]


def _shape(tensor: Any) -> list[int]:
    return [int(size) for size in tensor.shape]


def _misfit(have: np.ndarray, want: Any) -> str | None:
    """Say how an array differs from the tensor that it is meant for; None if it fits."""
    if _shape(have) != _shape(want):
        return f"is {_shape(have)}, in the network {_shape(want)}"
    if have.dtype.kind != np.dtype(_dtype(want)).kind:
        return f"is {have.dtype}, in the network {_dtype(want)}"
    return None


def _mismatches(targets: Mapping[str, Any], state: Mapping[str, np.ndarray]) -> list[str]:
    missing = [
        f"{name} {_shape(targets[name])} is missing" for name in targets if name not in state
    ]
    misfits = [
        f"{name} {misfit}"
        for name in targets
        if name in state and (misfit := _misfit(state[name], targets[name])) is not None
    ]
    unexpected = [
        f"{shown(name)} {_shape(state[name])} is not in the network"
        for name in state
        if name not in targets
    ]
    return missing + misfits + unexpected


def _refusal(
    targets: Mapping[str, Any],
    state: Mapping[str, np.ndarray],
    mismatches: list[str],
    allow_partial: bool,
    matching: int,
) -> str:
    common = [name for name in targets if name in state]
    missing = [name for name in targets if name not in state]
    unexpected = [name for name in state if name not in targets]
    if not common or ((missing or unexpected) and len(common) * 2 < min(len(targets), len(state))):
        return (
            f"a checkpoint of another model: {len(common)} of its {len(state)} tensors have a "
            f"name of the network: {first(mismatches, LISTED)}"
        )
    if allow_partial:
        return (
            f"only {matching} of the {len(targets)} tensors of the network match, and "
            f"--allow_partial needs half of them: {first(mismatches, LISTED)}"
        )
    classes = None if missing or unexpected else _classes(targets, state)
    if classes is not None:
        return (
            f"weights for {classes[0]} classes, but the network has {classes[1]} "
            f"({first(mismatches, 2)}); set --num_classes, or train with --allow_partial=True, "
            "which starts with a random last layer"
        )
    return (
        f"{len(mismatches)} tensors do not match: {first(mismatches, LISTED)}; "
        "training can start from the others with --allow_partial=True"
    )


def _classes(targets: Mapping[str, Any], state: Mapping[str, np.ndarray]) -> tuple[int, int] | None:
    """Return the classes in the state and in the network if only the last layer differs in them."""
    weights = [name for name, tensor in targets.items() if len(tensor.shape) >= 2]
    last_layer = weights[-1].rpartition(".")[0] + "."
    pairs = set()
    for name in targets:
        have, want = _shape(state[name]), _shape(targets[name])
        differing = [pair for pair in zip(have, want) if pair[0] != pair[1]]
        if not differing and len(have) == len(want):
            continue
        if not name.startswith(last_layer) or len(have) != len(want) or len(differing) != 1:
            return None
        pairs.add(differing[0])
    return pairs.pop() if len(pairs) == 1 else None
