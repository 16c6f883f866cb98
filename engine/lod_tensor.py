"""The LoDTensor stream: how Paddle 1.x, and ``paddle.static.save_vars`` today, store one tensor.

All numbers are little-endian::

    uint32   version of the stream: 0
    uint64   number of LoD levels; for each: uint64 length in bytes, and that many bytes
    uint32   version of the tensor: 0
    int32    length in bytes of the description
             protobuf message TensorDesc: 1 = data type (enum), 2 = dims (repeated int64)
             the values, row by row

LoD levels say where sequences begin in a batch of them; a weight has none, and they are skipped. No
length is believed before it was held against the bytes that are there.
"""

from __future__ import annotations

import math
import struct

import numpy as np

# VarType.Type of Paddle's framework.proto; bfloat16 (22) comes as its bits.
DTYPES = {
    0: "?",
    1: "<i2",
    2: "<i4",
    3: "<i8",
    4: "<f2",
    5: "<f4",
    6: "<f8",
    20: "u1",
    21: "i1",
    22: "<u2",
}
MAX_LEVELS = 16
MAX_DIMENSIONS = 32
# 32 dimensions of ten bytes and a tag each, and the type.
MAX_DESCRIPTION = 512
# More than the head of a weight takes, which has no LoD levels.
HEAD = 1024


class NotATensor(ValueError):
    """These bytes are no LoDTensor stream, or one that was cut; the message says where."""


class _Reader:
    """A position in bytes that never moves beyond their end."""

    def __init__(self, data: bytes, position: int = 0) -> None:
        self.data = data
        self.position = position

    @property
    def left(self) -> int:
        return len(self.data) - self.position

    def skip(self, count: int, what: str) -> int:
        """Move on by ``count`` bytes and return where they begin."""
        if count > self.left:
            raise NotATensor(f"cut: {what} needs {count} bytes, {self.left} are left")
        start = self.position
        self.position += count
        return start

    def number(self, layout: str, what: str) -> int:
        start = self.skip(struct.calcsize(layout), what)
        return int(struct.unpack_from(layout, self.data, start)[0])

    def varint(self) -> int:
        """One protobuf integer of up to 64 bits, as unsigned."""
        value = 0
        for shift in range(0, 70, 7):
            byte = self.data[self.skip(1, "the description")]
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
        raise NotATensor("its description has a number of more than ten bytes")


def read_tensor(data: bytes, start: int = 0) -> tuple[np.ndarray, int]:
    """Read one tensor; several can follow each other in the same bytes.

    Args:
        data: the content of a file.
        start: where in it the tensor begins.

    Returns:
        A read-only array that shares the memory of ``data`` (bfloat16 as uint16), and where the
        tensor ends.

    Raises:
        NotATensor: the bytes are something else, or too few.
    """
    dtype, shape, begin = _read_head(_Reader(data, start))
    reader = _Reader(data, begin)
    count = math.prod(shape)
    if count * dtype.itemsize > reader.left:
        raise NotATensor(f"cut: {reader.left} bytes are left for {dtype} of the dims {shape[:8]}")
    reader.skip(count * dtype.itemsize, "the content")
    array = np.frombuffer(data, dtype, count, begin).reshape(shape)
    return array, reader.position


def claimed_length(head: bytes) -> int:
    """The length in bytes that a stream says it has, from its first `HEAD` bytes.

    Held against the size of a file, this tells before the file is read whether it is one tensor.

    Raises:
        NotATensor: the bytes are something else.
    """
    dtype, shape, begin = _read_head(_Reader(head))
    return begin + math.prod(shape) * dtype.itemsize


def _read_head(reader: _Reader) -> tuple[np.dtype, list[int], int]:
    """Data type, dims, and where the values begin."""
    _require_version(reader, "the stream")
    levels = reader.number("<Q", "the number of LoD levels")
    if levels > MAX_LEVELS:
        raise NotATensor(f"it claims {levels} LoD levels; allowed are {MAX_LEVELS}")
    for _ in range(levels):
        reader.skip(reader.number("<Q", "the length of a LoD level"), "a LoD level")
    _require_version(reader, "the tensor")
    length = reader.number("<i", "the length of the description")
    if not 0 <= length <= MAX_DESCRIPTION:
        raise NotATensor(
            f"its description is of {length} bytes; allowed are 0 to {MAX_DESCRIPTION}"
        )
    begin = reader.skip(length, "the description")
    dtype, shape = _read_description(reader.data[begin : begin + length])
    return dtype, shape, reader.position


def _require_version(reader: _Reader, of_what: str) -> None:
    version = reader.number("<I", f"the version of {of_what}")
    if version != 0:
        raise NotATensor(f"the version of {of_what} is {version}; allowed is 0")


def _read_description(message: bytes) -> tuple[np.dtype, list[int]]:
    """Read TensorDesc, the only message here, so that no protobuf library is needed."""
    reader = _Reader(message)
    code: int | None = None
    shape: list[int] = []
    while reader.left:
        tag = reader.varint()
        if tag == 0x08:  # field 1, a number
            code = reader.varint()
        elif tag == 0x10:  # field 2, a number
            shape.append(_signed(reader.varint()))
        elif tag == 0x12:  # field 2, packed: a length and then numbers
            length = reader.varint()
            end = reader.skip(length, "the packed dims") + length
            packed = _Reader(message[:end], end - length)
            while packed.left:
                shape.append(_signed(packed.varint()))
        else:
            raise NotATensor(f"its description has the unknown tag {tag}")
    if code not in DTYPES:
        raise NotATensor(f"its data type is {code}; allowed are {', '.join(map(str, DTYPES))}")
    if len(shape) > MAX_DIMENSIONS:
        raise NotATensor(f"it has {len(shape)} dimensions; allowed are {MAX_DIMENSIONS}")
    if any(size < 1 for size in shape):
        raise NotATensor(f"its dims are {shape[:8]}; allowed are 1 and more")
    return np.dtype(DTYPES[code]), shape


def _signed(value: int) -> int:
    """Protobuf writes a negative int64 as its two's complement."""
    value &= 2**64 - 1
    return value - 2**64 if value >= 2**63 else value
