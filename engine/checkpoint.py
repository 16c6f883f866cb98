"""Checkpoints: what ``paddle.save`` writes, and one file from which a run goes on.

======================  ==========================================================================
``epoch_N.pdparams``    parameters and buffers after QAT epoch N (from 0); ``.pdopt``: the optimizer
``best_model.*``        the same of the epoch with the highest Top1
``fp32_model.pdparams`` the float network that QAT starts from
``latest.pdparams``     parameters and buffers as training goes on with them, and under names that
                        start with ``train_state/`` all else that it needs; one file, so that it is
                        whole or not there
======================  ==========================================================================

With ``--ema_decay`` all but ``latest`` hold the averaged weights, which are those that were
evaluated; ``latest`` holds both.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import paddle
from paddle import Tensor, nn
from paddle.optimizer import Optimizer
from paddle.optimizer.lr import LRScheduler

from quant import compat

from .errors import EngineError
from .files import copy_file, remove_files, write_atomically
from .matching import load_into
from .weights import MAX_BYTES, load_weights

STATE_PREFIX = "train_state/"
_PROGRESS_KEY = STATE_PREFIX + "progress"
_MOMENTUM_PREFIX = STATE_PREFIX + "momentum/"
_AVERAGE_PREFIX = STATE_PREFIX + "average/"
_MOMENTUM_SUFFIX = "_velocity_0"

FP32, QAT = "fp32", "qat"
LATEST = "latest"


@dataclass
class Progress:
    """How far a run has come.

    Attributes:
        stage: ``"fp32"`` or ``"qat"``.
        epoch: the epoch to go on with, from 0, counted within the stage.
        batch: batches of that epoch that are done.
        steps: steps of the stage that are done.
        best_top1: highest Top1 of the stage so far.
        best_epoch: its epoch.
        results: figures of finished stages, as ``summary.json`` has them.
        log_bytes: length of ``metrics.jsonl`` at this point.
        fixed: settings that must not change when the run goes on.
        precision: state of the stage's `engine.precision`.
        window: `MetricSums.take` of the steps since the last line of the log; empty for none.
        unevaluated: the epoch that was trained (``epoch`` and ``batch`` have moved on) and has yet
            to be evaluated; None for none.
        nonfinite_steps: steps of the stage that were left out.
        digest: of all tensors beside this record (`_digest`); empty in files without.
        flags: every flag of the command that wrote this.
    """

    stage: str = FP32
    epoch: int = 0
    batch: int = 0
    steps: int = 0
    best_top1: float | None = None
    best_epoch: int | None = None
    results: dict[str, Any] = field(default_factory=dict)
    log_bytes: int = 0
    fixed: dict[str, Any] = field(default_factory=dict)
    precision: dict[str, float] = field(default_factory=dict)
    window: list[float] = field(default_factory=list)
    unevaluated: int | None = None
    nonfinite_steps: int = 0
    digest: str = ""
    flags: dict[str, Any] = field(default_factory=dict)

    def begin(self, stage: str) -> None:
        """Move on to the start of a stage."""
        self.stage, self.epoch, self.batch, self.steps = stage, 0, 0, 0
        self.best_top1 = self.best_epoch = self.unevaluated = None
        self.nonfinite_steps = 0
        self.precision = {}
        self.window = []


@dataclass(frozen=True)
class Latest:
    """The content of ``latest.pdparams``.

    Attributes:
        path: the file.
        weights: parameters and buffers by name.
        momentum: velocity of each parameter, by the parameter's name in the network.
        progress: how far the run had come.
        average: the averaged weights and buffers by name; empty in a run without.
    """

    path: Path
    weights: dict[str, np.ndarray]
    momentum: dict[str, np.ndarray]
    progress: Progress
    average: dict[str, np.ndarray] = field(default_factory=dict)


class CheckpointFolder:
    """The checkpoints of one run.

    Args:
        folder: an existing folder.
        keep: how many of the newest ``epoch_N`` stay; None keeps all.
    """

    def __init__(self, folder: Path, keep: int | None = None) -> None:
        self.folder = folder
        self.keep = keep

    @property
    def latest_path(self) -> Path:
        """``latest.pdparams``."""
        return self.folder / f"{LATEST}.pdparams"

    @property
    def best_path(self) -> Path:
        """``best_model.pdparams``."""
        return self.folder / "best_model.pdparams"

    @property
    def fp32_path(self) -> Path:
        """``fp32_model.pdparams``."""
        return self.folder / "fp32_model.pdparams"

    def epoch_path(self, epoch: int) -> Path:
        """``epoch_N.pdparams``."""
        return self.folder / f"epoch_{epoch}.pdparams"

    def way_on(self) -> str:
        """What to say about how a run that was stopped goes on."""
        if not self.latest_path.exists():
            return "(nothing was trained yet)"
        return f"({self.latest_path} has what was trained; --resume goes on with it)"

    def save_epoch(
        self, epoch: int, net: nn.Layer, optimizer: Optimizer, best_epoch: int | None = None
    ) -> None:
        """Write ``epoch_N.pdparams`` and ``.pdopt``; drop the oldest beyond ``keep``.

        The files of ``best_epoch`` stay in any case: what is done to the best network after
        training begins with them, however often it is done.
        """
        path = self.epoch_path(epoch)
        save_weights(net, path)
        save_object(compat.optimizer_state(optimizer), path.with_suffix(".pdopt"))
        if self.keep is not None:
            old = [n for n in sorted(self._epochs())[: -self.keep] if n != best_epoch]
            remove_files([self.folder / f"epoch_{n}{end}" for n in old for end in _PAIR])

    def checkpoints(self) -> list[Path]:
        """Every file here that a run left for later use."""
        names = [f"epoch_{n}{end}" for n in self._epochs() for end in _PAIR]
        names += [f"best_model{end}" for end in _PAIR]
        paths = [self.folder / name for name in names] + [self.latest_path, self.fp32_path]
        return [path for path in paths if path.exists()]

    def _epochs(self) -> list[int]:
        names = (re.fullmatch(r"epoch_(\d+)\.pdparams", p.name) for p in self.folder.iterdir())
        return [int(match.group(1)) for match in names if match]

    def mark_best(self, epoch: int) -> None:
        """Make ``best_model`` a copy of an epoch."""
        for end in _PAIR:
            copy_file(self.folder / f"epoch_{epoch}{end}", self.folder / f"best_model{end}")

    def save_latest(
        self,
        net: nn.Layer,
        optimizer: Optimizer,
        progress: Progress,
        average: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Write ``latest.pdparams``.

        Args:
            net: the network that is trained.
            optimizer: its optimizer.
            progress: how far the run has come.
            average: the averaged weights and buffers by name, where there are any.
        """
        state = {**net.state_dict(), **_momentum_state(net, optimizer)}
        state.update({_AVERAGE_PREFIX + name: value for name, value in (average or {}).items()})
        progress.digest = _digest({name: value.numpy() for name, value in state.items()})
        text = json.dumps(dataclasses.asdict(progress)).encode()
        state[_PROGRESS_KEY] = paddle.to_tensor(np.frombuffer(text, dtype=np.uint8))
        save_object(state, self.latest_path)


