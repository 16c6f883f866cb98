from __future__ import annotations

import io
import random
import tarfile
import time

import pytest

from engine import tar
from engine.tar import BLOCK, BadTar, members, read_member

FORMATS = [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]


def contents(data: bytes) -> dict[str, bytes]:
    file = io.BytesIO(data)
    return {member.name: read_member(file, member) for member in list(members(file))}


def refused(data: bytes) -> str:
    with pytest.raises(BadTar) as caught:
        contents(data)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 400
    return message


def header(name: bytes, kind: bytes = b"0", size: bytes = b"0" * 11 + b"\0") -> bytes:
    """A header of the oldest kind, with a right checksum."""
    block = bytearray(BLOCK)
    block[: len(name)] = name
    block[124:136] = size
    block[156:157] = kind
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


END = bytes(2 * BLOCK)


@pytest.fixture
def packed(old_format, tmp_path):
    def pack(files: dict[str, bytes], format: int = tarfile.USTAR_FORMAT) -> bytes:
        return old_format.tar_of(tmp_path / "a.tar", files, format).read_bytes()

    return pack


FILES = {"top/a": b"A", "top/empty": b"", "top/b": b"B" * 511, "c": b"C" * 512, "d": b"D" * 513}


@pytest.mark.parametrize("format", FORMATS)
def test_files_of_each_format(packed, format):
    assert contents(packed(FILES, format)) == FILES


@pytest.mark.parametrize("format", FORMATS)
def test_long_and_foreign_names(packed, format):
    files = {f"{'n' * 90}/{'m' * 95}": b"1", "名字": b"2"}
    if format != tarfile.USTAR_FORMAT:
        files["k" * 300] = b"3"
    assert contents(packed(files, format)) == files


@pytest.mark.parametrize("format", FORMATS)
def test_folder_packed_from_disk(tmp_path, format):
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "a").write_bytes(b"A" * 700)
    with tarfile.open(tmp_path / "a.tar", "w", format=format) as archive:
        archive.add(tmp_path / "weights", arcname="./weights")
    assert contents((tmp_path / "a.tar").read_bytes()) == {"weights/a": b"A" * 700}


def test_size_as_a_binary_number():
    data = header(b"a", size=b"\x80" + (5).to_bytes(11, "big")) + b"hello".ljust(BLOCK, b"\0") + END
    assert contents(data) == {"a": b"hello"}


def test_what_follows_the_end_mark_is_ignored(packed):
    assert contents(packed(FILES) + b"garbage") == FILES


@pytest.mark.parametrize("name", ["../a", "/etc/passwd", "top/../../a", "a/..", "//a"])
def test_paths_that_lead_out_are_refused(name):
    assert "leads out of the archive" in refused(header(name.encode()) + END)


@pytest.mark.parametrize("name", ["../a", "/etc/passwd"])
@pytest.mark.parametrize("format", FORMATS)
def test_long_paths_that_lead_out_are_refused_too(packed, format, name):
    long_name = name + "/n" * (60 if format == tarfile.USTAR_FORMAT else 200)
    assert "leads out of the archive" in refused(packed({long_name: b""}, format))


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        (b"1", "a hard link"),
        (b"2", "a symbolic link"),
        (b"3", "a device"),
        (b"4", "a device"),
        (b"6", "a pipe"),
        (b"S", "a sparse file"),
        (b"K", "of the kind b'K'"),
        (b"V", "of the kind b'V'"),
    ],
)
def test_what_is_neither_file_nor_folder_is_refused(kind, told):
    assert f"x is {told}" in refused(header(b"x", kind) + END)


def test_pax_headers_cannot_make_a_sparse_file(packed):
    info = tarfile.TarInfo("a")
    info.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.realsize": str(2**60)}
    data = info.tobuf(tarfile.PAX_FORMAT) + END
    assert "sparse" in refused(data)


def pax(records: bytes, kind: bytes = b"x") -> bytes:
    return header(b"p", kind, b"%011o\0" % len(records)) + records.ljust(BLOCK, b"\0")


@pytest.mark.parametrize(
    ("records", "told"),
    [
        (b"20 path=../../etc/a\n", "leads out"),
        (b"12 path=/ab\n", "leads out"),
        (b"25 size=1000000000000000\n", "cut"),
        (b"11 size=-5\n", "size"),
        (b"11 size=xy\n", "size"),
        (b"99 path=a\n", "not readable"),
        (b"0 path=a\n", "not readable"),
        (b"-9 path=a\n", "not readable"),
        (b"x", "not readable"),
        (b"9" * 400 + b" a=b\n", "not readable"),
        (b"10 abcdef\n", "not readable"),
    ],
)
def test_hostile_pax_records_are_refused(records, told):
    assert told in refused(pax(records) + header(b"a") + END)


