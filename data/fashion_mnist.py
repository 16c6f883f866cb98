"""Fashion-MNIST (arXiv:1708.07747): 28x28 gray images of clothes in ten classes."""

from __future__ import annotations

from pathlib import Path

from .dataset import ArrayDataset
from .errors import DataError
from .idx import read_idx
from .input_config import InputConfig

SAMPLE_DIR = Path(__file__).resolve().parent / "fashion_mnist_sample"

CLASS_NAMES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)

_PREFIX = {"train": "train", "val": "t10k"}
_PADDING = 2


def load_fashion_mnist(
    split: str,
    input_config: InputConfig,
    data_dir: str | None = None,
    seed: int = 0,
    num_classes: int | None = None,
) -> ArrayDataset:
    """Read the two idx files of a split.

    Args:
        split: ``train`` or ``val`` (the files that start with ``t10k``).
        input_config: size, channels and normalisation of the images.
        data_dir: the folder with the original files, gzipped or not; by default the sample that
            ships with the project.
        seed: of the augmentation.
        num_classes: what the data set reports, ten by default; labels must stay below.

    Raises:
        DataError: a file is missing or damaged, or holds a label that is not allowed.
    """
    folder = Path(data_dir) if data_dir is not None else SAMPLE_DIR
    images_path = _find(folder, f"{_PREFIX[split]}-images-idx3-ubyte")
    images = read_idx(images_path, 3)
    labels = read_idx(_find(folder, f"{_PREFIX[split]}-labels-idx1-ubyte"), 1)
    if images.shape[1:] != (28, 28):
        height, width = images.shape[1:]
        raise DataError(f"{images_path}: images of {width}x{height} pixels, expected 28x28")
    return ArrayDataset(
        images,
        labels,
        train=split == "train",
        input_config=input_config,
        seed=seed,
        num_classes=len(CLASS_NAMES) if num_classes is None else num_classes,
        class_names=CLASS_NAMES if num_classes in (None, len(CLASS_NAMES)) else None,
        padding=_PADDING,
        source=str(images_path),
    )


def _find(folder: Path, name: str) -> Path:
    for path in (folder / f"{name}.gz", folder / name):
        if path.is_file():
            return path
    raise DataError(f"{folder}: neither {name}.gz nor {name} is there")
