"""Images and labels: ImageNet-style lists, CIFAR-10 and Fashion-MNIST."""

from __future__ import annotations

from .build import DATASETS, build_dataset
from .dataset import ImageDataset
from .errors import DataError
from .input_config import INTERPOLATIONS, InputConfig
from .loader import BatchLoader, build_loader

__all__ = [
    "DATASETS",
    "INTERPOLATIONS",
    "BatchLoader",
    "DataError",
    "ImageDataset",
    "InputConfig",
    "build_dataset",
    "build_loader",
]
