from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest

from data import DataError
from data.idx import read_idx

VALUES = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
CONTENT = bytes([0, 0, 8, 3]) + struct.pack(">3I", 2, 3, 4) + VALUES.tobytes()


def message_of(path: Path, content: bytes, dimensions: int = 3) -> str:
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        read_idx(path, dimensions)
    message = str(caught.value)
    assert message.startswith(f"{path}: ") and "\n" not in message
    return message


def test_plain_and_gzipped_files_read_the_same(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(CONTENT)
    (tmp_path / "a.gz").write_bytes(gzip.compress(CONTENT))
    for name in ("a", "a.gz"):
        values = read_idx(tmp_path / name, 3)
        assert values.dtype == np.uint8
        np.testing.assert_array_equal(values, VALUES)


def test_a_truncated_gzip_file_is_refused(tmp_path: Path) -> None:
    whole = gzip.compress(np.random.default_rng(0).bytes(5000))
    for length in (0, 5, 40, len(whole) - 4):
        assert message_of(tmp_path / "a.gz", whole[:length])
    whole = gzip.compress(CONTENT)
    assert "damaged gzip file" in message_of(tmp_path / "a.gz", whole[: len(whole) - 4])


def test_damage_within_a_gzip_file_is_refused(tmp_path: Path) -> None:
    whole = bytearray(gzip.compress(CONTENT))
    whole[-6] ^= 0xFF  # the checksum
    assert "damaged gzip file" in message_of(tmp_path / "a.gz", bytes(whole))


def test_a_plain_file_that_is_named_gz_is_refused(tmp_path: Path) -> None:
    assert "damaged gzip file" in message_of(tmp_path / "a.gz", CONTENT)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone: cannot be read \(No such file"):
        read_idx(tmp_path / "gone", 3)


def test_the_wrong_magic_number_is_shown_with_the_right_one(tmp_path: Path) -> None:
    message = message_of(tmp_path / "a", b"\x01" + CONTENT[1:])
    assert "0x01000803" in message and "0x00000803" in message


def test_a_file_of_labels_in_place_of_images_is_refused(tmp_path: Path) -> None:
    labels = bytes([0, 0, 8, 1]) + struct.pack(">I", 12) + bytes(12)
    message = message_of(tmp_path / "a", labels)
    assert "0x00000801" in message and "3 dimension" in message


@pytest.mark.parametrize("length", [0, 3, 10, 15])
def test_a_file_that_ends_within_its_header_is_refused(length: int, tmp_path: Path) -> None:
    assert "ends within its header" in message_of(tmp_path / "a", CONTENT[:length])


@pytest.mark.parametrize("counts", [(2**32 - 1,) * 3, (2**30 + 1, 1, 1), (1, 2**20, 2**11)])
def test_absurd_counts_are_refused_without_reading(counts: tuple, tmp_path: Path) -> None:
    content = bytes([0, 0, 8, 3]) + struct.pack(">3I", *counts)
    assert "allowed: 1073741824" in message_of(tmp_path / "a", content)


def test_a_file_with_fewer_or_more_values_than_stated_is_refused(tmp_path: Path) -> None:
    assert "states 24 values, the file holds only 23" in message_of(tmp_path / "a", CONTENT[:-1])
    assert "states 24 values, the file holds more" in message_of(tmp_path / "a", CONTENT + b"\0")
