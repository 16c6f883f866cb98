"""Resizing 8-bit images, with and without antialiasing.

Shrinking by a factor f, OpenCV's filters look at the same 1, 4, 16 or 64 source pixels around each
target pixel whatever f is, and so skip pixels for f > 2: fine patterns alias. An antialiased filter is
stretched by f and sees them all; that is what Pillow and torchvision do (the package used here shrinks
rows first and Pillow columns, so rounding differs, and overshoots of cubic and Lanczos are cut off at
other places: 0.1 to 0.4 of 255 steps on average on white noise). Published weights were
trained on one kind or the other.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import cv2
import numpy as np

from .errors import DataError

_OPENCV = {
    "nearest": cv2.INTER_NEAREST,
    "bilinear": cv2.INTER_LINEAR,
    "bicubic": cv2.INTER_CUBIC,
    "area": cv2.INTER_AREA,
    "lanczos": cv2.INTER_LANCZOS4,
}

# Pillow's filters of these names: triangle, cubic with a = -0.5, and sinc over three lobes.
_ANTIALIASED = {"bilinear": "bilinear", "bicubic": "catmull_rom", "lanczos": "lanczos3"}
ANTIALIASED = tuple(_ANTIALIASED)


def resize(
    image: np.ndarray, height: int, width: int, interpolation: str, antialias: bool
) -> np.ndarray:
    """Resize an image; the very array where it has that size already.

    Args:
        image: uint8 [H, W] or [H, W, 3].
        height, width: of the result, in pixels.
        interpolation: one of ``input_config.INTERPOLATIONS``.
        antialias: whether the filter grows with the factor of shrinking, as in Pillow; for an
            ``interpolation`` in ``ANTIALIASED``.

    Returns:
        uint8 [height, width] or [height, width, 3].

    Raises:
        DataError: antialiasing is asked for, and the package for it is not installed.
    """
    if image.shape[:2] == (height, width):
        return image
    if antialias:
        return _resize_antialiased(image, height, width, interpolation)
    return cv2.resize(image, (width, height), interpolation=_OPENCV[interpolation])


def _resize_antialiased(
    image: np.ndarray, height: int, width: int, interpolation: str
) -> np.ndarray:
    module = _resizer_module()
    kind = module.PixelType.U8 if image.ndim == 2 else module.PixelType.U8x3
    source = module.ImageData(image.shape[1], image.shape[0], kind, image.tobytes())
    target = module.ImageData(width, height, kind)
    # Not shared between threads: it keeps the rows between its two passes.
    module.Resizer().resize(source, target, _options(interpolation))
    shape = (height, width, *image.shape[2:])
    return np.frombuffer(target.get_buffer(), np.uint8).reshape(shape)


@cache
def _options(interpolation: str) -> Any:
    module = _resizer_module()
    kind = getattr(module.FilterType, _ANTIALIASED[interpolation])
    return module.ResizeOptions(resize_alg=module.ResizeAlg.convolution(kind))


@cache
def _resizer_module() -> Any:
    # Only those who ask for antialiasing need it: it has no wheels but for x86-64.
    try:
        import cykooz.resizer
    except ImportError as error:
        raise DataError(
            f"antialias is True, which needs the package cykooz.resizer ({error}); "
            "see requirements.txt, or leave it out"
        ) from error
    return cykooz.resizer
