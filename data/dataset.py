"""What all data sets have in common, and the one that holds its images in memory."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import paddle

from .errors import DataError
from .input_config import InputConfig
from .normalize import Normalizer, with_channels
from .transforms import random_shift_and_flip, resize_square

SPLITS = ("train", "val")

# First word of each seed, so that the streams of augmentation and shuffling never coincide.
AUGMENT_STREAM, SHUFFLE_STREAM = 1, 2


class ImageDataset(paddle.io.Dataset):
    """Labelled images, ready for a network.

    ``dataset[i]`` is a float32 array [C, H, W] and an int64 label. The training split is
    augmented, and the augmentation depends on nothing but seed, epoch and index: not on the
    number of workers, nor on what was read before.

    Attributes:
        input_config: size, channels and normalisation of the images.
        normalizer: that normalisation.
        train: whether the images are augmented.
        num_classes: labels run from 0 to this, exclusive.
        class_names: one name per class, or None where the data has none.
    """

    def __init__(
        self,
        train: bool,
        input_config: InputConfig,
        seed: int,
        num_classes: int,
        class_names: Sequence[str] | None = None,
    ) -> None:
        super().__init__()
        self.train = train
        self.input_config = input_config
        self.normalizer = Normalizer(input_config)
        self.seed = seed
        self.epoch = 0
        self.num_classes = num_classes
        self.class_names = tuple(class_names) if class_names is not None else None

    def set_epoch(self, epoch: int) -> None:
        """Select the epoch (from 0) whose augmentation the next items get."""
        self.epoch = epoch

    def item_rng(self, index: int) -> np.random.Generator:
        """The generator of one item's augmentation in the current epoch."""
        return np.random.default_rng((AUGMENT_STREAM, self.seed, self.epoch, index))

    def __len__(self) -> int:
        raise NotImplementedError

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.int64]:
        pixels, label = self.pixels(index)
        return self.normalizer.array(pixels[None])[0], label

    def pixels(self, index: int) -> tuple[np.ndarray, np.int64]:
        """An image before it is normalised, uint8 [H, W, C], and its label."""
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} of a data set of {len(self)} images")
        image, label = self._load(index)
        return with_channels(image, self.input_config.channels), label

    def _load(self, index: int) -> tuple[np.ndarray, np.int64]:
        """One image of the final size, uint8 [H, W] or [H, W, 3], and its label."""
        raise NotImplementedError


class ArrayDataset(ImageDataset):
    """Small square images that are held in memory.

    Args:
        images: uint8 [N, H, W] (gray) or [N, H, W, 3] (RGB).
        labels: integers [N].
        padding: pixels by which training images are shifted at most.
        source: the file or folder the data came from, for messages.
    """

    def __init__(
        self,
        images: np.ndarray,
        labels: np.ndarray,
        *,
        train: bool,
        input_config: InputConfig,
        seed: int,
        num_classes: int,
        class_names: Sequence[str] | None,
        padding: int,
        source: str,
    ) -> None:
        if len(images) != len(labels):
            raise DataError(f"{source}: {len(images)} images but {len(labels)} labels")
        if len(images) == 0:
            raise DataError(f"{source}: no images")
        if labels.min() < 0 or labels.max() >= num_classes:
            bad = int(np.flatnonzero((labels < 0) | (labels >= num_classes))[0])
            raise DataError(
                f"{source}: label {int(labels[bad])} of image {bad}, "
                f"allowed: 0 to {num_classes - 1}"
            )
        super().__init__(train, input_config, seed, num_classes, class_names)
        self.images = images
        self.labels = labels.astype(np.int64)
        self.padding = padding

    def __len__(self) -> int:
        return len(self.labels)

    def _load(self, index: int) -> tuple[np.ndarray, np.int64]:
        image = self.images[index]
        if self.train:
            rng = self.item_rng(index)
            image = random_shift_and_flip(image, self.padding, self.input_config, rng)
        else:
            image = resize_square(image, self.input_config)
        return image, self.labels[index]
