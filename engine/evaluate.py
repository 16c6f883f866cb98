"""The job of ``eval.py``: how good and how fast a file is."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from paddle import Tensor

from data import ImageDataset, build_loader
from quant import QuantConfig
from quant.targets import TARGETS, Target

from . import distributed
from .config import EvalConfig
from .confusion import Confusion
from .details import details_json, details_lines, write_details
from .errors import EngineError
from .evaluation import Forward, evaluate
from .files import make_writable_folder, write_json
from .inference import (
    check_images,
    default_threads,
    file_forward,
    first_batches,
    input_shape,
    stored_bytes,
)
from .loading import load_network
from .onnx_file import OnnxFile
from .run_file import Known, find_run
from .runtime import select_device
from .summary import format_bytes
from .task import Task, task_of_file, warn_of_default_quantization
from .weights import weights_file, weights_size


@dataclass(frozen=True)
class Opened:
    """A file that is ready to be evaluated.

    Attributes:
        task: what it is for.
        forward: the function from images to logits.
        size: in bytes.
        engine: what runs it: a value of ``--engine`` other than 'auto'.
    """

    task: Task
    forward: Forward
    size: int
    engine: str


@dataclass(frozen=True)
class Kind:
    """A kind of file that can be evaluated.

    Attributes:
        title: what to call it.
        engines: the values of ``--engine`` that it can be run with.
        open: reads it.
        hint: what to do about the other engines.
    """

    title: str
    engines: tuple[str, ...]
    open: Callable[[EvalConfig], Opened]
    hint: str


def run_evaluation(cfg: EvalConfig) -> int:
    """Run ``eval.py``; returns the exit code 0.

    Raises:
        DataError, EngineError, ModelError, QuantError: something is not usable as it is.
    """
    distributed.require_one_process("eval.py")
    kind = kind_of(cfg.path)
    check_engine(cfg, kind)
    if cfg.output is not None:
        make_writable_folder(Path(cfg.output).absolute().parent, "--output")
    if cfg.details is not None:
        make_writable_folder(Path(cfg.details), "--details")
    # The engines of exported files run on the CPU.
    select_device(cfg.use_gpu and kind is CHECKPOINT)
    opened = kind.open(cfg)
    task = opened.task
    dataset = task.dataset("val")
    forward = _checked(opened.forward, task, Path(cfg.path))
    found = evaluate(forward, _batches(cfg, dataset), with_loss=False)
    num_classes = max(task.num_classes, found.num_scores)
    names = task.class_names or dataset.class_names
    confusion = Confusion(found, num_classes, names if len(names or ()) == num_classes else None)
    metrics = found.metrics
    values = {
        "path": cfg.path,
        "model": task.model,
        "top1": metrics.top1,
        "top5": metrics.top5,
        "num_images": metrics.num_images,
        "images_per_second": found.images_per_second,
        "size_bytes": opened.size,
        "backend": opened.engine,
    }
    print(
        f"{cfg.path} ({opened.engine}): top1 {metrics.top1:.4f}, top5 {metrics.top5:.4f}, "
        f"{metrics.num_images} images, {found.images_per_second:.1f} images/s, "
        f"{format_bytes(opened.size)}"
    )
    if confusion.without_choice:
        print(
            f"warning: {confusion.without_choice} images have scores that are not numbers (NaN); "
            "they count as wrong",
            file=sys.stderr,
        )
    if cfg.details is not None:
        values.update(details_json(confusion))
        print("\n".join(details_lines(confusion)))
        for file in write_details(Path(cfg.details), confusion):
            print(f"written: {file}")
    if cfg.output is not None:
        write_json(Path(cfg.output), values)
    return 0


# --- what is evaluated ---------------------------------------------------------------------


def _checkpoint(cfg: EvalConfig) -> Opened:
    path = Path(cfg.path)
    task = task_of_file(cfg, path, needs_network=True)
    net, quanter = load_network(task, path)
    if quanter is not None:
        warn_of_default_quantization(path)
    net.eval()
    return Opened(task, net, weights_size(path), "native")  # --engine=paddle is the same


def _exported(cfg: EvalConfig) -> Opened:
    prefix = exported_prefix(cfg.path) or Path(cfg.path)
    task = task_of_file(cfg, prefix, needs_network=False)
    target = _target(prefix)
    engine = target.engine if cfg.engine == "auto" else cfg.engine
    if engine not in target.engines:
        _warn_of_engine(cfg.path, target, engine)
    forward = file_forward(prefix, engine, cfg.threads)
    shape = input_shape(prefix)
    if len(shape) != 4:
        raise EngineError(f"{prefix}: takes an input of shape {shape}; allowed is [N, C, H, W]")
    check_images(prefix, shape[1:], task.input)
    return Opened(task, forward, stored_bytes(prefix), engine)


def _onnx(cfg: EvalConfig) -> Opened:
    path = Path(cfg.path)
    file = OnnxFile(path, cfg.threads or default_threads())
    source, stored = file.known if file.known.values else find_run(path)
    # The sizes that are fixed in the file are what it takes where nothing else is said.
    said = {key: value for key, value in (stored.get("input") or {}).items() if value is not None}
    known = Known(source, {**stored, "input": {**file.fixed_input, **said}})
    task = task_of_file(cfg, path, needs_network=False, known=known)
    file.check_input(task.input)
    target = TARGETS[QuantConfig.from_dict(known.values.get("quantization")).deploy_target]
    engine = target.onnx_engine if cfg.engine == "auto" else cfg.engine
    if engine not in target.onnx_engines and "onnx" not in target.onnx_engines:
        _warn_of_engine(cfg.path, target, engine)
    file.run_on(engine)
    return Opened(task, file, path.stat().st_size, engine)


CHECKPOINT = Kind(
    "a checkpoint",
    ("auto", "native", "paddle"),
    _checkpoint,
    "export.py makes a model of it for the others",
)
EXPORTED = Kind(
    "an exported Paddle model",
    ("auto", "paddle", "onednn"),
    _exported,
    "native runs checkpoints, onnxruntime and openvino .onnx files",
)
ONNX = Kind(
    "an ONNX file",
    ("auto", "onnxruntime", "openvino"),
    _onnx,
    "the others run no ONNX",
)


def kind_of(path: str) -> Kind:
    """Which kind of file a path names.

    Raises:
        EngineError: there is no such file.
    """
    prefix = exported_prefix(path)
    if prefix is not None:
        for ending in (".pdmodel", ".pdiparams"):
            if not os.path.isfile(f"{prefix}{ending}"):
                raise EngineError(f"{prefix}{ending}: no such file")
        return EXPORTED
    if path.endswith(".onnx"):
        if not os.path.isfile(path):
            raise EngineError(f"{path}: no such file")
        return ONNX
    models = sorted(Path(path).glob("*.pdmodel")) if os.path.isdir(path) else []
    if models:
        raise EngineError(
            f"{path} is a folder of exported models; name one of them: "
            f"{', '.join(str(model.with_suffix('')) for model in models)}"
        )
    weights_file(Path(path))
    return CHECKPOINT


def exported_prefix(path: str) -> Path | None:
    """The path without endings if it names an exported model, else None."""
    for ending in (".pdmodel", ".pdiparams"):
        if path.endswith(ending):
            return Path(path[: -len(ending)])
    return Path(path) if os.path.isfile(f"{path}.pdmodel") else None


def check_engine(cfg: EvalConfig, kind: Kind) -> None:
    """See that ``--engine`` can run this kind of file.

    Raises:
        EngineError: it cannot.
    """
    if cfg.engine not in kind.engines:
        raise EngineError(
            f"--engine is {cfg.engine}, but {cfg.path} is {kind.title}; allowed is "
            f"{', '.join(kind.engines)} ({kind.hint})"
        )


def _warn_of_engine(path: str, target: Target, engine: str) -> None:
    print(
        f"warning: {path} was made for --deploy_target={target.name}; --engine {engine} computes "
        "something else with it than what was trained",
        file=sys.stderr,
    )


def _target(prefix: Path) -> Target:
    """What a file was made for, as its ``run.json`` tells; a float file suits every engine."""
    is_float = b"quantize_linear" not in Path(f"{prefix}.pdmodel").read_bytes()
    quantization = None if is_float else find_run(prefix).values.get("quantization")
    return TARGETS[QuantConfig.from_dict(quantization).deploy_target]


def _checked(forward: Forward, task: Task, path: Path) -> Forward:
    """Refuse a file whose output cannot be logits of these classes."""

    def checked(images: Tensor) -> Tensor:
        logits = forward(images)
        if len(logits.shape) != 2 or logits.shape[1] < task.num_classes:
            raise EngineError(
                f"{path}: its output is {list(logits.shape)}, but {task.data} has "
                f"{task.num_classes} classes; needed is [N, {task.num_classes}]"
            )
        return logits

    return checked


def _batches(cfg: EvalConfig, dataset: ImageDataset) -> Iterable[list[Tensor]]:
    if cfg.max_images is not None:
        return first_batches(dataset, cfg.max_images, cfg.batch_size, cfg.num_workers)
    return build_loader(dataset, cfg.batch_size, train=False, num_workers=cfg.num_workers)
