"""Exported files as functions from images to logits."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import paddle
from paddle import Tensor

from data import ImageDataset, InputConfig, build_loader
from quant import Predictor, compat
from quant.onnx_predictor import OnnxPredictor
from quant.paddle_format import read_program
from quant.targets import Target

from .crash_guard import working_on
from .errors import EngineError
from .evaluation import Forward


def file_forward(prefix: Path, engine: str, threads: int | None = None) -> Forward:
    """Run PREFIX.pdmodel as it is, through Paddle Inference on the CPU.

    Args:
        prefix: path of the model without its endings.
        engine: ``"paddle"`` or ``"onednn"``.
        threads: CPU threads; None takes as many as Paddle itself uses.

    Raises:
        VerifyError: the file is missing or cannot be loaded.
    """
    working_on(f"{prefix}.pdmodel")
    predictor = Predictor(str(prefix), engine, threads or default_threads())

    def forward(images: Tensor) -> Tensor:
        return paddle.to_tensor(predictor(images.numpy())[0])

    return forward


def onnx_forward(path: Path, engine: str, threads: int | None = None) -> Forward:
    """Run an ONNX file through 'onnxruntime' or 'openvino' on the CPU; else as `file_forward`.

    Raises:
        VerifyError: the file is missing or cannot be loaded.
    """
    working_on(str(path))
    predictor = OnnxPredictor(str(path), engine, threads or default_threads())

    def forward(images: Tensor) -> Tensor:
        return paddle.to_tensor(predictor(images.numpy())[0])

    return forward


def require_engine(target: Target) -> None:
    """See that the file of a target can be held against its network here.

    Raises:
        EngineError: what runs it is not installed.
    """
    engine = target.onnx_engine
    if target.is_for_onnx and importlib.util.find_spec(engine) is None:
        raise EngineError(
            f"--deploy_target={target.name}: the ONNX file is checked with {engine}, which is not "
            f"installed; pip install {engine}"
        )


def input_shape(prefix: Path) -> list[int | None]:
    """The sizes that PREFIX.pdmodel takes, [N, C, H, W] of images; None where it takes any.

    Raises:
        EngineError: it takes other than one input.
    """
    block = read_program(str(prefix)).blocks[0]
    fed = {op.outputs[0].arguments[0] for op in block.ops if op.type == "feed"}
    shapes = [compat.tensor_type(v.type).tensor.dims for v in block.vars if v.name in fed]
    if len(shapes) != 1:
        raise EngineError(f"{prefix}: takes {len(shapes)} inputs; allowed is one, of images")
    return [None if size < 0 else int(size) for size in shapes[0]]


def check_images(path: Path, sizes: Sequence[int | None], config: InputConfig) -> None:
    """See that images of a configuration are what a file takes.

    Args:
        path: the file, to be named.
        sizes: channels, height and width that it takes; None for any.
        config: the images.

    Raises:
        EngineError: they are not; names the flag that would make them so.
    """
    channels, height, width = sizes
    if channels not in (None, config.channels):
        raise EngineError(
            f"{path}: takes images of {channels} channels, not {config.channels}; "
            f"pass --channels {channels}"
        )
    if height is not None and width is not None and height != width:
        raise EngineError(
            f"{path}: takes images of {height}x{width} pixels; allowed are square ones"
        )
    side = height or width
    if side not in (None, config.image_size):
        raise EngineError(
            f"{path}: takes images of {side}x{side} pixels, not "
            f"{config.image_size}x{config.image_size}; pass --image_size {side}"
        )


def default_threads() -> int:
    """CPU threads of this process, as `runtime.prepare_process` or the user has set them."""
    text = os.environ.get("OMP_NUM_THREADS", "1")
    return int(text) if text.isdigit() and int(text) > 0 else 1


def stored_bytes(prefix: Path) -> int:
    """Size of the weights of an exported model, PREFIX.pdiparams."""
    return os.path.getsize(f"{prefix}.pdiparams")


def first_batches(
    dataset: ImageDataset, count: int, batch_size: int, num_workers: int = 0
) -> Iterator[list[Tensor]]:
    """The first ``count`` images of a data set (all, if it has fewer) and their labels, in batches.

    Yields:
        Pairs of images [n, C, H, W] and labels [n, 1], n being ``batch_size`` or what is left.
    """
    count = min(count, len(dataset))
    batch_size = min(batch_size, count)
    loader = build_loader(dataset, batch_size, train=False, num_workers=num_workers)
    for images, labels in islice(loader, -(-count // batch_size)):
        yield [images[:count], labels[:count]]
        count -= int(images.shape[0])
