"""Image folders made at run time from the Fashion-MNIST sample."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from data.fashion_mnist import SAMPLE_DIR
from data.idx import read_idx


@pytest.fixture(scope="session")
def clothes() -> np.ndarray:
    """The 3,000 test images of the sample, uint8 [N, 28, 28]."""
    return read_idx(SAMPLE_DIR / "t10k-images-idx3-ubyte.gz", 3)


@pytest.fixture(scope="session")
def photo(clothes: np.ndarray) -> np.ndarray:
    """A colour picture, 120 high and 160 wide, uint8, of three images in its channels."""
    return cv2.resize(np.dstack(list(clothes[:3])), (160, 120), interpolation=cv2.INTER_CUBIC)


@pytest.fixture
def image_folder(tmp_path: Path, clothes: np.ndarray) -> Path:
    """A folder of ImageNet's shape: 12 training JPEGs, 5 validation PNGs, names with spaces."""
    for split, count, ending in (("train", 12, "jpg"), ("val", 5, "png")):
        (tmp_path / split / "a class").mkdir(parents=True)
        lines = []
        for i in range(count):
            name = f"{split}/a class/image {i}.{ending}"
            picture = cv2.resize(np.dstack(list(clothes[i : i + 3])), (40 + i, 30))
            assert cv2.imwrite(str(tmp_path / name), picture)
            lines.append(f"{name} {i % 3}\n")
        (tmp_path / f"{split}_list.txt").write_text("".join(lines))
    return tmp_path
