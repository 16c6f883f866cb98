"""Exported files as functions from images to logits."""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import paddle
from paddle import Tensor

from data import ImageDataset, build_loader
from quant import Predictor

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
    predictor = Predictor(str(prefix), engine, threads or default_threads())

    def forward(images: Tensor) -> Tensor:
        return paddle.to_tensor(predictor(images.numpy())[0])

    return forward


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
