"""What a run is about: model, classes, input, data, quantization. It is kept in ``run.json``."""

from __future__ import annotations

import dataclasses
import platform
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Union

import numpy as np
import paddle
from paddle import nn

from data import DataError, ImageDataset, InputConfig, build_dataset
from models import ALIASES, ModelError, ModelInfo, build_model, list_models, model_info
from quant import QuantConfig
from quant.targets import TARGETS, Target

from .config import EvalConfig, ExportConfig, TrainConfig, quant_config
from .errors import EngineError
from .files import write_json
from .run_file import RUN_FILE, Known, find_run

DEFAULT_DATA = "imagenet"
UNKNOWN_MODEL = "unknown"

AnyConfig = Union[TrainConfig, EvalConfig, ExportConfig]


@dataclass(frozen=True)
class Task:
    """All that is needed to build the network of a checkpoint and to feed it.

    Attributes:
        model: name in the registry.
        num_classes: length of the network's output.
        input: size, channels and normalisation of its input.
        data: name of the data set.
        data_dir: its folder; None for the default one.
        class_names: one per class, or None.
        quantization: as `quant.QAT` takes it.
    """

    model: str
    num_classes: int
    input: InputConfig
    data: str
    data_dir: str | None
    class_names: tuple[str, ...] | None
    quantization: QuantConfig

    @property
    def target(self) -> Target:
        """What is simulated in quantized training, and what the files are for."""
        return TARGETS[self.quantization.deploy_target]

    def build_network(self) -> nn.Layer:
        """The float network with random weights.

        Raises:
            ModelError: the model cannot have such an input or output.
        """
        return build_model(self.model, self.num_classes, self.input.channels, self.input.image_size)

    def input_spec(self) -> list[Any]:
        """What the exported files are traced with: any number of images."""
        size = self.input.image_size
        shape = [None, self.input.channels, size, size]
        return [paddle.static.InputSpec(shape=shape, dtype="float32", name="image")]

    def dataset(self, split: str, seed: int = 0) -> ImageDataset:
        """Open the ``train`` or ``val`` split, whose labels have to fit the network.

        Raises:
            DataError: it is missing or cannot be used.
        """
        return build_dataset(
            self.data, split, self.input, self.data_dir, seed, num_classes=self.num_classes
        )


def resolve_input(
    cfg: AnyConfig, info: ModelInfo, stored: dict[str, Any] | None = None
) -> InputConfig:
    """The input of a model: from the flags, else as ``run.json`` has it, else the model's own.

    Args:
        cfg: the flags.
        info: the model's row of the registry.
        stored: the ``input`` entry of ``run.json``.
    """
    stored = stored or {}
    channels = cfg.channels or stored.get("channels") or info.channels
    info = info.for_channels(channels)
    size = cfg.image_size or stored.get("image_size") or info.image_size
    resize = cfg.resize_size
    if resize is None and cfg.image_size in (None, stored.get("image_size")):
        resize = stored.get("resize_size")
    if resize is None:
        resize = round(size * info.resize_size / info.image_size)
    # Statistics that belong to another number of channels say nothing about this one.
    same_channels = stored.get("channels") == channels
    antialias = cfg.antialias
    if antialias is None:
        antialias = stored.get("antialias")
    mean = cfg.mean or (stored.get("mean") if same_channels else None) or info.mean
    std = cfg.std or (stored.get("std") if same_channels else None) or info.std
    return InputConfig(
        image_size=size,
        resize_size=resize,
        channels=channels,
        mean=tuple(mean),
        std=tuple(std),
        interpolation=cfg.interpolation or stored.get("interpolation") or info.interpolation,
        antialias=info.antialias if antialias is None else antialias,
    )


def task_of_training(cfg: TrainConfig) -> tuple[Task, ImageDataset]:
    """The task of a new run, and its training data, which tell the number of classes.

    Raises:
        DataError, ModelError, QuantError: the data, the model or the quantization cannot be used.
    """
    info = model_info(cfg.model)
    input_config = resolve_input(cfg, info)
    dataset = build_dataset(
        cfg.data, "train", input_config, cfg.data_dir, cfg.seed, num_classes=cfg.num_classes
    )
    task = Task(
        model=info.name,
        num_classes=cfg.num_classes or dataset.num_classes,
        input=input_config,
        data=cfg.data,
        data_dir=cfg.data_dir,
        class_names=dataset.class_names,
        quantization=QuantConfig.from_dict(quant_config(cfg)),
    )
    return task, dataset


