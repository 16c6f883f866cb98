"""CIFAR-10 from the archive of pickles that Paddle downloads."""

from __future__ import annotations

import gzip
import io
import logging
import os
import pickle
import tarfile
import zlib
from pathlib import Path
from typing import IO, Any, Literal, cast

import numpy as np
import paddle
from paddle.vision.datasets import cifar

from .dataset import ArrayDataset
from .errors import DataError
from .input_config import InputConfig

ARCHIVE = "cifar-10-python.tar.gz"

CLASS_NAMES = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)

_MEMBERS = {
    "train": tuple(f"data_batch_{i}" for i in range(1, 6)),
    "val": ("test_batch",),
}
_PADDING = 4
# The original unpacks to 186 MB.
_MAX_UNPACKED_BYTES = 256 << 20
_PIXELS = 3 * 32 * 32


def load_cifar10(
    split: str,
    input_config: InputConfig,
    data_dir: str | None = None,
    seed: int = 0,
    num_classes: int | None = None,
) -> ArrayDataset:
    """Read a split of ``cifar-10-python.tar.gz``.

    Args:
        split: ``train`` or ``val`` (the archive's ``test_batch``).
        input_config: size, channels and normalisation of the images.
        data_dir: the folder that holds the archive. By default Paddle's cache, where it is
            downloaded to if it is not there.
        seed: of the augmentation.
        num_classes: what the data set reports, ten by default; labels must stay below.

    Raises:
        DataError: the archive is not to be had, damaged, or holds anything but images and labels.
    """
    archive = _locate(data_dir)
    batches = [
        _read_batch(content, f"{archive}: {name}")
        for name, content in _read_members(archive, _MEMBERS[split]).items()
    ]
    flat = np.concatenate([images for images, _ in batches])
    images = np.ascontiguousarray(flat.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
    return ArrayDataset(
        images,
        np.concatenate([labels for _, labels in batches]),
        train=split == "train",
        input_config=input_config,
        seed=seed,
        num_classes=len(CLASS_NAMES) if num_classes is None else num_classes,
        class_names=CLASS_NAMES if num_classes in (None, len(CLASS_NAMES)) else None,
        padding=_PADDING,
        source=str(archive),
    )


def _locate(data_dir: str | None) -> Path:
    if data_dir is not None:
        path = Path(data_dir) / ARCHIVE
        if not path.is_file():
            raise DataError(f"{path}: no such file; put CIFAR-10's archive for Python there")
        return path
    path = Path(paddle.dataset.common.DATA_HOME) / "cifar" / ARCHIVE
    if not path.is_file():
        _download(path)
    return path


def _download(path: Path) -> None:
    """Paddle's own download: checks the MD5 sum, and one process per machine does it."""
    logger = logging.getLogger("paddle.utils.download")
    level = logger.level
    # Its log of every failed attempt would hide the one line that says what to do.
    logger.setLevel(logging.ERROR)
    try:
        paddle.utils.download.get_path_from_url(
            cifar.CIFAR10_URL, str(path.parent), cifar.CIFAR10_MD5, decompress=False
        )
    except Exception as error:  # whatever the HTTP library of this Paddle version raises
        raise DataError(
            f"cannot download CIFAR-10 ({error}); put {cifar.CIFAR10_URL} at {path}, "
            "or name its folder with --data_dir"
        ) from error
    finally:
        logger.setLevel(level)


def _read_members(archive: Path, wanted: tuple[str, ...]) -> dict[str, bytes]:
    """The contents of the wanted members, by base name; nothing is written to disk."""
    found: dict[str, bytes] = {}
    try:
        with gzip.open(archive, "rb") as packed:
            bounded = cast(IO[bytes], _BoundedReader(packed, _MAX_UNPACKED_BYTES, archive))
            with tarfile.open(fileobj=bounded, mode="r|") as tar:
                for member in tar:
                    name = os.path.basename(member.name)
                    if name in wanted and member.isreg():
                        found[name] = cast(IO[bytes], tar.extractfile(member)).read()
                    if len(found) == len(wanted):
                        break
    except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
        raise DataError(f"{archive}: damaged archive ({error})") from error
    missing = [name for name in wanted if name not in found]
    if missing:
        raise DataError(f"{archive}: no {missing[0]} in it, not CIFAR-10's archive for Python")
    return {name: found[name] for name in wanted}


class _BoundedReader:
    """Stops a small archive that unpacks without end, whatever part of it grows."""

    def __init__(self, file: gzip.GzipFile, limit: int, source: Path) -> None:
        self._file = file
        self._left = limit
        self._message = f"{source}: unpacks to more than {limit} bytes, not CIFAR-10's archive"

    def read(self, size: int) -> bytes:
        data = self._file.read(size)
        self._left -= len(data)
        if self._left < 0:
            raise DataError(self._message)
        return data


def _read_batch(content: bytes, source: str) -> tuple[np.ndarray, np.ndarray]:
    """Images, uint8 [N, 3072] (three planes of 32x32), and labels, int64 [N]."""
    try:
        batch = _ArrayUnpickler(io.BytesIO(content), encoding="bytes").load()
    except DataError as error:
        raise DataError(f"{source}: {error}") from None
    except Exception as error:  # a damaged pickle can raise nearly anything
        raise DataError(f"{source}: damaged pickle ({error})") from error
    if not isinstance(batch, dict):
        raise DataError(f"{source}: holds a {type(batch).__name__}, expected a dictionary")
    images, labels = batch.get(b"data"), batch.get(b"labels")
    if not isinstance(images, _PickledArray) or images.values.shape[1:] != (_PIXELS,):
        raise DataError(f"{source}: 'data' is not a uint8 array of shape [N, {_PIXELS}]")
    count = len(images.values)
    if (
        not isinstance(labels, list)
        or len(labels) != count
        or not all(type(label) is int and 0 <= label < len(CLASS_NAMES) for label in labels)
    ):
        raise DataError(
            f"{source}: 'labels' is not a list of {count} numbers from 0 to {len(CLASS_NAMES) - 1}"
        )
    return images.values, np.asarray(labels, np.int64)


class _ArrayUnpickler(pickle.Unpickler):
    """Admits arrays of bytes and Python's containers; any other global is refused unseen.

    A pickle can name any function to call, so names are answered from a short table, and with
    stand-ins: not even NumPy's own constructors see what the file says.
    """

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED_GLOBALS:
            raise DataError(f"pickle asks for {module}.{name}, allowed: arrays and containers")
        return _ALLOWED_GLOBALS[module, name]


class _PickledDtype:
    """Stands in for ``numpy.dtype``; only uint8 passes."""

    def __init__(self, code: object, *_: object) -> None:
        if code not in ("u1", b"u1"):
            raise DataError(f"pickle holds an array of type {code!r}, allowed: u1 (uint8)")

    def __setstate__(self, state: object) -> None:
        """Byte order and alignment say nothing about single bytes."""


class _PickledArray:
    """Stands in for a NumPy array while it is unpickled; ``values`` is the array."""

    def __init__(self, *_: object) -> None:
        self.values = np.empty(0, np.uint8)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _version, shape, dtype, fortran_order, content = state
        if not isinstance(dtype, _PickledDtype) or not isinstance(content, bytes):
            raise DataError("pickle holds an array that is not made of bytes")
        order: Literal["F", "C"] = "F" if fortran_order else "C"
        self.values = np.frombuffer(content, np.uint8).reshape(shape, order=order)


def _latin1(text: str, encoding: object) -> bytes:
    """How Python 3 writes bytes into pickles of protocol 2 and below."""
    if encoding not in ("latin1", b"latin1"):
        raise DataError(f"pickle asks for encoding {encoding!r}, allowed: latin1")
    return text.encode("latin1")


_ALLOWED_GLOBALS: dict[tuple[str, str], Any] = {
    # Old and new NumPy name the array constructor differently.
    ("numpy.core.multiarray", "_reconstruct"): _PickledArray,
    ("numpy._core.multiarray", "_reconstruct"): _PickledArray,
    # Only ever an argument of _reconstruct, which looks at none.
    ("numpy", "ndarray"): "ndarray",
    ("numpy", "dtype"): _PickledDtype,
    ("_codecs", "encode"): _latin1,
}
