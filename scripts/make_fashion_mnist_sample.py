"""Draw the Fashion-MNIST sample that ships in data/fashion_mnist_sample.

The first 1,400 training and 300 test images of each of the ten classes, in the order of the
original files (which is shuffled already), so the same originals always give the same sample.
Run it from the project root:

    python -m scripts.make_fashion_mnist_sample FOLDER_OF_THE_ORIGINAL_FILES
"""

from __future__ import annotations

import argparse
import gzip
import os
import shutil
import struct
import sys
from pathlib import Path

import numpy as np

from data.errors import DataError
from data.fashion_mnist import SAMPLE_DIR
from data.idx import read_idx

PER_CLASS = {"train": 1400, "t10k": 300}


def first_of_each_class(labels: np.ndarray, count: int) -> np.ndarray:
    """Ascending positions of the first ``count`` images of every class."""
    kept = [np.flatnonzero(labels == label)[:count] for label in np.unique(labels)]
    short = min(len(positions) for positions in kept)
    if short < count:
        raise DataError(f"a class has only {short} images, {count} are needed")
    return np.sort(np.concatenate(kept))


def write_idx_gz(path: Path, values: np.ndarray) -> None:
    """Write uint8 values as a gzipped idx file whose bytes depend on the values alone."""
    header = struct.pack(f">I{values.ndim}I", 0x0800 | values.ndim, *values.shape)
    temporary = path.with_name(path.name + ".tmp")
    with open(temporary, "wb") as raw:
        # No name and no time in the header: the same input gives the same file.
        with gzip.GzipFile("", "wb", 9, raw, mtime=0) as packed:
            packed.write(header + values.tobytes())
    os.replace(temporary, path)


def main() -> int:
    """Write the four files and the licence; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("originals", type=Path, help="folder with the four .gz files and LICENSE")
    parser.add_argument("--output", type=Path, default=SAMPLE_DIR, help="folder to write to")
    args = parser.parse_args()
    try:
        args.output.mkdir(parents=True, exist_ok=True)
        for prefix, count in PER_CLASS.items():
            labels_name = f"{prefix}-labels-idx1-ubyte.gz"
            images_name = f"{prefix}-images-idx3-ubyte.gz"
            labels = read_idx(args.originals / labels_name, 1)
            images = read_idx(args.originals / images_name, 3)
            kept = first_of_each_class(labels, count)
            write_idx_gz(args.output / labels_name, labels[kept])
            write_idx_gz(args.output / images_name, images[kept])
        shutil.copyfile(args.originals / "LICENSE", args.output / "LICENSE")
    except (DataError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
