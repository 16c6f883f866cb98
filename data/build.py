"""From a data set's name to the data set."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Callable

from .cifar10 import load_cifar10
from .dataset import SPLITS, ImageDataset
from .errors import DataError
from .fashion_mnist import load_fashion_mnist
from .imagenet import load_imagenet
from .input_config import InputConfig

_LOADERS: dict[str, Callable[..., ImageDataset]] = {
    "imagenet": load_imagenet,
    "cifar10": load_cifar10,
    "fashion_mnist": load_fashion_mnist,
}
DATASETS = tuple(_LOADERS)


def build_dataset(
    name: str,
    split: str,
    input_config: InputConfig,
    data_dir: str | None = None,
    seed: int = 0,
    num_classes: int | None = None,
) -> ImageDataset:
    """Open one split of a data set.

    Args:
        name: one of ``DATASETS``.
        split: ``train`` (augmented) or ``val``.
        input_config: size, channels and normalisation of the images.
        data_dir: where the data is. By default ``data/ILSVRC2012`` of the project for imagenet,
            Paddle's cache for cifar10, and the sample that ships for fashion_mnist.
        seed: of the augmentation.
        num_classes: refuse labels from this on. By default ten, or what imagenet's lists hold.

    Returns:
        A ``paddle.io.Dataset`` of (float32 [C, H, W], int64 label).

    Raises:
        DataError: the name or split is unknown, or the data is missing or unusable.

    Example:
        >>> config = InputConfig(28, channels=1, mean=(0.5,), std=(0.5,))
        >>> dataset = build_dataset("fashion_mnist", "val", config)
        >>> image, label = dataset[0]
    """
    _check_choice("data", name, DATASETS)
    _check_choice("split", split, SPLITS)
    if seed < 0:
        raise DataError(f"seed is {seed}, allowed: 0 or more")
    if num_classes is not None and num_classes < 1:
        raise DataError(f"num_classes is {num_classes}, allowed: 1 or more")
    return _LOADERS[name](split, input_config, data_dir, seed, num_classes)


def _check_choice(what: str, value: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        close = difflib.get_close_matches(str(value), allowed, n=1)
        hint = f" (did you mean {close[0]!r}?)" if close else ""
        raise DataError(f"{what} is {value!r}, allowed: {', '.join(allowed)}{hint}")
