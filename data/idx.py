"""The idx format of MNIST and its relatives, plain or gzipped.

Big-endian: two zero bytes, a type code (0x08 is uint8), the number of dimensions, one uint32 per
dimension, then the values.
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np

from .errors import DataError
from .regular_file import open_regular

_UINT8 = 0x08
# Far above any data set of this family, far below what would fill a machine's memory.
_MAX_VALUES = 1 << 30
_MAX_FILE_BYTES = _MAX_VALUES + 1024


def read_idx(path: Path, dimensions: int) -> np.ndarray:
    """Read one file of unsigned bytes.

    Args:
        path: the file; a name that ends in ``.gz`` is decompressed.
        dimensions: the number of dimensions that the file must have.

    Returns:
        uint8 array of the shape that the header states.

    Raises:
        DataError: the file is missing, cut short, too long, or not of this format.
    """
    try:
        with open_regular(path, _MAX_FILE_BYTES) as stored, _content(path, stored) as file:
            shape = _read_header(file.read(4 + 4 * dimensions), dimensions, path)
            count = math.prod(shape)
            if count > _MAX_VALUES:
                raise DataError(f"{path}: header states {shape} values, allowed: {_MAX_VALUES}")
            # One byte more than stated tells a file that is too long, without reading all of it.
            values = file.read(count + 1)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path}: damaged gzip file ({error})") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error
    if len(values) != count:
        found = "more" if len(values) > count else f"only {len(values)}"
        raise DataError(f"{path}: header states {count} values, the file holds {found}")
    return np.frombuffer(values, np.uint8).reshape(shape)


def _content(path: Path, file: BinaryIO) -> BinaryIO:
    return cast(BinaryIO, gzip.open(file, "rb")) if path.suffix == ".gz" else file


def _read_header(header: bytes, dimensions: int, path: Path) -> tuple[int, ...]:
    if len(header) < 4 + 4 * dimensions:
        raise DataError(f"{path}: ends within its header, not an idx file")
    magic = struct.unpack(">I", header[:4])[0]
    expected = _UINT8 << 8 | dimensions
    if magic != expected:
        raise DataError(
            f"{path}: magic number 0x{magic:08x}, expected 0x{expected:08x} "
            f"(idx file of unsigned bytes with {dimensions} dimension(s))"
        )
    return struct.unpack(f">{dimensions}I", header[4:])
