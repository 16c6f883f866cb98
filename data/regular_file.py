"""Opens files that are files: no pipe that never ends, no device, no giant."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import BinaryIO

from .errors import DataError


def open_regular(path: str | Path, max_bytes: int) -> BinaryIO:
    """Open a file of a data set for reading.

    Links are followed, as data folders are often made of them; what they end at has to be a
    regular file. A named pipe would wait for ever, and a device such as ``/dev/zero`` never ends.

    Args:
        path: the file.
        max_bytes: its largest size.

    Raises:
        DataError: it is another kind of file, too large, or cannot be read.
    """
    try:
        # Without O_NONBLOCK a pipe waits for someone to write to it.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | _BINARY)
    except (OSError, ValueError) as error:  # ValueError: a null byte in the name
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{path}: cannot be read ({reason})") from error
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode):
        os.close(descriptor)
        raise DataError(f"{path}: is a folder, pipe or device; allowed is a file")
    if found.st_size > max_bytes:
        os.close(descriptor)
        raise DataError(f"{path}: of {found.st_size} bytes; allowed are {max_bytes}")
    return os.fdopen(descriptor, "rb")


_BINARY = getattr(os, "O_BINARY", 0)  # of Windows
