"""What a network expects of its input images."""

from __future__ import annotations

import difflib
import math
from dataclasses import dataclass

from .errors import DataError
from .resize import ANTIALIASED

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

# The evaluation protocol of ImageNet: short side to 256, then the central 224.
_RESIZE_OVER_CROP = 256 / 224
_MAX_SIDE = 8192

INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "area", "lanczos")


@dataclass(frozen=True)
class InputConfig:
    """Size, channels and normalisation of the images that a network takes.

    Args:
        image_size: side in pixels of the square input.
        resize_size: length in pixels that the short side is resized to in evaluation, before the
            central crop; at least ``image_size``. ``None`` becomes ``image_size * 256 / 224``,
            rounded.
        channels: 3 (RGB) or 1 (gray).
        mean, std: one value per channel, for pixel values scaled to 0..1.
        interpolation: one of ``INTERPOLATIONS``, as OpenCV has them: only ``area`` averages over
            all source pixels when it shrinks an image, the others sample it.
        antialias: shrink with Pillow's filter of that name instead, which averages over all source
            pixels (``bilinear``, ``bicubic`` and ``lanczos`` only).

    Raises:
        DataError: a value is of the wrong type or out of range.
    """

    image_size: int = 224
    resize_size: int | None = None
    channels: int = 3
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    interpolation: str = "bilinear"
    antialias: bool = False

    def __post_init__(self) -> None:
        _check_side("image_size", self.image_size, 1)
        if self.resize_size is None:
            object.__setattr__(self, "resize_size", round(self.image_size * _RESIZE_OVER_CROP))
        else:
            _check_side("resize_size", self.resize_size, self.image_size)
        if isinstance(self.channels, bool) or self.channels not in (1, 3):
            raise DataError(f"channels is {self.channels!r}, allowed: 1 (gray) or 3 (RGB)")
        for name in ("mean", "std"):
            # A list (as YAML and JSON give it) is kept as a tuple, so the object stays hashable.
            object.__setattr__(self, name, _per_channel(name, getattr(self, name), self.channels))
        if min(self.std) <= 0:
            raise DataError(f"std is {self.std}, allowed: values above 0")
        if self.interpolation not in INTERPOLATIONS:
            close = difflib.get_close_matches(str(self.interpolation), INTERPOLATIONS, n=1)
            hint = f" (did you mean {close[0]!r}?)" if close else ""
            raise DataError(
                f"interpolation is {self.interpolation!r}, allowed: "
                f"{', '.join(INTERPOLATIONS)}{hint}"
            )

        if not isinstance(self.antialias, bool):
            raise DataError(f"antialias is {self.antialias!r}, allowed: True or False")
        if self.antialias and self.interpolation not in ANTIALIASED:
            raise DataError(
                f"antialias is True with interpolation {self.interpolation!r}, allowed with it: "
                f"{', '.join(ANTIALIASED)}"
            )

    @property
    def short_side(self) -> int:
        """``resize_size`` as a plain int."""
        if self.resize_size is None:
            raise AssertionError("__post_init__ fills resize_size")
        return self.resize_size


def _check_side(name: str, value: object, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= _MAX_SIDE:
        raise DataError(f"{name} is {value!r}, allowed: an integer from {least} to {_MAX_SIDE}")


def _per_channel(name: str, values: object, channels: int) -> tuple[float, ...]:
    numbers = tuple(values) if isinstance(values, (list, tuple)) else ()
    good = len(numbers) == channels and all(
        isinstance(v, (int, float)) and not isinstance(v, bool) and math.isfinite(v)
        for v in numbers
    )
    if not good:
        raise DataError(
            f"{name} is {values!r}, allowed: {channels} finite number(s), one per channel"
        )
    return tuple(float(v) for v in numbers)
