"""Reads one image file that may come from anywhere.

JPEG, PNG, WebP and BMP. The header is checked before anything is decoded, so that a small file
which claims a giant image costs nothing, and a file that was cut short is refused rather than
filled up with gray as the decoders do.
"""

from __future__ import annotations

import struct
from typing import Callable

import cv2
import numpy as np

from .errors import DataError
from .transforms import MAX_PIXELS

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
# Start-of-frame markers: 0xC0 to 0xCF without DHT (C4), JPG (C8) and DAC (CC).
_JPEG_SOF = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
# Markers without a length: stuffing, TEM, RST0 to RST7, SOI.
_JPEG_BARE = frozenset([0x00, 0x01, *range(0xD0, 0xD9)])


def read_image(path: str, channels: int) -> np.ndarray:
    """Decode one image to 8 bits per channel.

    Transparency is dropped, CMYK becomes RGB, and an EXIF orientation is ignored: ImageNet's
    labels and the published accuracies come from readers that ignore it.

    Args:
        path: the file.
        channels: 3 or 1.

    Returns:
        uint8 [H, W, 3] in OpenCV's order (blue first), or [H, W] for one channel.

    Raises:
        DataError: the file cannot be read, is cut short, is no image, or has too many pixels.
    """
    try:
        with open(path, "rb") as file:
            data = file.read()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error
    try:
        width, height = _size_of(data)
    except (struct.error, IndexError):
        raise DataError(f"{path}: the image file is cut short") from None
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
    if not 0 < width * height <= MAX_PIXELS:
        raise DataError(
            f"{path}: the image claims {width}x{height} pixels, allowed: 1 to {MAX_PIXELS}"
        )
    color = cv2.IMREAD_COLOR if channels == 3 else cv2.IMREAD_GRAYSCALE
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), color | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error:
        image = None
    if image is None:
        raise DataError(f"{path}: the image is damaged, OpenCV cannot decode it")
    return image


def _size_of(data: bytes) -> tuple[int, int]:
    """Width and height that the header states, after a check that the file is complete."""
    for signature, size in _FORMATS.items():
        if data.startswith(signature):
            return size(data)
    if not data:
        raise DataError("the file is empty")
    raise DataError(f"not a JPEG, PNG, WebP or BMP image (starts with {data[:4]!r})")


def _jpeg_size(data: bytes) -> tuple[int, int]:
    width = height = 0
    position = 2
    while True:
        # Bytes between segments are skipped, as libjpeg does.
        position = data.find(b"\xff", position)
        if position < 0:
            raise DataError("the JPEG file is cut short (no image data)")
        marker = data[position + 1]
        if marker == 0xFF:
            position += 1
        elif marker in _JPEG_BARE:
            position += 2
        elif marker == 0xD9:
            raise DataError("the JPEG file ends without image data")
        else:
            (length,) = struct.unpack_from(">H", data, position + 2)
            if marker in _JPEG_SOF:
                height, width = struct.unpack_from(">HH", data, position + 5)
            position += 2 + length
            if marker == 0xDA:
                break
    # The search starts within the image data: an EXIF thumbnail has an end marker of its own.
    if data.find(b"\xff\xd9", position) < 0:
        raise DataError("the JPEG file is cut short (no end-of-image marker)")
    return width, height


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
    b"\xff\xd8\xff": _jpeg_size,
    _PNG_SIGNATURE: _png_size,
    b"RIFF": _webp_size,
    b"BM": _bmp_size,
}