LONG = header(b"a", b"L", b"%011o\0" % 2) + b"b\0".ljust(BLOCK, b"\0")


@pytest.mark.parametrize("first", [pax(b"9 path=b\n"), LONG])
@pytest.mark.parametrize("second", [pax(b"9 path=c\n"), LONG])
def test_two_extended_headers_before_one_file_are_refused(first, second):
    told = "two extended headers before one file"
    assert told in refused(first + second + header(b"a") + END)
    common = pax(b"12 comment=\n", b"g")
    assert told in refused(first + common + second + header(b"a") + END)
    assert contents(first + header(b"a") + header(b"d") + END).keys() == {"b", "d"}


def test_time_for_pax_records_is_in_proportion_to_their_number(monkeypatch):
    """400,000 records, more than a header may have here, take less than a second."""
    monkeypatch.setattr(tar, "MAX_EXTENSION", 1 << 22)
    records = b"6 a=b\n" * 400_000
    padded = records.ljust(-(-len(records) // BLOCK) * BLOCK, b"\0")
    data = header(b"x", b"x", b"%011o\0" % len(records)) + padded + header(b"a") + END
    begin = time.process_time()
    assert contents(data) == {"a": b""}
    assert time.process_time() - begin < 4


def test_global_records_cannot_rename(packed):
    assert "for all its members" in refused(pax(b"9 path=b\n", b"g") + header(b"a") + END)
    assert contents(pax(b"12 comment=\n", b"g") + header(b"a") + END) == {"a": b""}


@pytest.mark.parametrize(
    ("size", "told"),
    [
        (b"7" * 11 + b"\0", "claims 8589934591 bytes"),
        (b"\x80" + b"\xff" * 11, "claims"),
        (b"\xff" * 12, "size"),  # -1
        (b"\xff" + b"\0" * 11, "size"),
        (b"-0000000100\0", "size"),
        (b"0x00000010 \0", "size"),
    ],
)
@pytest.mark.parametrize("kind", [b"0", b"5", b"x", b"g", b"L"])
def test_sizes_that_cannot_be_are_refused_without_the_memory_for_them(
    kind, size, told, peak_memory
):
    data = header(b"a", kind, size) + END
    with peak_memory() as peak:
        assert told in refused(data)
    assert peak.size < 100_000


@pytest.mark.parametrize("kind", [b"x", b"g", b"L"])
def test_large_extended_headers_are_refused(kind):
    data = header(b"a", kind, b"%011o\0" % 70_000) + bytes(140 * BLOCK) + END
    assert "extended header of 70000 bytes" in refused(data)


@pytest.mark.parametrize(
    "block",
    [
        header(b"a"),
        header(b"a", b"5"),
        pax(b"9 path=b\n") + header(b"a"),
        pax(b"12 comment=\n", b"g"),
    ],
)
def test_very_many_members_are_refused(block, peak_memory):
    with peak_memory() as peak:
        assert "more than 20000 members" in refused(block * 25_000 + END)
    # The tar itself, twice: joined, and in the file object.
    assert peak.size < 3 * 25_000 * len(block)


def test_every_cut_is_refused(packed):
    # Behind the files come the end mark, of which half is enough, and padding.
    data = packed(FILES)
    end = data.rindex(b"D") // BLOCK * BLOCK + BLOCK
    for length in [*range(0, end, 100), *range(BLOCK, end + 1, BLOCK), end + BLOCK - 1]:
        assert "cut" in refused(data[:length])
    assert contents(data[: end + BLOCK]) == FILES


@pytest.mark.parametrize("data", [b"PK\x03\x04" + bytes(600), b"\x1f\x8b" + bytes(600), b"x" * 600])
def test_files_of_another_kind(data):
    assert "not a plain tar" in refused(data)


def test_checksum_is_held_against_the_header(packed):
    data = bytearray(packed(FILES))
    data[3] ^= 1
    assert "checksum" in refused(bytes(data))


def test_damaged_bytes_never_raise_anything_else(packed):
    data = packed(FILES, tarfile.PAX_FORMAT)
    rng = random.Random(0)
    read = 0
    for _ in range(3000):
        changed = bytearray(data)
        start = rng.randrange(0, len(data), BLOCK)
        for _ in range(rng.choice([1, 1, 2, 5])):
            changed[start + rng.randrange(BLOCK)] = rng.randrange(256)
        # With a right checksum, the change gets past it.
        changed[start + 148 : start + 156] = b" " * 8
        total = sum(changed[start : start + BLOCK])
        changed[start + 148 : start + 156] = b"%06o\0 " % total
        try:
            read += sum(map(len, contents(bytes(changed)).values())) <= len(data)
        except BadTar:
            pass
    assert 0 < read < 3000
