from __future__ import annotations

import random
import struct

import numpy as np
import pytest

from engine.lod_tensor import NotATensor, read_tensor

FLOAT32 = 5


@pytest.fixture
def refused():
    def check(data: bytes) -> str:
        with pytest.raises(NotATensor) as caught:
            read_tensor(data)
        message = str(caught.value)
        assert "\n" not in message and len(message) < 400
        return message

    return check


@pytest.mark.parametrize(
    "dtype",
    ["bool", "int16", "int32", "int64", "float16", "float32", "float64", "uint8", "int8"],
)
@pytest.mark.parametrize("shape", [(), (1,), (7,), (2, 3, 4, 5)])
def test_bytes_packed_by_hand(old_format, dtype, shape):
    array = np.random.default_rng(0).integers(0, 100, shape).astype(dtype)
    data = old_format.tensor(np.asarray(array))
    read, end = read_tensor(data)
    assert end == len(data)
    assert (read.dtype, read.shape) == (array.dtype, array.shape)
    np.testing.assert_array_equal(read, array)


def test_bytes_written_out():
    data = bytes.fromhex(
        "00000000"  # version
        "0000000000000000"  # no LoD levels
        "00000000"  # version of the tensor
        "06000000"  # length of the description
        "0805 1001 1002"  # float32, 1 x 2
        "0000803f 000000c0"  # 1.0, -2.0
    )
    read, end = read_tensor(data)
    assert read.tolist() == [[1.0, -2.0]] and end == len(data)


def test_bfloat16_comes_as_its_bits(old_format):
    data = old_format.stream(old_format.description(22, [2]), b"\x80\x3f\x00\xc0")
    read, _ = read_tensor(data)
    assert read.dtype == np.uint16 and read.tolist() == [0x3F80, 0xC000]


def test_lod_levels_are_skipped(old_format):
    content = np.arange(6, dtype=np.float32)
    levels = (struct.pack("<3Q", 0, 1, 3), struct.pack("<4Q", 0, 2, 4, 6))
    data = old_format.stream(old_format.description(FLOAT32, [6]), content.tobytes(), levels)
    read, end = read_tensor(data)
    np.testing.assert_array_equal(read, content)
    assert end == len(data)


def test_packed_dims_are_read_too(old_format):
    packed = old_format.varint(300) + old_format.varint(2)
    description = b"\x08\x05\x12" + bytes([len(packed)]) + packed
    data = old_format.stream(description, np.zeros(600, np.float32).tobytes())
    assert read_tensor(data)[0].shape == (300, 2)


def test_tensors_that_follow_each_other(old_format):
    first, second = np.arange(3, dtype=np.int64), np.ones((2, 2), np.float32)
    data = old_format.tensor(first) + old_format.tensor(second)
    read, end = read_tensor(data)
    np.testing.assert_array_equal(read, first)
    read, end = read_tensor(data, end)
    np.testing.assert_array_equal(read, second)
    assert end == len(data)


def test_every_cut_is_refused(old_format, refused):
    data = old_format.tensor(np.ones((2, 3), np.float32))
    for length in range(len(data)):
        assert "cut" in refused(data[:length])


def with_dims(old_format, dims: list[int], content: bytes = b"\0" * 64) -> bytes:
    return old_format.stream(old_format.description(FLOAT32, dims), content)


def test_absurd_claims_are_refused_without_the_memory_for_them(old_format, refused, peak_memory):
    head = struct.pack("<I", 0)
    empty = struct.pack("<IQI", 0, 0, 0)
    packed = b"\x08\x05\x12" + old_format.varint(2**60)
    claims = {
        "2**60 LoD levels": head + struct.pack("<Q", 2**60) + bytes(64),
        "a LoD level of 2**60 bytes": head + struct.pack("<QQ", 1, 2**60) + bytes(64),
        "a description of 2**31 - 1 bytes": empty + struct.pack("<i", 2**31 - 1) + bytes(64),
        "a description of -1 bytes": empty + struct.pack("<i", -1) + bytes(64),
        "2**60 bytes of packed dims": old_format.stream(packed, bytes(64)),
        "2**62 values": with_dims(old_format, [2**62]),
        "dims whose product is 0 in 64 bits": with_dims(old_format, [2**32, 2**32]),
        "dims whose product is 16 in 64 bits": with_dims(old_format, [2**60 + 1, 16]),
        "dims whose product has 180 digits": with_dims(old_format, [2**62] * 10),
    }
    with peak_memory() as peak:
        for claim, data in claims.items():
            assert refused(data), claim
    assert peak.size < 100_000


@pytest.mark.parametrize("dims", [[-1], [4, -4], [0], [2**40, 2**40, 0], [-(2**63)]])
def test_dims_below_one_are_refused(old_format, refused, dims):
    assert "its dims are" in refused(with_dims(old_format, dims))


def test_other_flaws_are_named(old_format, refused):
    good = old_format.description(FLOAT32, [1])
    value = bytes(4)
    cases = {
        "version of the stream is 7": struct.pack("<I", 7) + bytes(60),
        "version of the tensor is 9": struct.pack("<IQI", 0, 0, 9) + bytes(60),
        "unknown tag": old_format.stream(good + b"\x1a\x00", value),
        "more than ten bytes": old_format.stream(b"\x08" + b"\xff" * 11, value),
        "data type is 7": old_format.stream(old_format.description(7, [1]), value),
        "data type is None": old_format.stream(b"\x10\x01", value),
        "33 dimensions": with_dims(old_format, [1] * 33),
    }
    for told, data in cases.items():
        assert told in refused(data)


def test_damaged_bytes_never_raise_anything_else(old_format):
    data = old_format.tensor(np.ones((2, 3), np.float32))
    rng = random.Random(0)
    read = 0
    for _ in range(3000):
        changed = bytearray(data)
        for _ in range(rng.choice([1, 1, 2, 5])):
            changed[rng.randrange(len(changed))] = rng.randrange(256)
        try:
            read += read_tensor(bytes(changed))[0].nbytes <= len(data)
        except NotATensor:
            pass
    assert 0 < read < 3000
