"""Weights of the Paddle 1.x days: a folder, or the tar of it, with one LoDTensor file per variable.

That is what ``save_vars``, ``save_params`` and ``save_persistables`` write when they are given no
file name; the name of a file is that of the variable.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

import numpy as np

from . import tar
from .errors import EngineError
from .lod_tensor import HEAD, NotATensor, claimed_length, read_tensor
from .printable import shown

_OTHER_WEIGHTS = (".pdparams", ".safetensors")


def folder_files(path: Path) -> list[os.DirEntry[str]]:
    """List the files of a folder, sorted by name, without reading them.

    Raises:
        EngineError: the folder is empty, or holds something that is no file of a tensor.
    """
    try:
        with os.scandir(path) as entries:
            found = sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise EngineError(f"{path}: cannot be read: {error.strerror or error}") from error
    _check_names(path, [entry.name for entry in found], "a folder without any tensor")
    for entry in found:
        # A link could lead to any file, so only what lies in the folder itself is read.
        if not entry.is_file(follow_symlinks=False):
            kind = "a link" if entry.is_symlink() else "no file"
            raise EngineError(
                f"{path}: {shown(entry.name)} in it is {kind}; allowed are files of tensors"
            )
    return found


def read_folder(path: Path) -> dict[str, np.ndarray]:
    """Read every file of a folder as a variable.

    Raises:
        EngineError: as `folder_files`, or one of the files is no tensor.
    """
    try:
        arrays = {}
        for entry in folder_files(path):
            with open(entry.path, "rb") as file:
                size = os.fstat(file.fileno()).st_size
                _check_head(path, entry.name, file.read(min(size, HEAD)), size)
                file.seek(0)
                arrays[entry.name] = _tensor(path, entry.name, file.read())
        return arrays
    except OSError as error:
        raise EngineError(f"{path}: cannot be read: {error.strerror or error}") from error


def read_tar(path: Path) -> dict[str, np.ndarray]:
    """Read every file of a plain tar as a variable; nothing is unpacked.

    Raises:
        EngineError: it is no plain tar, its files lie in several folders or have the same name, or
            one of them is no tensor.
    """
    try:
        with open(path, "rb") as file:
            found = list(tar.members(file))
            names = [PurePosixPath(member.name).name for member in found]
            _check_names(path, names, "a tar without any file")
            _check_folders(path, [member.name for member in found])
            for name, member in zip(names, found):
                head = member._replace(size=min(member.size, HEAD))
                _check_head(path, name, tar.read_member(file, head), member.size)
            return {
                name: _tensor(path, name, tar.read_member(file, member))
                for name, member in zip(names, found)
            }
    except tar.BadTar as error:
        raise EngineError(f"{path}: refused, {error}") from error
    except OSError as error:
        raise EngineError(f"{path}: cannot be read: {error.strerror or error}") from error


def _check_names(path: Path, names: list[str], if_none: str) -> None:
    """Refuse what is clearly something else before a gigabyte of it is read."""
    if not names:
        raise EngineError(f"{path}: {if_none}")
    for name in names:
        if name.endswith(_OTHER_WEIGHTS):
            raise EngineError(f"{path}: {shown(name)} in it holds weights; name that file itself")


def _check_folders(path: Path, names: Iterable[str]) -> None:
    folders: set[str] = set()
    seen: set[str] = set()
    for name in names:
        folders.add(str(PurePosixPath(name).parent))
        if len(folders) > 1:
            first, second = sorted(folders)
            raise EngineError(
                f"{path}: it has files in {shown(first)} and in {shown(second)}; allowed is one "
                "folder with one file per variable"
            )
        if name in seen:
            raise EngineError(f"{path}: it has {shown(name)} twice")
        seen.add(name)


def _check_head(path: Path, name: str, head: bytes, size: int) -> None:
    """Refuse what is no tensor, or one of another size, before its bytes are read.

    A sparse file of gigabytes takes no room on a disk, so its size says nothing of what it holds.
    """
    try:
        claimed = claimed_length(head)
        if claimed != size:
            raise NotATensor(f"it has {size} bytes, and its description says {claimed}")
    except NotATensor as error:
        raise _no_tensor(path, name, error) from error


def _no_tensor(path: Path, name: str, error: NotATensor) -> EngineError:
    return EngineError(f"{path}: {shown(name)} in it is no tensor of Paddle 1.x ({error})")


def _tensor(path: Path, name: str, content: bytes) -> np.ndarray:
    try:
        array, end = read_tensor(content)
        if end != len(content):
            raise NotATensor(f"{len(content) - end} bytes follow after the content")
    except NotATensor as error:
        raise _no_tensor(path, name, error) from error
    return array
