"""Reads one image file that may come from anywhere.

JPEG, PNG, WebP and BMP. The header is checked before anything is decoded, so that a small file
which claims a giant image costs nothing, and a file that was cut short is refused rather than
filled up with gray as the decoders do. The usual kinds of JPEG go to libjpeg-turbo (``jpeg.py``),
which decodes parts of an image; all else (CMYK, too) goes to OpenCV, whole.
"""

from __future__ import annotations

import struct
from typing import Callable

import cv2
import numpy as np

from . import jpeg
from .errors import DataError
from .jpeg import JpegHeader
from .regular_file import open_regular
from .transforms import MAX_PIXELS, Box

# ImageNet's largest file has 16 MB.
MAX_BYTES = 256 << 20
_JPEG_SIGNATURE = b"\xff\xd8\xff"
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


class ImageFile:
    """An image file whose header was read and found good; nothing is decoded yet.

    Transparency is dropped, CMYK becomes RGB, and an EXIF orientation is ignored: ImageNet's
    labels and the published accuracies come from readers that ignore it.

    Args:
        path: the file.

    Attributes:
        height, width: in pixels.

    Raises:
        DataError: the file cannot be read, is cut short, is no image, or has too many pixels.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        with open_regular(path, MAX_BYTES) as file:
            try:
                self._data = file.read()
            except OSError as error:
                raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error
        self._jpeg: JpegHeader | None = None
        try:
            if self._data.startswith(_JPEG_SIGNATURE):
                self._jpeg = jpeg.read_header(self._data)
                self.width, self.height = self._jpeg.width, self._jpeg.height
            else:
                self.width, self.height = _size_of(self._data)
        except (struct.error, IndexError):
            raise DataError(f"{path}: the image file is cut short") from None
        except DataError as error:
            raise DataError(f"{path}: {error}") from None
        if not 0 < self.width * self.height <= MAX_PIXELS:
            raise DataError(
                f"{path}: the image claims {self.width}x{self.height} pixels, "
                f"allowed: 1 to {MAX_PIXELS}"
            )

    def decode(self, channels: int) -> np.ndarray:
        """Decode the whole image to 8 bits per channel.

        Args:
            channels: 3 or 1.

        Returns:
            uint8 [H, W, 3] in RGB, or [H, W] for one channel.

        Raises:
            DataError: the image is damaged.
        """
        return self._decode(channels, self.height, 1)

    def crop(self, box: Box, channels: int, least: int) -> np.ndarray:
        """Decode the part of the image within a box, and as little else as the format allows.

        Where both sides of the box are at least 2, 4 or 8 times ``least``, a JPEG is decoded at
        1/2, 1/4 or 1/8 of its size (each pixel then is the mean of a square, within rounding), and
        the sides of the box move outwards to the next whole pixel of that.

        Args:
            box: top, left, height, width in pixels of the image.
            channels: 3 or 1.
            least: pixels that the result has to have along either side, if the box has them.

        Returns:
            uint8 [h, w, 3] in RGB, or [h, w] for one channel.

        Raises:
            DataError: the image is damaged.
        """
        top, left, height, width = box
        bottom, right = top + height, left + width
        reduction = 1
        if self._jpeg is not None and self._jpeg.is_common:
            fits = (r for r in jpeg.REDUCTIONS if min(height, width) >= r * least)
            reduction = next(fits, 1)
        pixels = self._decode(channels, bottom, reduction)
        return pixels[
            top // reduction : -(-bottom // reduction), left // reduction : -(-right // reduction)
        ]

    def _decode(self, channels: int, rows: int, reduction: int) -> np.ndarray:
        try:
            if self._jpeg is not None and self._jpeg.is_common:
                return jpeg.decode(self._data, self._jpeg, channels, rows, reduction)
            return _decode_with_opencv(self._data, channels)
        except DataError as error:
            raise DataError(f"{self.path}: {error}") from None


def _decode_with_opencv(data: bytes, channels: int) -> np.ndarray:
    color = cv2.IMREAD_COLOR if channels == 3 else cv2.IMREAD_GRAYSCALE
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), color | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error:
        image = None
    if image is None:
        raise DataError("the image is damaged, OpenCV cannot decode it")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB) if channels == 3 else image


def _size_of(data: bytes) -> tuple[int, int]:
    """Width and height in the header of what is no JPEG; the file is checked to be complete."""
    for signature, size in _FORMATS.items():
        if data.startswith(signature):
            return size(data)
    if not data:
        raise DataError("the file is empty")
    raise DataError(f"not a JPEG, PNG, WebP or BMP image (starts with {data[:4]!r})")


def _png_size(data: bytes) -> tuple[int, int]:
    width, height = struct.unpack_from(">II", data, 16)
    position = len(_PNG_SIGNATURE)
    while data[position + 4 : position + 8] != b"IEND":
        (length,) = struct.unpack_from(">I", data, position)
        position += 12 + length
    return width, height


def _webp_size(data: bytes) -> tuple[int, int]:
    (length,) = struct.unpack_from("<I", data, 4)
    kind = data[8:16]
    if len(data) < 8 + length:
        raise DataError("the WebP file is cut short")
    if kind == b"WEBPVP8X":
        width = int.from_bytes(data[24:27], "little") + 1
        return width, int.from_bytes(data[27:30], "little") + 1
    if kind == b"WEBPVP8L":
        (bits,) = struct.unpack_from("<I", data, 21)
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if kind == b"WEBPVP8 ":
        width, height = struct.unpack_from("<HH", data, 26)
        return width & 0x3FFF, height & 0x3FFF
    raise DataError(f"a RIFF file but no WebP image (holds {kind!r})")


def _bmp_size(data: bytes) -> tuple[int, int]:
    (length,) = struct.unpack_from("<I", data, 2)
    if len(data) < length:
        raise DataError("the BMP file is cut short")
    (header_size,) = struct.unpack_from("<I", data, 14)
    width, height = struct.unpack_from("<HH" if header_size == 12 else "<ii", data, 18)
    # A negative height says that the rows run from top to bottom.
    return abs(width), abs(height)


_FORMATS: dict[bytes, Callable[[bytes], tuple[int, int]]] = {
    _PNG_SIGNATURE: _png_size,
    b"RIFF": _webp_size,
    b"BM": _bmp_size,
}
