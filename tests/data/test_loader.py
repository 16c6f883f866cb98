from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import paddle
import pytest

from data import DataError, ImageDataset, InputConfig, build_dataset, build_loader

WORKERS = [0, 1, 3]


@pytest.fixture
def dataset(image_folder: Path) -> ImageDataset:
    return build_dataset("imagenet", "train", InputConfig(32), str(image_folder), seed=1)


def arrays(dataset: ImageDataset, **others: Any) -> list[tuple[np.ndarray, np.ndarray]]:
    options = {"batch_size": 5, "train": True, **others}
    return [(x.numpy(), y.numpy()) for x, y in build_loader(dataset, **options)]


def assert_same(first: list, second: list) -> None:
    assert len(first) == len(second)
    for (images, labels), (other_images, other_labels) in zip(first, second):
        np.testing.assert_array_equal(images, other_images)
        np.testing.assert_array_equal(labels, other_labels)


@pytest.mark.parametrize("num_workers", WORKERS)
def test_batches_are_tensors_of_the_documented_shape(
    dataset: ImageDataset, num_workers: int
) -> None:
    loader = build_loader(dataset, 5, train=True, num_workers=num_workers)
    batches = list(loader)
    assert len(loader) == len(batches) == 3
    assert [list(images.shape) for images, _ in batches] == [[n, 3, 32, 32] for n in (5, 5, 2)]
    assert [list(labels.shape) for _, labels in batches] == [[5, 1], [5, 1], [2, 1]]
    assert all(x.dtype == paddle.float32 and y.dtype == paddle.int64 for x, y in batches)


def test_batches_do_not_depend_on_the_number_of_workers(dataset: ImageDataset) -> None:
    alone = arrays(dataset, num_workers=0, epoch=3)
    for num_workers in WORKERS[1:]:
        assert_same(arrays(dataset, num_workers=num_workers, epoch=3), alone)


def test_each_epoch_has_its_own_order_and_augmentation(dataset: ImageDataset) -> None:
    first, second = (arrays(dataset, epoch=e, shuffle=False, num_workers=1) for e in (0, 1))
    for (images, labels), (other_images, other_labels) in zip(first, second):
        assert not np.array_equal(images, other_images)
        np.testing.assert_array_equal(labels, other_labels)
    assert_same(arrays(dataset, epoch=0, shuffle=False, num_workers=0), first)


def test_batches_are_the_items_in_the_order_of_the_list(dataset: ImageDataset) -> None:
    (batch,) = arrays(dataset, batch_size=99, train=False, num_workers=2)
    items = [dataset[i] for i in range(len(dataset))]
    np.testing.assert_array_equal(batch[0], np.stack([image for image, _ in items]))
    assert batch[1][:, 0].tolist() == [label for _, label in items]


def test_starting_later_reads_none_of_the_skipped_images(
    dataset: ImageDataset, image_folder: Path
) -> None:
    whole = arrays(dataset, shuffle=False, num_workers=0)
    for i in range(10):
        (image_folder / f"train/a class/image {i}.jpg").unlink()
    for num_workers in WORKERS:
        rest = arrays(dataset, shuffle=False, start_batch=2, num_workers=num_workers)
        assert_same(rest, whole[2:])


def test_a_start_at_the_end_gives_no_batches(dataset: ImageDataset) -> None:
    loader = build_loader(dataset, 5, train=True, start_batch=3, num_workers=2)
    assert len(loader) == 0 and list(loader) == []


def test_ranks_share_the_images(dataset: ImageDataset) -> None:
    eval_labels = [
        label
        for rank in range(5)
        for _, labels in arrays(dataset, train=False, rank=rank, world_size=5, num_workers=0)
        for label in labels[:, 0]
    ]
    assert sorted(eval_labels) == sorted(i % 3 for i in range(12))
    lengths = {
        tuple(len(y) for _, y in arrays(dataset, batch_size=2, rank=rank, world_size=5))
        for rank in range(5)
    }
    assert lengths == {(2, 1)}


def test_a_rank_without_images_gets_no_batches(dataset: ImageDataset) -> None:
    assert arrays(dataset, train=False, rank=19, world_size=20) == []


@pytest.mark.parametrize("num_workers", WORKERS)
def test_a_bad_image_raises_its_one_line_after_the_batches_before_it(
    num_workers: int,
    dataset: ImageDataset,
    image_folder: Path,
    capfd: pytest.CaptureFixture,
) -> None:
    path = image_folder / "train/a class/image 7.jpg"
    path.write_bytes(path.read_bytes()[:-50])
    loader = build_loader(dataset, 3, train=True, shuffle=False, num_workers=num_workers)
    good = 0
    with pytest.raises(DataError) as caught:
        for _ in loader:
            good += 1
    assert good == 2
    assert str(caught.value).startswith(f"{path}: the JPEG file is cut short")
    assert "\n" not in str(caught.value)
    output = capfd.readouterr()
    assert output.out == "" and output.err == ""


@pytest.mark.parametrize("num_workers", WORKERS)
def test_any_other_error_arrives_as_what_it_is(
    num_workers: int, dataset: ImageDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(type(dataset), "_load", broken)
    with pytest.raises(ZeroDivisionError, match="a bug"):
        arrays(dataset, num_workers=num_workers)


@pytest.mark.parametrize("num_workers", WORKERS)
def test_leaving_an_epoch_early_is_quiet_and_stops_the_readers(
    num_workers: int, dataset: ImageDataset, capfd: pytest.CaptureFixture
) -> None:
    for _ in range(3):
        for _batch in build_loader(dataset, 1, train=True, num_workers=num_workers):
            break
    output = capfd.readouterr()
    assert output.out == "" and output.err == ""
    deadline = time.monotonic() + 5
    while any(thread.name.startswith("image-reader") for thread in threading.enumerate()):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_images_are_read_ahead_by_as_many_threads_as_asked(
    dataset: ImageDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The barrier opens only when three threads are within an image at the same time.
    barrier = threading.Barrier(3, timeout=10)
    load = type(dataset)._load

    def waiting(self: ImageDataset, index: int) -> Any:
        barrier.wait()
        return load(self, index)

    monkeypatch.setattr(type(dataset), "_load", waiting)
    assert len(arrays(dataset, batch_size=1, num_workers=3)) == 12


def test_no_process_is_forked(dataset: ImageDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    # A child that is forked while some thread holds a lock of Paddle or OpenCV hangs for ever.
    def refused() -> int:
        raise AssertionError("forked")

    monkeypatch.setattr(os, "fork", refused)
    assert len(arrays(dataset, num_workers=3)) == 3


def test_loaders_of_two_epochs_can_be_used_side_by_side(dataset: ImageDataset) -> None:
    expected = [arrays(dataset, epoch=e, num_workers=0) for e in (0, 1)]
    loaders = [build_loader(dataset, 5, train=True, epoch=e, num_workers=2) for e in (0, 1)]
    mixed = [[(x.numpy(), y.numpy()) for x, y in pair] for pair in zip(*loaders)]
    for e in (0, 1):
        assert_same([pair[e] for pair in mixed], expected[e])
    assert dataset.epoch == 0


def test_many_epochs_in_a_row_do_not_hang(dataset: ImageDataset) -> None:
    for epoch in range(60):
        loader = build_loader(dataset, 5, train=True, epoch=epoch, num_workers=epoch % 4)
        assert len(list(loader)) == 3


def test_negative_workers_are_refused(dataset: ImageDataset) -> None:
    with pytest.raises(DataError, match="num_workers is -1"):
        build_loader(dataset, 4, train=True, num_workers=-1)
