"""The geometry of training and evaluation: crop, resize, mirror.

All of it runs on uint8 (crop first, so that only the kept part is decoded and resized);
``normalize.py`` makes the one conversion to float at the end. Randomness comes from the generator
that the caller hands in.
"""

from __future__ import annotations

import math
from typing import Protocol

import cv2
import numpy as np

from .errors import DataError
from .input_config import InputConfig
from .resize import resize

# Decoded or resized images beyond this are refused: 178,956,970 pixels is where Pillow stops too.
MAX_PIXELS = 178_956_970

_CROP_AREA = (0.08, 1.0)
_CROP_ASPECT = (3 / 4, 4 / 3)
_CROP_ATTEMPTS = 10

# Top, left, height and width in pixels.
Box = tuple[int, int, int, int]


class Croppable(Protocol):
    """An image of which a part can be had (`image_file.ImageFile`)."""

    height: int
    width: int

    def crop(self, box: Box, channels: int, least: int) -> np.ndarray:
        """The pixels of a box, at a reduced scale that leaves at least ``least`` along a side."""


def random_crop_box(height: int, width: int, rng: np.random.Generator) -> Box:
    """Draw a crop of 8 to 100 % of the area and an aspect (width / height) from 3/4 to 4/3.

    The area is uniform and the aspect log-uniform (Szegedy et al., arXiv:1409.4842). An image so
    elongated that ten draws do not fit gives its largest central crop within the aspect bounds.

    Returns:
        top, left, height, width of the crop in pixels.
    """
    log_low, log_high = math.log(_CROP_ASPECT[0]), math.log(_CROP_ASPECT[1])
    for _ in range(_CROP_ATTEMPTS):
        area = height * width * rng.uniform(*_CROP_AREA)
        aspect = math.exp(rng.uniform(log_low, log_high))
        crop_width = round(math.sqrt(area * aspect))
        crop_height = round(math.sqrt(area / aspect))
        if 0 < crop_width <= width and 0 < crop_height <= height:
            top = int(rng.integers(height - crop_height + 1))
            left = int(rng.integers(width - crop_width + 1))
            return top, left, crop_height, crop_width
    aspect = min(max(width / height, _CROP_ASPECT[0]), _CROP_ASPECT[1])
    crop_width = max(1, min(width, round(height * aspect)))
    crop_height = max(1, min(height, round(width / aspect)))
    return (height - crop_height) // 2, (width - crop_width) // 2, crop_height, crop_width


def random_resized_crop(
    image: Croppable, config: InputConfig, rng: np.random.Generator
) -> np.ndarray:
    """Crop at random, resize to ``image_size`` square, mirror every other image.

    Args:
        image: gives the pixels of a box.
        config: gives size, channels and the kind of resize.
        rng: is drawn from.

    Returns:
        uint8 [S, S, 3], or [S, S] for one channel.

    Raises:
        DataError: the image is damaged.
    """
    box = random_crop_box(image.height, image.width, rng)
    patch = image.crop(box, config.channels, config.image_size)
    return _random_flip(resize_square(patch, config), rng)


def resize_and_center_crop(image: np.ndarray, config: InputConfig) -> np.ndarray:
    """Resize the short side to ``resize_size`` and keep the central ``image_size`` square.

    The resize comes first here: the grid on which the published accuracies were measured is that
    of the whole image, which a resized crop only hits when the scale divides evenly.

    Raises:
        DataError: the image is so elongated that its resized form would not fit in memory.
    """
    height, width = image.shape[:2]
    short = config.short_side
    scale = short / min(height, width)
    new_height = short if height <= width else round(height * scale)
    new_width = short if width <= height else round(width * scale)
    if new_height * new_width > MAX_PIXELS:
        raise DataError(
            f"{width}x{height} pixels with the short side at {short} would be "
            f"{new_width}x{new_height}, allowed: {MAX_PIXELS} pixels"
        )
    resized = resize(image, new_height, new_width, config.interpolation, config.antialias)
    size = config.image_size
    top, left = (new_height - size) // 2, (new_width - size) // 2
    return resized[top : top + size, left : left + size]


def random_shift_and_flip(
    image: np.ndarray, padding: int, config: InputConfig, rng: np.random.Generator
) -> np.ndarray:
    """The usual augmentation of small images: pad with zeros, crop back at random, mirror.

    Args:
        image: uint8 [H, W] or [H, W, C].
        padding: pixels added on each side.
        config: gives size and the kind of resize.
        rng: is drawn from.
    """
    height, width = image.shape[:2]
    padded = cv2.copyMakeBorder(
        image, padding, padding, padding, padding, cv2.BORDER_CONSTANT, value=0
    )
    top = int(rng.integers(2 * padding + 1))
    left = int(rng.integers(2 * padding + 1))
    shifted = padded[top : top + height, left : left + width]
    return _random_flip(resize_square(shifted, config), rng)


def resize_square(image: np.ndarray, config: InputConfig) -> np.ndarray:
    """Resize a small image as a whole to ``image_size``; as it is when it has that size."""
    size = config.image_size
    return resize(image, size, size, config.interpolation, config.antialias)


def _random_flip(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    # A mirrored view would do, but copying one into a batch takes longer than all else here.
    return cv2.flip(image, 1) if rng.random() < 0.5 else image
