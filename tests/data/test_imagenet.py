from __future__ import annotations

import os
from pathlib import Path

import cv2
import numpy as np
import pytest

from data import DataError, InputConfig, build_dataset
from data.imagenet import ImageListDataset

CONFIG = InputConfig(32)


def open_split(folder: Path, split: str = "train", **others: object) -> ImageListDataset:
    dataset = build_dataset("imagenet", split, CONFIG, str(folder), **others)  # type: ignore
    assert isinstance(dataset, ImageListDataset)
    return dataset


def message_of(folder: Path, **others: object) -> str:
    with pytest.raises(DataError) as caught:
        open_split(folder, **others)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_items_are_images_and_labels_in_the_order_of_the_list(image_folder: Path) -> None:
    dataset = open_split(image_folder)
    assert len(dataset) == 12
    assert dataset.num_classes == 3 and dataset.class_names is None
    assert [label for _, label in (dataset[i] for i in range(12))] == [i % 3 for i in range(12)]
    image, label = dataset[7]
    assert image.shape == (3, 32, 32) and image.dtype == np.float32
    assert isinstance(label, np.int64)
    assert dataset.path(7) == str(image_folder / "train/a class/image 7.jpg")


def test_evaluation_equals_the_steps_done_by_hand_in_numpy(image_folder: Path) -> None:
    picture = cv2.imread(str(image_folder / "val/a class/image 4.png"))  # 30 high, 44 wide
    resized = cv2.resize(picture, (round(44 * 37 / 30), 37))[2:34, 11:43]
    rgb = resized[:, :, ::-1] / 255.0
    expected = (rgb - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    image, _ = open_split(image_folder, "val")[4]
    np.testing.assert_allclose(image, expected.transpose(2, 0, 1), atol=1e-6)


def test_a_network_of_one_channel_gets_gray_images(image_folder: Path) -> None:
    config = InputConfig(32, channels=1, mean=(0.5,), std=(0.5,))
    for split in ("train", "val"):
        image, _ = build_dataset("imagenet", split, config, str(image_folder))[0]
        assert image.shape == (1, 32, 32)


def test_augmentation_depends_on_seed_epoch_and_index_only(image_folder: Path) -> None:
    first, again = open_split(image_folder, seed=3), open_split(image_folder, seed=3)
    reference = first[5][0]
    for i in (8, 0, 11):
        again[i]
    np.testing.assert_array_equal(again[5][0], reference)
    again.set_epoch(1)
    assert not np.array_equal(again[5][0], reference)
    again.set_epoch(0)
    np.testing.assert_array_equal(again[5][0], reference)
    assert not np.array_equal(open_split(image_folder, seed=4)[5][0], reference)


def test_two_entries_of_one_file_are_augmented_differently(image_folder: Path) -> None:
    (image_folder / "train_list.txt").write_text("train/a class/image 3.jpg 0\n" * 2)
    dataset = open_split(image_folder)
    assert not np.array_equal(dataset[0][0], dataset[1][0])


def test_evaluation_is_not_augmented(image_folder: Path) -> None:
    dataset = open_split(image_folder, "val")
    before = dataset[2][0]
    dataset.set_epoch(9)
    np.testing.assert_array_equal(dataset[2][0], before)


def test_an_index_outside_the_data_set_is_an_index_error(image_folder: Path) -> None:
    dataset = open_split(image_folder)
    for index in (-1, 12):
        with pytest.raises(IndexError):
            dataset[index]


def test_classes_are_counted_over_both_lists(image_folder: Path) -> None:
    (image_folder / "val_list.txt").write_text("val/a class/image 0.png 9\n")
    assert open_split(image_folder, "train").num_classes == 10
    assert open_split(image_folder, "val").num_classes == 10
    (image_folder / "train_list.txt").unlink()
    (image_folder / "val_list.txt").write_text("val/a class/image 0.png 4\n")
    assert open_split(image_folder, "val").num_classes == 5


def test_a_given_number_of_classes_is_kept(image_folder: Path) -> None:
    assert open_split(image_folder, num_classes=1000).num_classes == 1000


def test_blank_lines_tabs_windows_line_ends_and_a_byte_order_mark_are_fine(
    image_folder: Path,
) -> None:
    (image_folder / "train_list.txt").write_bytes(
        b"\xef\xbb\xbftrain/a class/image 0.jpg\t2\r\n\r\n   \ntrain/a class/image 1.jpg   1  \r\n"
    )
    dataset = open_split(image_folder)
    assert dataset.labels.tolist() == [2, 1]
    assert dataset[1][0].shape == (3, 32, 32)


def test_names_in_any_script_or_encoding_work(image_folder: Path) -> None:
    content = (image_folder / "train/a class/image 0.jpg").read_bytes()
    names = ["тест.jpg".encode(), "图.jpg".encode(), b"caf\xe9.jpg"]
    for name in names:
        with open(os.path.join(os.fsencode(image_folder), b"train", name), "wb") as file:
            file.write(content)
    (image_folder / "train_list.txt").write_bytes(
        b"".join(b"train/" + name + b" 0\n" for name in names)
    )
    dataset = open_split(image_folder)
    assert all(dataset[i][0].shape == (3, 32, 32) for i in range(3))


def test_a_missing_folder_says_what_it_must_hold(tmp_path: Path) -> None:
    message = message_of(tmp_path / "nowhere")
    assert str(tmp_path / "nowhere") in message
    assert "train_list.txt" in message and "--data_dir" in message


def test_a_missing_list_is_named(image_folder: Path) -> None:
    (image_folder / "train_list.txt").unlink()
    assert message_of(image_folder).startswith(f"{image_folder / 'train_list.txt'}: cannot be read")


@pytest.mark.parametrize("content", ["", "\n  \n"])
def test_an_empty_list_is_refused(content: str, image_folder: Path) -> None:
    (image_folder / "train_list.txt").write_text(content)
    assert "train_list.txt: the list is empty" in message_of(image_folder)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("train/a.jpg", ["'train/a.jpg' has no label"]),
        ("7", ["'7' has no label"]),
        ("train/a class/image 0.jpg", ["label '0.jpg' is not an integer"]),
        ("train/a.jpg 1.5", ["label '1.5' is not an integer"]),
        ("train/a.jpg 1_0", ["label '1_0' is not an integer"]),
        ("train/a.jpg -", ["label '-' is not an integer"]),
        ("train/a.jpg -1", ["label -1 is out of range", "0 to 999999"]),
        ("train/a.jpg 12345678901234567890123", ["out of range"]),
        ("/etc/passwd 0", ["'/etc/passwd' leaves the data folder"]),
        ("train/../../secret.jpg 0", ["'train/../../secret.jpg' leaves the data folder"]),
        ("train/a class/gone.jpg 0", ["image 'train/a class/gone.jpg' is not in"]),
        ("train/a class 0", ["image 'train/a class' is not in"]),
        ("no such folder/a.jpg 0", ["image 'no such folder/a.jpg' is not in"]),
        ("train/\0.jpg 0", ["is not in"]),
        ("train\0/a.jpg 0", ["is not in"]),
    ],
)
def test_a_bad_line_is_named_by_file_and_number(line: str, words: list, image_folder: Path) -> None:
    path = image_folder / "train_list.txt"
    path.write_text(f"train/a class/image 0.jpg 0\n\n{line}\ntrain/a class/image 1.jpg 0\n")
    message = message_of(image_folder)
    assert message.startswith(f"{path}, line 3: ")
    assert all(word in message for word in words), message


