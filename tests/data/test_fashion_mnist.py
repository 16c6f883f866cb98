from __future__ import annotations

import gzip
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from data import DataError, InputConfig, build_dataset
from data.dataset import ArrayDataset
from data.fashion_mnist import SAMPLE_DIR

GRAY = InputConfig(28, channels=1, mean=(0.0,), std=(1.0,))
ROOT = Path(__file__).resolve().parents[2]


def read_by_hand(name: str, header: int) -> np.ndarray:
    return np.frombuffer(gzip.decompress((SAMPLE_DIR / name).read_bytes())[header:], np.uint8)


def open_split(split: str, config: InputConfig = GRAY, **others: object) -> ArrayDataset:
    dataset = build_dataset("fashion_mnist", split, config, **others)  # type: ignore[arg-type]
    assert isinstance(dataset, ArrayDataset)
    return dataset


def test_the_sample_that_ships_is_balanced_and_within_eight_megabytes() -> None:
    for split, per_class in (("train", 1400), ("val", 300)):
        labels = open_split(split).labels
        assert np.bincount(labels).tolist() == [per_class] * 10
    assert sum(file.stat().st_size for file in SAMPLE_DIR.iterdir()) <= 7_900_000
    assert "MIT" in (SAMPLE_DIR / "LICENSE").read_text()


def test_no_test_image_is_among_the_training_images() -> None:
    train, val = ({image.tobytes() for image in open_split(s).images} for s in ("train", "val"))
    assert not train & val


def test_evaluation_items_are_the_bytes_of_the_file() -> None:
    images = read_by_hand("t10k-images-idx3-ubyte.gz", 16).reshape(-1, 1, 28, 28)
    labels = read_by_hand("t10k-labels-idx1-ubyte.gz", 8)
    dataset = open_split("val")
    assert len(dataset) == len(images) == len(labels)
    for i in (0, 1234, len(images) - 1):
        image, label = dataset[i]
        np.testing.assert_allclose(image, images[i] / 255, atol=1e-7)
        assert label == labels[i] and isinstance(label, np.int64)


def test_classes_are_named() -> None:
    dataset = open_split("val")
    assert dataset.num_classes == 10
    assert dataset.class_names is not None and dataset.class_names[9] == "Ankle boot"
    assert open_split("val", num_classes=20).class_names is None


def test_training_items_change_with_the_epoch_and_evaluation_items_do_not() -> None:
    for split, changes in (("train", True), ("val", False)):
        dataset = open_split(split)
        before = np.stack([dataset[i][0] for i in range(8)])
        dataset.set_epoch(1)
        after = np.stack([dataset[i][0] for i in range(8)])
        assert np.array_equal(before, after) is not changes


@pytest.mark.parametrize("split", ["train", "val"])
def test_size_and_channels_follow_the_network(split: str) -> None:
    image, _ = open_split(split, InputConfig(40))[0]
    assert image.shape == (3, 40, 40)


def test_plain_files_do_as_well_as_gzipped_ones(tmp_path: Path) -> None:
    for path in SAMPLE_DIR.glob("t10k-*.gz"):
        (tmp_path / path.stem).write_bytes(gzip.decompress(path.read_bytes()))
    dataset = open_split("val", data_dir=str(tmp_path))
    np.testing.assert_array_equal(dataset.images, open_split("val").images)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        open_split("train", data_dir=str(tmp_path))
    assert str(tmp_path) in str(caught.value)
    assert "train-images-idx3-ubyte.gz" in str(caught.value)


def test_files_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    shutil.copy(SAMPLE_DIR / "t10k-images-idx3-ubyte.gz", tmp_path)
    shutil.copy(SAMPLE_DIR / "train-labels-idx1-ubyte.gz", tmp_path / "t10k-labels-idx1-ubyte.gz")
    with pytest.raises(DataError, match="3000 images but 14000 labels"):
        open_split("val", data_dir=str(tmp_path))


def test_a_label_that_is_not_allowed_is_refused() -> None:
    with pytest.raises(DataError, match=r"label [5-9] of image \d+, allowed: 0 to 4"):
        open_split("val", num_classes=5)


def test_images_of_another_size_are_refused(tmp_path: Path) -> None:
    content = bytes([0, 0, 8, 3, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 3]) + bytes(6)
    (tmp_path / "t10k-images-idx3-ubyte").write_bytes(content)
    (tmp_path / "t10k-labels-idx1-ubyte").write_bytes(bytes([0, 0, 8, 1, 0, 0, 0, 1, 0]))
    with pytest.raises(DataError, match="3x2 pixels, expected 28x28"):
        open_split("val", data_dir=str(tmp_path))


def test_the_script_draws_the_first_images_of_each_class(tmp_path: Path) -> None:
    # The sample stands in for the originals: it has just as many images as the script takes.
    result = subprocess.run(
        [sys.executable, "-m", "scripts.make_fashion_mnist_sample", str(SAMPLE_DIR)]
        + ["--output", str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    for name in ("train-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"):
        # Not the packed bytes: these depend on the version of zlib.
        drawn = gzip.decompress((tmp_path / name).read_bytes())
        assert drawn == gzip.decompress((SAMPLE_DIR / name).read_bytes())
