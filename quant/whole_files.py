"""Files that are either whole or not there, whatever happens while they are written."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path

# What `temporary_name` makes; the group is the number of the process.
TEMPORARY_NAME = re.compile(r"\..+\.(\d+)\.tmp")


def temporary_name(path: str | Path) -> Path:
    """Where a file is written before it gets its name: beside it, hidden, per process."""
    path = Path(path)
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def write_whole(writers: Mapping[str, Callable[[str], object]]) -> None:
    """Write files under temporary names and, once all are on the disk, give them their names.

    If one cannot be written, whatever stood under the names before is still there, unchanged. A
    process that is killed may leave a temporary file, never half a file under a name; nor does a
    machine that loses its power, as the content is on the disk before the name is.

    Args:
        writers: by path, what is called with the temporary name to fill it. Folders exist.

    Raises:
        OSError: the disk is full, the folder is read-only, and so on.
    """
    names = {path: temporary_name(path) for path in writers}
    try:
        for path, write in writers.items():
            write(str(names[path]))
            _flush(names[path])
        for path, name in names.items():
            os.replace(name, path)
        for folder in {name.parent for name in names.values()}:
            with contextlib.suppress(OSError):  # some network drives cannot; the files are there
                _flush(folder)
    finally:
        for name in names.values():
            with contextlib.suppress(OSError):
                name.unlink()


def _flush(path: Path) -> None:
    """Have the content of a file, or the names in a folder, written to the disk."""
    if os.name == "nt" and path.is_dir():  # Windows has no such thing
        return
    descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
