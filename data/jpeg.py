"""JPEG files: what the header says, and decoding no more rows and pixels than are wanted.

libjpeg-turbo (through ``simplejpeg``) decodes from the top. Two things save it work: a height in
the header that ends below the wanted rows, which changes nothing above, and, where the picture will
be shrunk anyway, an inverse transform at 1/2, 1/4 or 1/8 of the size.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass

import numpy as np
import simplejpeg

from .errors import DataError

REDUCTIONS = (8, 4, 2)
# Encoders write some ten.
MAX_SCANS = 100
# Marker, length and number of components of a scan; what follows the picture may be anything.
_SCAN = re.compile(rb"\xff\xda\x00(?:\x08\x01|\x0a\x02|\x0c\x03|\x0e\x04)")

# Start-of-frame markers: 0xC0 to 0xCF without DHT (C4), JPG (C8) and DAC (CC).
_SOF = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_SEQUENTIAL, _PROGRESSIVE = (0xC0, 0xC1), 0xC2  # with Huffman codes, 8 (or 12) bits
# Markers without a length: stuffing, TEM, RST0 to RST7, SOI.
_BARE = frozenset([0x00, 0x01, *range(0xD0, 0xD9)])


@dataclass(frozen=True)
class JpegHeader:
    """What the frame header says.

    Attributes:
        width, height: in pixels.
        height_at: where in the file the two bytes of the height are.
        block_rows: pixel rows that are coded together (a row of minimum coded units).
        is_common: gray or three channels of 8 bits, Huffman-coded: what ``decode`` takes.
        is_sequential: the rows come one after the other, not in several passes over the picture.
    """

    width: int = 0
    height: int = 0
    height_at: int = 0
    block_rows: int = 8
    is_common: bool = False
    is_sequential: bool = False


def read_header(data: bytes) -> JpegHeader:
    """Find the frame header, and check that the file is complete.

    Raises:
        DataError: there is no image data, or no end-of-image marker after it.
        struct.error, IndexError: the file ends within a segment.
    """
    header = JpegHeader()
    position = 2
    while True:
        # Bytes between segments are skipped, as libjpeg does.
        position = data.find(b"\xff", position)
        if position < 0:
            raise DataError("the JPEG file is cut short (no image data)")
        marker = data[position + 1]
        if marker == 0xFF:
            position += 1
        elif marker in _BARE:
            position += 2
        elif marker == 0xD9:
            raise DataError("the JPEG file ends without image data")
        else:
            (length,) = struct.unpack_from(">H", data, position + 2)
            if marker in _SOF:
                header = _frame_header(data, position, marker)
            position += 2 + length
            if marker == 0xDA:
                break
    # Each scan goes over the whole picture: thousands of them make minutes of a small file.
    scans = 1 + len(_SCAN.findall(data, position))
    if scans > MAX_SCANS:
        raise DataError(f"the JPEG file has {scans} scans, allowed: {MAX_SCANS}")
    # The search stays within the image data: an EXIF thumbnail has an end marker of its own.
    if data.rfind(b"\xff\xd9", position) < 0:
        raise DataError("the JPEG file is cut short (no end-of-image marker)")
    return header


def _frame_header(data: bytes, position: int, marker: int) -> JpegHeader:
    bits, height, width, components = struct.unpack_from(">BHHB", data, position + 4)
    sampling = [data[position + 11 + 3 * i] for i in range(components)]
    vertical = [factors & 15 for factors in sampling]
    if not all(1 <= factor <= 4 for factor in (*vertical, *(f >> 4 for f in sampling))):
        raise DataError("the JPEG file has a sampling factor beyond 1 to 4")
    sequential = marker in _SEQUENTIAL
    return JpegHeader(
        width=width,
        height=height,
        height_at=position + 5,
        block_rows=8 * max(vertical, default=1),
        is_common=bits == 8 and components in (1, 3) and (sequential or marker == _PROGRESSIVE),
        is_sequential=sequential,
    )


def decode(
    data: bytes, header: JpegHeader, channels: int, rows: int | None = None, reduction: int = 1
) -> np.ndarray:
    """Decode the upper part of a JPEG file.

    Args:
        data: the whole file.
        header: of that file; ``is_common``.
        channels: 3 or 1.
        rows: pixel rows that are wanted, all by default. What is below them may be missing from
            the result.
        reduction: 1, 2, 4 or 8, by which width and height are divided, rounding up.

    Returns:
        uint8 [H, W, 3] in RGB, or [H, W] for one channel (the luma that the file stores).

    Raises:
        DataError: the file is damaged.
    """
    height = header.height
    if rows is not None and header.is_sequential:
        # Chroma that is stored at half height is interpolated with the row below, so two rows
        # more, and then to the end of the block, after which nothing is saved.
        needed = -(-(rows + 2) // header.block_rows) * header.block_rows
        if needed < height:
            height = needed
            at = header.height_at
            data = b"".join((data[:at], struct.pack(">H", height), data[at + 2 :]))
    wanted = {}
    if reduction > 1:
        wanted = {
            "min_height": -(-height // reduction),
            "min_width": -(-header.width // reduction),
            "min_factor": reduction,
        }
    try:
        # strict would refuse the rest of the image data, which is left over below a lower height.
        pixels = simplejpeg.decode_jpeg(
            data, "RGB" if channels == 3 else "GRAY", strict=False, **wanted
        )
    except ValueError as error:
        raise DataError(f"the image is damaged, libjpeg-turbo cannot decode it ({error})") from None
    return pixels if channels == 3 else pixels[:, :, 0]