_PAIR = (".pdparams", ".pdopt")
# Weights, momentum and averaged weights.
MAX_LATEST_BYTES = 3 * MAX_BYTES
_COUNTS = ("epoch", "batch", "steps", "log_bytes", "nonfinite_steps")


def save_weights(net: nn.Layer, path: Path) -> None:
    """Write parameters and buffers so that ``paddle.load`` reads them."""
    save_object(net.state_dict(), path)


def save_object(value: dict[str, Any], path: Path) -> None:
    """``paddle.save``, atomically.

    Raises:
        EngineError: the file cannot be written.
    """
    write_atomically(path, lambda name: paddle.save(value, name))


def load_network_state(path: Path) -> dict[str, np.ndarray]:
    """Parameters and buffers of any checkpoint, ``latest`` included.

    Raises:
        EngineError: the file is missing or cannot be read.
    """
    is_latest = path.name.startswith(LATEST)
    state = load_weights(path, MAX_LATEST_BYTES if is_latest else MAX_BYTES)
    return {name: value for name, value in state.items() if not name.startswith(STATE_PREFIX)}


def load_latest(path: Path) -> Latest:
    """Read a file that ``save_latest`` has written.

    Raises:
        EngineError: it is missing, broken, or another kind of checkpoint.
    """
    state = load_weights(path, MAX_LATEST_BYTES)
    text = state.pop(_PROGRESS_KEY, None)
    if text is None:
        raise EngineError(
            f"--resume: {path} holds weights only; allowed is the latest.pdparams of a run "
            "(or pass the file as --pretrained_model)"
        )
    try:
        values = json.loads(text.astype(np.uint8).tobytes())
        progress = Progress(**values)
    except (ValueError, TypeError) as error:
        raise EngineError(f"--resume: {path}: its record of progress is not readable") from error
    _check_progress(progress, path)
    if progress.digest not in ("", _digest(state)):
        raise EngineError(f"--resume: {path} is damaged: its tensors are not those that were saved")
    momentum = _take(state, _MOMENTUM_PREFIX)
    average = _take(state, _AVERAGE_PREFIX)
    return Latest(path, state, momentum, progress, average)


