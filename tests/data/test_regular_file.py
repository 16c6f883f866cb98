"""What stands in a data folder under the name of a file and is none."""

from __future__ import annotations

import os

import cv2
import numpy as np
import pytest

from data import DataError, InputConfig
from data.idx import read_idx
from data.image_file import ImageFile
from data.imagenet import load_imagenet, read_image_list
from data.regular_file import open_regular

READERS = {
    "image": lambda path: ImageFile(str(path)),
    "list": read_image_list,
    "idx": lambda path: read_idx(path, 1),
}


@pytest.fixture(params=READERS.values(), ids=READERS.keys())
def read(request):
    return request.param


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no named pipes here")
def test_a_pipe_does_not_make_it_wait(read, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DataError, match="pipe: is a folder, pipe or device; allowed is a file"):
        read(tmp_path / "pipe")


@pytest.mark.skipif(not os.path.exists("/dev/zero"), reason="there is no /dev/zero here")
def test_a_link_to_a_device_that_never_ends(read, tmp_path):
    (tmp_path / "link").symlink_to("/dev/zero")
    with pytest.raises(DataError, match="link: is a folder, pipe or device"):
        read(tmp_path / "link")


def test_a_giant_that_takes_no_place_on_the_disk(read, tmp_path):
    with open(tmp_path / "giant", "wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(DataError, match=r"giant: of 1099511627776 bytes; allowed are \d+"):
        read(tmp_path / "giant")


def test_a_folder_and_a_missing_file_are_named(read, tmp_path):
    with pytest.raises(DataError, match=str(tmp_path)):
        read(tmp_path)
    with pytest.raises(DataError, match=r"none: cannot be read \(No such file"):
        read(tmp_path / "none")


def test_what_is_read_is_the_file(tmp_path):
    (tmp_path / "a").write_bytes(b"content")
    (tmp_path / "link").symlink_to(tmp_path / "a")
    with open_regular(tmp_path / "link", 7) as file:
        assert file.read() == b"content"


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "train_list.txt").write_text("a.png 0\n")
    return folder


def test_images_may_be_links_to_elsewhere(folder, tmp_path):
    """A subset of a data set is often made of links."""
    cv2.imwrite(str(tmp_path / "outside.png"), np.zeros((8, 8, 3), np.uint8))
    (folder / "a.png").symlink_to(tmp_path / "outside.png")
    found = load_imagenet("train", InputConfig(image_size=4), str(folder))
    assert found[0][0].shape == (3, 4, 4)


@pytest.mark.parametrize("target", ["/dev/zero", "/etc", "a.png", "missing"])
def test_links_to_what_is_no_file_are_named(target, folder):
    (folder / "a.png").symlink_to(target)
    with pytest.raises(DataError, match=r"line 1: image 'a.png' is not in"):
        load_imagenet("train", InputConfig(image_size=4), str(folder))


def test_a_text_that_is_linked_in_is_not_shown(folder, tmp_path):
    (tmp_path / "secret").write_text("password: 1234")
    (folder / "a.png").symlink_to(tmp_path / "secret")
    with pytest.raises(DataError) as caught:
        load_imagenet("train", InputConfig(image_size=4), str(folder))[0]
    assert "1234" not in str(caught.value)
