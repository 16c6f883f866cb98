"""Beginning in a folder, or going on in one."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data import ImageDataset, InputConfig
from models import find_pretrained, model_info

from . import distributed
from .checkpoint import QAT, CheckpointFolder, Latest, Progress, load_latest
from .config import TrainConfig
from .errors import EngineError
from .files import copy_file, make_writable_folder, own_folder
from .inference import require_engine
from .logging import METRICS_FILE, RunLog
from .precision import usable_dtype
from .run_file import RUN_FILE
from .session import Session
from .summary import SUMMARY_FILE
from .task import Task, task_of_training, write_run
from .weights import weights_file

INFERENCE_FOLDER = "inference_model"
CURVES_FILE = "curves.png"
# Flags that say what the state in a checkpoint means: its average, its loss scale, its count of
# batches, its place in the order of the images. What only steers the steps to come may change, as
# someone who goes on wants a smaller --lr, more epochs or a later freeze; the log then says so.
FIXED_FLAGS = (
    "batch_size",
    "seed",
    "ce_test",
    "fp32_epochs",
    "accumulate_steps",
    "warmup_epochs",
    "ema_decay",
    "distill",
    "distill_weight",
    "distill_temperature",
    "amp",
    "amp_dtype",
)
# What --amp and --amp_dtype came to on the device where the run began.
ARITHMETIC = "arithmetic of the forward pass"
PLACES = ("config", "resume", "model_save_dir", "data_dir")
OTHER_FILES = (RUN_FILE, METRICS_FILE, SUMMARY_FILE, CURVES_FILE, INFERENCE_FOLDER)


def open_session(cfg: TrainConfig) -> tuple[Session, Latest | None]:
    """Open the data, and prepare ``--model_save_dir`` for a new run or for going on with one.

    Returns:
        The run, and the checkpoint that it goes on from; None for a new one.

    Raises:
        DataError, ModelError, QuantError: the data, the model or the quantization cannot be used.
        EngineError: the folder cannot be written to, there is nothing to resume at the path that
            was given, or a setting differs that has to stay.
    """
    root = Path(cfg.model_save_dir)
    if distributed.is_main():
        make_writable_folder(root, "--model_save_dir")
        own_folder(root, INFERENCE_FOLDER, "--model_save_dir")
    task, train_data = task_of_training(cfg)
    require_engine(task.target)
    val_data = task.dataset("val")
    checkpoints = CheckpointFolder(root, cfg.keep_checkpoints)
    latest = _find_latest(cfg, checkpoints)
    amp_dtype, warning = usable_dtype(cfg.amp, cfg.amp_dtype)
    settings = _fixed_settings(cfg, task, train_data)
    settings[ARITHMETIC] = amp_dtype or "float32"
    flags = json.loads(json.dumps(dataclasses.asdict(cfg)))
    changed: list[str] = []
    if latest is not None:
        _compare(latest, settings)
        changed = _changes(latest.progress.flags, flags)
    else:
        _check_given_weights(cfg, root)
    progress = Progress() if latest is None else latest.progress
    done = None if latest is None else _why_done(progress, cfg)
    if done is None:
        progress.flags = flags
    progress.fixed = settings
    # All have read before one of them moves files about, and that is over before any goes on.
    distributed.barrier()
    moved = None
    if distributed.is_main():
        if latest is None or latest.path.parent.resolve() != root.resolve():
            moved = _set_aside(checkpoints)
        if latest is not None and latest.path.parent.resolve() != root.resolve():
            _adopt(CheckpointFolder(latest.path.parent), checkpoints, progress.best_epoch)
        # Flags that train nothing any more are not those that made the network.
        if done is None or not (root / RUN_FILE).is_file():
            write_run(root / RUN_FILE, task, progress.flags)
    distributed.barrier()
    log = RunLog(root, progress.log_bytes)
    if moved is not None:
        log.warn(f"{root} holds an earlier run; moved to {moved}")
    if latest is not None:
        log.line(
            f"going on from {latest.path}: {progress.stage} epoch {progress.epoch}, "
            f"step {progress.steps}"
        )
        if changed:
            log.line(f"other flags than before: {', '.join(changed)}")
        if done is not None:
            log.line(f"{done}: nothing is left to train; the best network is exported again")
    elif cfg.resume is not None:
        log.line(f"nothing to resume in {root}; a new run begins")
    if warning is not None:
        log.warn(warning)
    session = Session(cfg, task, train_data, val_data, checkpoints, log, progress, amp_dtype)
    return session, latest


def _check_given_weights(cfg: TrainConfig, root: Path) -> None:
    """A new run moves the former one aside, so its weights must be there, and be elsewhere."""
    if cfg.trains_from_scratch:
        return
    if cfg.pretrained_model is None:
        if distributed.is_main():
            find_pretrained(model_info(cfg.model))  # downloads them, or says where to put them
        return
    try:
        path = weights_file(Path(cfg.pretrained_model))
    except EngineError as error:
        raise EngineError(f"--pretrained_model: {error}") from error
    if root.resolve() in path.resolve().parents:
        raise EngineError(
            f"--pretrained_model: {path} lies in --model_save_dir, whose run a new one moves "
            "aside; name another --model_save_dir"
        )


def _find_latest(cfg: TrainConfig, folder: CheckpointFolder) -> Latest | None:
    if cfg.resume is None:
        return None
    if cfg.resume == "auto":
        return load_latest(folder.latest_path) if folder.latest_path.exists() else None
    path = Path(cfg.resume)
    return load_latest(CheckpointFolder(path).latest_path if path.is_dir() else path)


def _fixed_settings(cfg: TrainConfig, task: Task, train_data: ImageDataset) -> dict[str, Any]:
    """What must stay as it is for a resumed run to be the same run."""
    settings = {
        "model": task.model,
        "num_classes": task.num_classes,
        "input": dataclasses.asdict(task.input),
        "quantization": task.quantization.to_dict(),
        "data": task.data,
        "number of training images": len(train_data),
        "number of processes": distributed.world_size(),
        **{name: getattr(cfg, name) for name in FIXED_FLAGS},
    }
    return json.loads(json.dumps(settings))  # tuples become lists, as in the checkpoint


def _compare(latest: Latest, settings: dict[str, Any]) -> None:
    # A flag that a file does not hold yet is newer than the file: the run had its default.
    defaults = {field.name: field.default for field in dataclasses.fields(TrainConfig)}
    missing = {**{name: defaults[name] for name in FIXED_FLAGS}, ARITHMETIC: "float32"}
    before = {**missing, **latest.progress.fixed}
    if isinstance(before.get("input"), dict):
        before["input"] = {"antialias": InputConfig.antialias, **before["input"]}
    for name, value in settings.items():
        for key, now, then in _differences(name, value, before.get(name)):
            raise EngineError(
                f"--resume: {latest.path}: {key} is {now}, but the run began with {then}; "
                "it has to stay"
            )


def _differences(name: str, now: Any, then: Any) -> Iterator[tuple[str, Any, Any]]:
    """The values that differ, those of a table by the names of its keys."""
    if now == then:
        return
    if not isinstance(now, dict) or not isinstance(then, dict):
        yield name, now, then
        return
    for key in {**then, **now}:
        if now.get(key) != then.get(key):
            yield f"{name}.{key}", now.get(key), then.get(key)


def _why_done(progress: Progress, cfg: TrainConfig) -> str | None:
    """What tells that no step is left; None while there is one."""
    if progress.stage != QAT or progress.unevaluated is not None:
        return None
    if progress.epoch >= cfg.num_epochs:
        return f"{progress.epoch} of --num_epochs {cfg.num_epochs} are done"
    if cfg.max_steps is not None and progress.steps >= cfg.max_steps:
        return f"{progress.steps} of --max_steps {cfg.max_steps} are done"
    return None


def _changes(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """The flags that differ, as words of one line; those that say where things are do not count."""
    return [
        f"--{name} {before[name]} -> {value}"
        for name, value in now.items()
        if name in before and before[name] != value and name not in PLACES
    ]


def _set_aside(folder: CheckpointFolder) -> Path | None:
    """Move an earlier run into a subfolder, so that no file of it is taken for one of this run.

    A run that left no checkpoint is not worth keeping; its files are overwritten.
    """
    checkpoints = folder.checkpoints()
    if not checkpoints:
        return None
    number = 1
    while (target := folder.folder / f"earlier_{number}").exists():
        number += 1
    target.mkdir()
    others = [folder.folder / name for name in OTHER_FILES]
    for path in checkpoints + [path for path in others if path.exists()]:
        os.replace(path, target / path.name)
    return target


def _adopt(source: CheckpointFolder, target: CheckpointFolder, best_epoch: int | None) -> None:
    """Copy what a run needs to go on in another folder."""
    best = [] if best_epoch is None else [source.epoch_path(best_epoch)]
    needed = [
        *best,
        *(path.with_suffix(".pdopt") for path in best),
        source.fp32_path,
        source.best_path,
        source.best_path.with_suffix(".pdopt"),
        source.folder / METRICS_FILE,
    ]
    for path in needed:
        if path.exists():
            copy_file(path, target.folder / path.name)
