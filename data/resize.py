"""Resizing 8-bit images, with and without antialiasing.

Shrinking by a factor f, OpenCV's filters look at the same 1, 4, 16 or 64 source pixels around each
target pixel whatever f is, and so skip pixels for f > 2: fine patterns alias. An antialiased filter
is stretched by f and sees them all; that is what Pillow and torchvision do. Published weights were
trained on one kind or the other.

The antialiased filters are Pillow's. ``cykooz.resizer`` (the Rust crate fast_image_resize) has them
in vector instructions, several times as fast, where it has a wheel; it shrinks rows first and
Pillow columns, so that rounding differs by a step, and by more where a cubic or Lanczos filter
overshoots 0 or 255 between the two.
"""

from __future__ import annotations

import logging
from functools import cache
from typing import Any

import cv2
import numpy as np

_OPENCV = {
    "nearest": cv2.INTER_NEAREST,
    "bilinear": cv2.INTER_LINEAR,
    "bicubic": cv2.INTER_CUBIC,
    "area": cv2.INTER_AREA,
    "lanczos": cv2.INTER_LANCZOS4,
}

# Of each antialiased filter the name in cykooz.resizer, and in Pillow's Image.Resampling: triangle,
# cubic with a = -0.5, and sinc over three lobes.
_ANTIALIASED = {
    "bilinear": ("bilinear", "BILINEAR"),
    "bicubic": ("catmull_rom", "BICUBIC"),
    "lanczos": ("lanczos3", "LANCZOS"),
}
ANTIALIASED = tuple(_ANTIALIASED)


def resize(
    image: np.ndarray, height: int, width: int, interpolation: str, antialias: bool
) -> np.ndarray:
    """Resize an image; the very array where it has that size already.

    Args:
        image: uint8 [H, W] or [H, W, 3].
        height: of the result, in pixels.
        width: of the result, in pixels.
        interpolation: one of ``input_config.INTERPOLATIONS``.
        antialias: whether the filter grows with the factor of shrinking, as in Pillow; for an
            ``interpolation`` in ``ANTIALIASED``.

    Returns:
        uint8 [height, width] or [height, width, 3].
    """
    if image.shape[:2] == (height, width):
        return image
    if not antialias:
        return cv2.resize(image, (width, height), interpolation=_OPENCV[interpolation])
    if _fast_resizer() is None:
        return _resize_with_pillow(image, height, width, interpolation)
    return _resize_fast(image, height, width, interpolation)


def _resize_fast(image: np.ndarray, height: int, width: int, interpolation: str) -> np.ndarray:
    module = _fast_resizer()
    kind = module.PixelType.U8 if image.ndim == 2 else module.PixelType.U8x3
    source = module.ImageData(image.shape[1], image.shape[0], kind, image.tobytes())
    target = module.ImageData(width, height, kind)
    # Not shared between threads: it keeps the rows between its two passes.
    module.Resizer().resize(source, target, _fast_options(interpolation))
    shape = (height, width, *image.shape[2:])
    return np.frombuffer(target.get_buffer(), np.uint8).reshape(shape)


def _resize_with_pillow(
    image: np.ndarray, height: int, width: int, interpolation: str
) -> np.ndarray:
    from PIL import Image

    kind = Image.Resampling[_ANTIALIASED[interpolation][1]]
    return np.asarray(Image.fromarray(image).resize((width, height), kind))


@cache
def _fast_options(interpolation: str) -> Any:
    module = _fast_resizer()
    kind = getattr(module.FilterType, _ANTIALIASED[interpolation][0])
    return module.ResizeOptions(resize_alg=module.ResizeAlg.convolution(kind))


@cache
def _fast_resizer() -> Any:
    """The module of cykooz.resizer, or None where it is not installed."""
    try:
        import cykooz_resizer  # from version 4

        return cykooz_resizer
    except ImportError:
        pass
    try:
        import cykooz.resizer

        return cykooz.resizer
    except ImportError:
        logging.getLogger(__name__).warning(
            "cykooz.resizer is not installed: Pillow resizes with antialias, which is slower"
        )
        return None
