"""The files of a plain tar, read where they lie.

Nothing is unpacked and no path is followed: a member is a name and a range of bytes. Python's own
``tarfile`` is made for archives that one trusts; it walks backwards for a negative size and keeps
all that an extended header claims. Here a header is 512 bytes, and whatever is no file, no folder
or lies beyond the end is refused.

Formats: ustar, GNU (long names) and pax (``path`` and ``size``), which is what tar programs write
for ordinary files.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

from .printable import shown

BLOCK = 512
MAX_MEMBERS = 20_000
# A long name, or the records of a pax header.
MAX_EXTENSION = 65_536

_FILES = (b"0", b"\0", b"7")
_FOLDER = b"5"
_LONG_NAME = b"L"
_PAX, _PAX_GLOBAL = b"x", b"g"
_REFUSED = {
    b"1": "a hard link",
    b"2": "a symbolic link",
    b"3": "a device",
    b"4": "a device",
    b"6": "a pipe",
    b"S": "a sparse file",
}


class BadTar(ValueError):
    """The bytes are no plain tar of files and folders; the message says what is wrong."""


class Member(NamedTuple):
    """A file in a tar."""

    name: str
    """Its path, relative, without ``.`` and ``..``."""
    start: int
    """Where its content begins, in bytes from the start of the tar."""
    size: int
    """Length of its content in bytes."""


def members(file: BinaryIO) -> Iterator[Member]:
    """Go through the files of a tar; folders are left out.

    Args:
        file: open for reading, and able to seek.

    Raises:
        BadTar: on the first thing that is not as it has to be.
    """
    end = file.seek(0, os.SEEK_END)
    position, count = 0, 0
    long_name: str | None = None
    size_record: int | None = None
    extended = False  # an extended header came, and its file has yet to come
    while True:
        header = _read(file, position, BLOCK, end, "a header")
        if header == bytes(BLOCK):
            return
        _check_sum(header, position)
        kind = header[156:157]
        size = _number(header[124:136], "size")
        if size_record is not None and kind in _FILES:
            size = size_record
        position += BLOCK
        name = long_name or _name(header)
        if position + size > end:
            raise BadTar(f"cut: {shown(name)} claims {size} bytes, {end - position} are left")
        count += 1
        if count > MAX_MEMBERS:
            raise BadTar(f"it has more than {MAX_MEMBERS} members")
        if kind in (_LONG_NAME, _PAX, _PAX_GLOBAL):
            if size > MAX_EXTENSION:
                raise BadTar(f"it has an extended header of {size} bytes")
            if kind != _PAX_GLOBAL:
                if extended:
                    raise BadTar("it has two extended headers before one file")
                extended = True
            content = _read(file, position, size, end, "an extended header")
            if kind == _LONG_NAME:
                long_name = _text(content.split(b"\0")[0])
            else:
                records = _pax_records(content)
                if kind == _PAX_GLOBAL and ("path" in records or "size" in records):
                    raise BadTar("it sets one path or size for all its members")
                if kind == _PAX:
                    long_name = records.get("path", long_name)
                    size_record = _decimal(records["size"]) if "size" in records else None
        elif kind in _FILES or kind == _FOLDER:
            path = _safe_path(name)
            if kind != _FOLDER:
                yield Member(path, position, size)
            long_name = size_record = None
            extended = False
        else:
            what = _REFUSED.get(kind, f"of the kind {kind!r}")
            raise BadTar(f"{shown(name)} is {what}; allowed are files and folders")
        position += -(-size // BLOCK) * BLOCK


def read_member(file: BinaryIO, member: Member) -> bytes:
    """Return the content of a member that `members` found in the same file.

    Raises:
        BadTar: the file became shorter meanwhile.
    """
    return _read(file, member.start, member.size, member.start + member.size, member.name)


def _read(file: BinaryIO, position: int, size: int, end: int, what: str) -> bytes:
    if position + size > end:
        raise BadTar(f"cut: {what} is missing at byte {position} of {end}")
    file.seek(position)
    data = file.read(size)
    if len(data) != size:
        raise BadTar(f"cut: {shown(what)} ends after {len(data)} of {size} bytes")
    return data


def _check_sum(header: bytes, position: int) -> None:
    """The sum of all bytes of a header, its own field taken as spaces; some tars sum signed."""
    data = header[:148] + b" " * 8 + header[156:]
    unsigned = sum(data)
    signed = unsigned - 256 * sum(byte >= 128 for byte in data)
    if _number(header[148:156], "checksum") not in (unsigned, signed):
        raise BadTar(f"not a plain tar: the checksum of the header at byte {position} is wrong")


def _number(field: bytes, what: str) -> int:
    """Octal digits between spaces and zeros, or, behind a first byte of 128, a binary number."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    digits = field.strip(b" \0")
    if not digits:
        return 0
    if not set(digits) <= set(b"01234567"):
        raise BadTar(f"not a plain tar: the {what} of a header is {shown(_text(digits))}")
    return int(digits, 8)


def _name(header: bytes) -> str:
    name = _text(header[:100].split(b"\0")[0])
    prefix = _text(header[345:500].split(b"\0")[0])
    is_ustar = header[257:263] == b"ustar\0"
    return f"{prefix}/{name}" if is_ustar and prefix else name


def _text(data: bytes) -> str:
    return data.decode("utf-8", "backslashreplace")


def _pax_records(content: bytes) -> dict[str, str]:
    """Records of a length, a space, ``key=value`` and a newline; the length counts all of it."""
    records = {}
    start = 0
    while start < len(content):
        space = content.find(b" ", start, start + 9)
        digits = content[start:space]
        if space < 0 or not digits.isdigit():
            raise BadTar("it has an extended header that is not readable")
        end = start + int(digits)
        key, equals, value = content[space + 1 : end].partition(b"=")
        if end > len(content) or not equals or not value.endswith(b"\n"):
            raise BadTar("it has an extended header that is not readable")
        if key.startswith(b"GNU.sparse"):
            raise BadTar("it has a sparse file; allowed are files and folders")
        records[_text(key)] = _text(value[:-1])
        start = end
    return records


def _decimal(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 20):
        raise BadTar(f"it has a member of the size {shown(text)}")
    return int(text)


def _safe_path(name: str) -> str:
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if name.startswith("/") or ".." in parts or "\0" in name:
        raise BadTar(f"{shown(name)} leads out of the archive")
    return "/".join(parts)