def _digest(state: Mapping[str, np.ndarray]) -> str:
    """BLAKE2b of names, types, shapes and values: a disk that lost a bit does not go unnoticed."""
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(state):
        value = np.ascontiguousarray(state[name])
        digest.update(f"{name} {value.dtype} {value.shape}".encode())
        digest.update(value.tobytes())
    return digest.hexdigest()


def _check_progress(progress: Progress, path: Path) -> None:
    """Name the first value that no run has written.

    Raises:
        EngineError: with its name, the value, and what is allowed.
    """

    def counts(value: Any) -> bool:
        return type(value) is int and value >= 0

    def numbers(values: Any) -> bool:
        return all(type(value) in (int, float) for value in values)

    def table(value: Any) -> bool:
        return isinstance(value, dict)

    stages = f"{FP32} or {QAT}"
    count, best, window = "a whole number from 0", "null or a number", "no or four numbers"
    allowed: dict[str, tuple[str, Callable[[Any], bool]]] = {
        "stage": (stages, lambda value: value in (FP32, QAT)),
        "digest": ("text", lambda value: isinstance(value, str)),
        **{name: (count, counts) for name in _COUNTS},
        "best_top1": (best, lambda value: value is None or numbers([value])),
        **{
            name: (f"null or {count}", lambda value: value is None or counts(value))
            for name in ("best_epoch", "unevaluated")
        },
        **{name: ("a table", table) for name in ("results", "fixed", "flags")},
        "precision": ("a table of numbers", lambda value: table(value) and numbers(value.values())),
        "window": (
            window,
            lambda value: isinstance(value, list) and len(value) in (0, 4) and numbers(value),
        ),
    }
    for name, (words, fits) in allowed.items():
        value = getattr(progress, name)
        if not fits(value):
            raise EngineError(
                f"--resume: {path}: {name} in its record of progress is {value!r}; "
                f"allowed is {words}"
            )


def _take(state: dict[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    """Remove what has such a name, and return it under the rest of the name."""
    names = [name for name in state if name.startswith(prefix)]
    return {name[len(prefix) :]: state.pop(name) for name in names}


def _momentum_state(net: nn.Layer, optimizer: Optimizer) -> dict[str, Any]:
    """The optimizer's velocities under the names that the parameters have in the network.

    Paddle keys them by a name that counts the layers of the process, so it changes when another
    network is built first.
    """
    stored = compat.optimizer_state(optimizer)
    return {
        _MOMENTUM_PREFIX + name: stored[parameter.name + _MOMENTUM_SUFFIX]
        for name, parameter in net.named_parameters()
        if parameter.name + _MOMENTUM_SUFFIX in stored
    }


def restore(
    latest: Latest, net: nn.Layer, optimizer: Optimizer, schedule: LRScheduler, steps: int
) -> None:
    """Put a network, its optimizer and the learning rate where they were.

    Raises:
        EngineError: the checkpoint belongs to another network.
    """
    load_into(net, latest.weights, latest.path)
    schedule.step(steps)
    state: dict[str, Any] = {"LR_Scheduler": schedule.state_dict()}
    for name, parameter in net.named_parameters():
        if name in latest.momentum:
            state[parameter.name + _MOMENTUM_SUFFIX] = paddle.to_tensor(latest.momentum[name])
    optimizer.set_state_dict(state)