def test_a_label_beyond_the_given_number_of_classes_is_refused(image_folder: Path) -> None:
    message = message_of(image_folder, num_classes=2)
    assert "line 3: label 2 is out of range, allowed: 0 to 1" in message


def test_missing_images_are_counted(image_folder: Path) -> None:
    for i in (4, 6, 7):
        (image_folder / f"train/a class/image {i}.jpg").unlink()
    message = message_of(image_folder)
    assert "line 5: image 'train/a class/image 4.jpg' is not in" in message
    assert message.endswith("(and 2 more of the list)")


def test_a_bad_line_of_the_other_list_is_found_too(image_folder: Path) -> None:
    (image_folder / "val_list.txt").write_text("val/a class/image 0.png many\n")
    assert "val_list.txt, line 1: label 'many'" in message_of(image_folder)


def test_directories_are_listed_once_and_files_not_touched(
    image_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = []
    scandir = os.scandir

    def counting(path: str) -> object:
        listed.append(path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", counting)
    open_split(image_folder)
    assert listed == [str(image_folder / "train/a class")]


def test_an_elongated_image_is_named(image_folder: Path) -> None:
    cv2.imwrite(str(image_folder / "val/long.png"), np.zeros((1, 200_000), np.uint8))
    (image_folder / "val_list.txt").write_text("val/long.png 0\n")
    dataset = open_split(image_folder, "val")
    with pytest.raises(DataError, match=r"val/long\.png: 200000x1 pixels"):
        dataset[0]
