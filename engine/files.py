"""Files that are either whole or not there, and a folder that can be written to."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from quant.whole_files import TEMPORARY_NAME, write_whole

from .errors import EngineError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

LOCK_FILE = ".lock"

_lock: IO[bytes] | None = None


def write_atomically(path: Path, write: Callable[[str], object]) -> None:
    """Let ``write`` fill a temporary file, and have it named ``path`` once it is whole.

    If that fails, whatever was at ``path`` before is still there, unchanged.

    Args:
        path: the file to make or replace; its folder exists.
        write: called with the temporary name.

    Raises:
        EngineError: the disk is full, the folder is read-only, and so on.
    """
    try:
        write_whole({str(path): write})
    except OSError as error:
        raise EngineError(f"{path}: cannot be written ({error.strerror or error})") from error


def write_json(path: Path, value: Any) -> None:
    """Write a value as indented JSON, atomically."""
    text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"

    def write(name: str) -> None:
        with open(name, "w", encoding="utf-8") as file:
            file.write(text)

    write_atomically(path, write)


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        EngineError: it is missing, unreadable or no JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise EngineError(f"{path}: cannot be read ({error.strerror or error})") from error
    except ValueError as error:  # of JSON as well as of UTF-8
        raise EngineError(f"{path}: not a JSON file") from error


def copy_file(source: Path, target: Path) -> None:
    """Copy a file, atomically."""
    write_atomically(target, lambda name: shutil.copyfile(source, name))


def remove_files(paths: list[Path]) -> None:
    """Remove files that may or may not be there.

    Raises:
        EngineError: one of them is there and stays.
    """
    for path in paths:
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise EngineError(f"{path}: cannot be removed ({error.strerror or error})") from error


def own_folder(folder: Path, subfolder: str, flag: str) -> None:
    """Keep other runs out of a folder while this process lives, and tidy up after a killed one.

    Two runs in one folder would overwrite each other's checkpoints. The lock is the system's
    (`flock`), so it ends with the process, however that ends; where a file system has none, as some
    network drives, there is no lock.

    Args:
        folder: an existing folder. Temporary files of `write_whole` whose process is gone, in it
            and in ``subfolder``, are removed.
        subfolder: another place for them.
        flag: what to name in the message.

    Raises:
        EngineError: another process has it.
    """
    global _lock
    if fcntl is None:
        return
    try:
        _lock = open(folder / LOCK_FILE, "ab")
        fcntl.flock(_lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise EngineError(
            f"{flag} is {str(folder)!r}, where another run is writing; wait for its end, or "
            "name another folder"
        ) from error
    except OSError:
        return
    for place in (folder, folder / subfolder):
        remove_files([path for path in place.glob(".*.tmp") if _is_left_over(path)])


def _is_left_over(path: Path) -> bool:
    match = TEMPORARY_NAME.fullmatch(path.name)
    if match is None or not path.is_file():
        return False
    try:
        os.kill(int(match.group(1)), 0)
    except (ProcessLookupError, OverflowError):
        return True
    except OSError:
        pass  # it runs, and belongs to somebody else
    return int(match.group(1)) == os.getpid()


def make_writable_folder(folder: Path, flag: str) -> None:
    """Create a folder and see that files can be made in it, before hours are spent on its content.

    Args:
        folder: the folder.
        flag: what to name in the message.

    Raises:
        EngineError: it cannot be created or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise EngineError(
            f"{flag} is {str(folder)!r}, where no file can be written ({error.strerror or error})"
        ) from error
