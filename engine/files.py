"""Files that are either whole or not there, and a folder that can be written to."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .errors import EngineError


def write_atomically(path: Path, write: Callable[[str], object]) -> None:
    """Let ``write`` fill a temporary file beside ``path``, then rename it to ``path``.

    If that fails, whatever was at ``path`` before is still there, unchanged.

    Args:
        path: the file to make or replace; its folder exists.
        write: called with the temporary name.

    Raises:
        EngineError: the disk is full, the folder is read-only, and so on.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(str(temporary))
        os.replace(temporary, path)
    except OSError as error:
        raise EngineError(f"{path}: cannot be written ({error.strerror or error})") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


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
