from __future__ import annotations

import os

# Paddle 2.6 brings a zlib of its own; imported after it, Python's zlib binds to that and crashes.
import zlib  # noqa: F401

# Read when paddle is first imported. One thread makes sums come out in the same order each time,
# and the networks here are too small to gain from more.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import contextlib
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

from data.fashion_mnist import SAMPLE_DIR
from data.idx import read_idx
from quant.cpu import has_int8_products


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leaves out what compares with engines that compute something else on this processor."""
    if has_int8_products():
        return
    skip = pytest.mark.skip(reason="without int8 dot products engines compute something else")
    for item in items:
        if item.get_closest_marker("int8_products") is not None:
            item.add_marker(skip)


@pytest.fixture(scope="session")
def imagenet_folder(tmp_path_factory) -> Path:
    """A folder of ImageNet's shape: 24 and 12 images of four classes, of the sample."""
    folder = tmp_path_factory.mktemp("imagenet") / "ILSVRC2012"
    for split, prefix, count in (("train", "train", 24), ("val", "t10k", 12)):
        images = read_idx(next(SAMPLE_DIR.glob(f"{prefix}-images-idx3-ubyte*")), 3)
        labels = read_idx(next(SAMPLE_DIR.glob(f"{prefix}-labels-idx1-ubyte*")), 1)
        lines = []
        for label in range(4):
            (folder / split / f"class{label}").mkdir(parents=True)
            for index in np.flatnonzero(labels == label)[: count // 4]:
                name = f"{split}/class{label}/{index}.JPEG"
                image = cv2.cvtColor(cv2.resize(images[index], (60, 48)), cv2.COLOR_GRAY2BGR)
                assert cv2.imwrite(str(folder / name), image)
                lines.append(f"{name} {label}")
        (folder / f"{split}_list.txt").write_text("\n".join(lines) + "\n")
    return folder


class Peak:
    """The most bytes that Python and NumPy held at once within a block."""

    size = 0


@pytest.fixture
def peak_memory():
    """Measures a block: ``with peak_memory() as peak: ...``, then ``peak.size`` in bytes."""

    @contextlib.contextmanager
    def measure() -> Iterator[Peak]:
        peak = Peak()
        tracemalloc.start()
        try:
            yield peak
            peak.size = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    return measure