def task_of_file(
    cfg: EvalConfig | ExportConfig,
    path: Path,
    needs_network: bool,
    known: Known | None = None,
) -> Task:
    """The task of a checkpoint or an exported file: from the flags, else from what is known of it.

    Args:
        cfg: the flags.
        path: the file.
        needs_network: whether the network has to be built. An exported file carries its own, so
            there the name of the model is only a word, and a size of 224 the last resort.
        known: what is known of it; None asks `find_run`.

    Raises:
        EngineError: nothing says which model it is, or what is known cannot be used.
    """
    known = known or find_run(path)
    model = cfg.model or known.values.get("model")
    if model is None and needs_network:
        raise EngineError(
            f"{path}: there is no {RUN_FILE} beside it that says which network this is; "
            "pass --model NAME"
        )
    try:
        return _merged_task(cfg, known.values, _model_info(model, needs_network))
    except (DataError, ModelError) as error:
        raise EngineError(f"{known.source} and the flags: {error}") from error


def warn_of_default_quantization(path: Path) -> None:
    """Say so where nothing tells how a QAT checkpoint was quantized (its keys do not)."""
    if not find_run(path).values:
        print(
            f"warning: {path} is a QAT checkpoint without {RUN_FILE}; "
            "the flags, or the defaults of quantization, are assumed",
            file=sys.stderr,
        )


def _model_info(model: str | None, needs_network: bool) -> ModelInfo:
    """The row of a model; of an exported file it may be a model that none of ours is."""
    if model is not None and (needs_network or model in (*list_models(), *ALIASES)):
        return model_info(model)
    return ModelInfo(name=model or UNKNOWN_MODEL, build=_no_network)


def _merged_task(cfg: EvalConfig | ExportConfig, stored: dict[str, Any], info: ModelInfo) -> Task:
    same_model = cfg.model is None or info.name == stored.get("model")
    input_config = resolve_input(cfg, info, stored.get("input") if same_model else None)
    data = cfg.data or stored.get("data") or DEFAULT_DATA
    data_dir = cfg.data_dir
    if data_dir is None and data == stored.get("data"):
        data_dir = stored.get("data_dir")
    num_classes = cfg.num_classes or (stored.get("num_classes") if same_model else None)
    if num_classes is None:
        num_classes = build_dataset(data, "val", input_config, data_dir).num_classes
    quantization = dict(stored.get("quantization") or {})
    if isinstance(cfg, ExportConfig):
        quantization.update(quant_config(cfg))
    names = stored.get("class_names")
    return Task(
        model=info.name,
        num_classes=num_classes,
        input=input_config,
        data=data,
        data_dir=data_dir,
        class_names=tuple(names) if names else None,
        quantization=QuantConfig.from_dict(quantization),
    )


def _no_network(num_classes: int) -> nn.Layer:
    raise EngineError("the model is not known; pass --model NAME")


def write_run(path: Path, task: Task, recipe: dict[str, Any]) -> None:
    """Write ``run.json``, or ``NAME.run.json`` for one exported file.

    Args:
        path: the file to write.
        task: the task.
        recipe: every flag of the command that made them.
    """
    write_json(path, run_values(task, recipe))


def run_values(task: Task, recipe: dict[str, Any]) -> dict[str, Any]:
    """What ``run.json`` holds; arguments as for `write_run`."""
    return {
        "model": task.model,
        "num_classes": task.num_classes,
        "input": dataclasses.asdict(task.input),
        "data": task.data,
        "data_dir": task.data_dir,
        "class_names": list(task.class_names) if task.class_names else None,
        "quantization": task.quantization.to_dict(),
        "recipe": recipe,
        "versions": versions(),
        "git_commit": git_commit(),
    }


def versions() -> dict[str, str]:
    """Versions of what computes the results."""
    return {
        "python": platform.python_version(),
        "paddle": paddle.__version__,
        "numpy": np.__version__,
    }


def git_commit() -> str | None:
    """Commit of this project's checkout, or None where there is none."""
    try:
        answer = subprocess.run(
            ["git", "rev-parse", "HEAD"],
            cwd=Path(__file__).resolve().parent,
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip() if answer.returncode == 0 else None
