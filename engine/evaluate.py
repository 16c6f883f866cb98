"""The job of ``eval.py``: how good and how fast a file is."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from paddle import Tensor

from data import ImageDataset, build_loader

from . import distributed
from .config import EvalConfig
from .errors import EngineError
from .evaluation import Forward, evaluate
from .files import make_writable_folder, write_json
from .inference import file_forward, first_batches, onnx_forward, stored_bytes
from .loading import load_network
from .runtime import select_device
from .summary import format_bytes
from .task import Task, task_of_file, warn_of_default_quantization
from .weights import weights_file


def run_evaluation(cfg: EvalConfig) -> int:
    """Run ``eval.py``; returns the exit code 0.

    Raises:
        DataError, EngineError, ModelError, QuantError: something is not usable as it is.
    """
    distributed.require_one_process("eval.py")
    prefix = exported_prefix(cfg.path)
    is_onnx = cfg.path.endswith(".onnx")
    path = Path(cfg.path)
    if cfg.output is not None:
        make_writable_folder(Path(cfg.output).absolute().parent, "--output")
    is_checkpoint = prefix is None and not is_onnx
    if is_onnx and not path.is_file():
        raise EngineError(f"{path}: no such file")
    if is_checkpoint:
        weights_file(path)
    backend = choose_backend(cfg, is_exported=prefix is not None, is_onnx=is_onnx)
    # The engines of exported files run on the CPU.
    select_device(cfg.use_gpu and is_checkpoint)
    task = task_of_file(cfg, path, needs_network=is_checkpoint)
    dataset = task.dataset("val")
    if is_onnx:
        forward, size = onnx_forward(path, cfg.threads), _size_of(path)
    elif prefix is not None:
        forward, size = file_forward(prefix, backend, cfg.threads), stored_bytes(prefix)
    else:
        net, quanter = load_network(task, path)
        if quanter is not None:
            warn_of_default_quantization(path)
        net.eval()
        forward, size = net, _size_of(path)
    found = evaluate(_checked(forward, task, path), _batches(cfg, dataset), with_loss=False)
    metrics = found.metrics
    values = {
        "path": cfg.path,
        "model": task.model,
        "top1": metrics.top1,
        "top5": metrics.top5,
        "num_images": metrics.num_images,
        "images_per_second": found.images_per_second,
        "size_bytes": size,
        "backend": backend,
    }
    print(
        f"{cfg.path} ({backend}): top1 {metrics.top1:.4f}, top5 {metrics.top5:.4f}, "
        f"{metrics.num_images} images, {found.images_per_second:.1f} images/s, "
        f"{format_bytes(size)}"
    )
    if cfg.output is not None:
        write_json(Path(cfg.output), values)
    return 0


def exported_prefix(path: str) -> Path | None:
    """The path without endings if it names an exported model, else None."""
    if path.endswith(".pdmodel"):
        return Path(path[: -len(".pdmodel")])
    return Path(path) if os.path.isfile(f"{path}.pdmodel") else None


def choose_backend(cfg: EvalConfig, is_exported: bool, is_onnx: bool) -> str:
    """What runs the file: a value of ``--engine``, or ``"eager"`` for a checkpoint's network.

    Raises:
        EngineError: the engine that was asked for cannot run this kind of file.
    """
    if is_onnx:
        kind, allowed = "an ONNX file", {"auto": "onnxruntime", "onnxruntime": "onnxruntime"}
    elif is_exported:
        kind = "an exported Paddle model"
        allowed = {"auto": "paddle", "paddle": "paddle", "onednn": "onednn"}
    else:
        kind, allowed = "a checkpoint", {"auto": "eager", "paddle": "eager"}
    if cfg.engine not in allowed:
        raise EngineError(
            f"--engine is {cfg.engine}, but {cfg.path} is {kind}; allowed is {', '.join(allowed)}"
        )
    return allowed[cfg.engine]


def _size_of(path: Path) -> int:
    """Size in bytes of a file whose ending ``.pdparams`` may have been left out."""
    return os.path.getsize(path if path.is_file() else f"{path}.pdparams")


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
