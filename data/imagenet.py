"""ImageNet and every data set of its shape: a list file that names images and labels."""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np

from .dataset import ImageDataset
from .errors import DataError
from .image_file import ImageFile
from .input_config import InputConfig
from .regular_file import open_regular
from .transforms import random_resized_crop, resize_and_center_crop

DEFAULT_DIR = Path(__file__).resolve().parent / "ILSVRC2012"

# A typo in a label must not become a last layer that fills the memory.
_MAX_CLASSES = 1_000_000
# That of all 14 million images of ImageNet-22K has 0.5 GB.
_MAX_LIST_BYTES = 2 << 30


class ImageListDataset(ImageDataset):
    """Images that are named by a list and decoded one by one.

    Args:
        folder: what the paths are relative to.
        paths: one relative path per image.
        labels: int64 [N].
    """

    def __init__(
        self,
        folder: Path,
        paths: list[str],
        labels: np.ndarray,
        *,
        train: bool,
        input_config: InputConfig,
        seed: int,
        num_classes: int,
    ) -> None:
        super().__init__(train, input_config, seed, num_classes)
        self.folder = folder
        self.labels = labels
        # One block of bytes instead of a million strings: a forked worker would copy every page
        # of those as soon as it touches their reference counts.
        encoded = [os.fsencode(path) for path in paths]
        self._blob = b"".join(encoded)
        self._ends = np.cumsum([len(path) for path in encoded], dtype=np.int64)

    def __len__(self) -> int:
        return len(self.labels)

    def path(self, index: int) -> str:
        """The file of an image."""
        start = int(self._ends[index - 1]) if index > 0 else 0
        return os.path.join(self.folder, os.fsdecode(self._blob[start : int(self._ends[index])]))

    def _load(self, index: int) -> tuple[np.ndarray, np.int64]:
        path = self.path(index)
        config = self.input_config
        image = ImageFile(path)
        if self.train:
            return random_resized_crop(image, config, self.item_rng(index)), self.labels[index]
        pixels = image.decode(config.channels)
        try:
            return resize_and_center_crop(pixels, config), self.labels[index]
        except DataError as error:
            raise DataError(f"{path}: {error}") from None


def load_imagenet(
    split: str,
    input_config: InputConfig,
    data_dir: str | None = None,
    seed: int = 0,
    num_classes: int | None = None,
) -> ImageListDataset:
    """Read ``train_list.txt`` or ``val_list.txt`` of a folder and check that its images exist.

    Args:
        split: ``train`` or ``val``.
        input_config: size, channels and normalisation of the images.
        data_dir: the folder, by default ``data/ILSVRC2012`` of the project. A list line is
            ``relative/path label``; the path may contain spaces.
        seed: of the augmentation.
        num_classes: labels must stay below; by default one more than the largest label of both
            lists (of the one that is there, if only one is).

    Raises:
        DataError: a list or an image is missing, or a line is not of that form.
    """
    folder = Path(data_dir) if data_dir is not None else DEFAULT_DIR
    if not folder.is_dir():
        raise DataError(
            f"{folder}: no such folder; it must hold train_list.txt, val_list.txt and the images "
            "that they name (--data_dir names another place)"
        )
    list_path = folder / f"{split}_list.txt"
    paths, labels, lines = read_image_list(list_path, num_classes)
    _check_images(folder, list_path, paths, lines)
    if num_classes is None:
        num_classes = int(labels.max()) + 1
        other = folder / f"{'val' if split == 'train' else 'train'}_list.txt"
        if other.is_file():
            num_classes = max(num_classes, int(read_image_list(other)[1].max()) + 1)
    return ImageListDataset(
        folder,
        paths,
        labels,
        train=split == "train",
        input_config=input_config,
        seed=seed,
        num_classes=num_classes,
    )


def read_image_list(
    list_path: Path, num_classes: int | None = None
) -> tuple[list[str], np.ndarray, list[int]]:
    """Parse a list file.

    Returns:
        Relative paths, labels (int64 [N]), and the line number (from 1) of each.

    Raises:
        DataError: the file is missing or empty, or a line is not ``relative/path label``.
    """
    limit = _MAX_CLASSES if num_classes is None else num_classes
    paths: list[str] = []
    labels: list[int] = []
    lines: list[int] = []
    try:
        # File names are bytes to the system; those that are not UTF-8 survive this way.
        with io.TextIOWrapper(
            open_regular(list_path, _MAX_LIST_BYTES),
            encoding="utf-8-sig",
            errors="surrogateescape",
            newline="\n",
        ) as file:
            for number, line in enumerate(file, start=1):
                if not line.strip():
                    continue
                try:
                    path, label = _parse_line(line, limit)
                except DataError as error:
                    raise DataError(f"{list_path}, line {number}: {error}") from None
                paths.append(path)
                labels.append(label)
                lines.append(number)
    except OSError as error:
        raise DataError(f"{list_path}: cannot be read ({error.strerror or error})") from error
    if not paths:
        raise DataError(f"{list_path}: the list is empty, expected lines 'relative/path label'")
    return paths, np.asarray(labels, np.int64), lines


def _parse_line(line: str, limit: int) -> tuple[str, int]:
    fields = line.rstrip().rsplit(None, 1)
    if len(fields) != 2:
        raise DataError(f"{fields[0]!r} has no label, expected 'relative/path label'")
    path, text = fields
    digits = text[1:] if text.startswith("-") else text
    # int() alone would also take "1_000" and digits of other scripts.
    if not (digits.isascii() and digits.isdigit()):
        raise DataError(f"label {text!r} is not an integer")
    if len(digits) > 18 or not 0 <= int(text) < limit:
        raise DataError(f"label {text} is out of range, allowed: 0 to {limit - 1}")
    if os.path.isabs(path) or ".." in path.split("/"):
        raise DataError(f"path {path!r} leaves the data folder, expected a relative path")
    return path, int(text)


def _check_images(folder: Path, list_path: Path, paths: list[str], lines: list[int]) -> None:
    """Raise for images that are not there.

    Every directory is listed once: a status call per file would take minutes on a network drive.
    """
    files: dict[str, frozenset[str]] = {}
    missing: list[int] = []
    for position, path in enumerate(paths):
        directory, name = os.path.split(path)
        if directory not in files:
            files[directory] = _files_in(os.path.join(folder, directory))
        if name not in files[directory]:
            missing.append(position)
    if missing:
        more = f" (and {len(missing) - 1} more of the list)" if len(missing) > 1 else ""
        raise DataError(
            f"{list_path}, line {lines[missing[0]]}: image {paths[missing[0]]!r} "
            f"is not in {folder}{more}"
        )


def _files_in(directory: str) -> frozenset[str]:
    try:
        with os.scandir(directory) as entries:
            return frozenset(entry.name for entry in entries if entry.is_file())
    except (OSError, ValueError):  # ValueError: a null byte in the name
        return frozenset()
