from __future__ import annotations

import io
import os
import pickle
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import paddle
import pytest

from data import DataError, InputConfig, build_dataset
from data import cifar10 as cifar10_module
from data.cifar10 import ARCHIVE

CONFIG = InputConfig(32, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


def batch(seed: int, count: int = 20) -> dict:
    rng = np.random.default_rng(seed)
    return {
        b"batch_label": b"a batch",
        b"data": rng.integers(0, 256, (count, 3072), np.uint8),
        b"labels": [int(label) for label in rng.integers(0, 10, count)],
        b"filenames": [b"%d.png" % i for i in range(count)],
    }


def python2_pickle(content: dict) -> bytes:
    """As Python 2 wrote the original: its strings are the STRING opcodes, which Python 3 lacks."""

    def text(value: bytes) -> bytes:
        return b"T" + len(value).to_bytes(4, "little") + value

    array = content[b"data"]
    rows, columns = array.shape
    out = b"\x80\x02}("
    out += text(b"batch_label") + text(content[b"batch_label"])
    out += text(b"data")
    out += b"cnumpy.core.multiarray\n_reconstruct\n"
    out += b"cnumpy\nndarray\nK\x00\x85" + text(b"b") + b"\x87R"
    out += b"(K\x01J" + rows.to_bytes(4, "little") + b"J" + columns.to_bytes(4, "little") + b"\x86"
    out += b"cnumpy\ndtype\n" + text(b"u1") + b"K\x00K\x01\x87R"
    out += b"(K\x03" + text(b"|") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    out += b"\x89" + text(array.tobytes()) + b"tb"
    out += text(b"labels") + b"](" + b"".join(b"K" + bytes([n]) for n in content[b"labels"]) + b"e"
    out += text(b"filenames") + b"](" + b"".join(text(n) for n in content[b"filenames"]) + b"e"
    return out + b"u."


def write_archive(folder: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(folder / ARCHIVE, "w:gz") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return folder / ARCHIVE


def original_members() -> dict[str, bytes]:
    names = [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]
    members = {
        f"cifar-10-batches-py/{name}": python2_pickle(batch(i)) for i, name in enumerate(names)
    }
    return {"cifar-10-batches-py/readme.html": b"<html>", **members}


def open_split(folder: Path, split: str = "val", **others: Any) -> Any:
    return build_dataset("cifar10", split, CONFIG, str(folder), **others)


def message_of(folder: Path, split: str = "val") -> str:
    with pytest.raises(DataError) as caught:
        open_split(folder, split)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_originals_format_is_read(tmp_path: Path) -> None:
    write_archive(tmp_path, original_members())
    dataset = open_split(tmp_path)
    expected = batch(5)
    assert len(dataset) == 20 and dataset.num_classes == 10
    assert dataset.class_names[:3] == ("airplane", "automobile", "bird")
    for i in (0, 19):
        image, label = dataset[i]
        planes = expected[b"data"][i].reshape(3, 32, 32)
        np.testing.assert_allclose(image, planes / 255, atol=1e-7)
        assert label == expected[b"labels"][i]


def test_paddles_own_reader_agrees(tmp_path: Path) -> None:
    archive = write_archive(tmp_path, original_members())
    for split, mode in (("train", "train"), ("val", "test")):
        theirs = paddle.vision.datasets.Cifar10(str(archive), mode=mode, download=False)
        ours = open_split(tmp_path, split)
        assert len(ours) == len(theirs)
        for i in (0, len(ours) - 1):
            image, label = theirs[i]
            np.testing.assert_array_equal(ours.images[i], np.asarray(image, np.uint8))
            assert ours.labels[i] == int(label)


@pytest.mark.parametrize("protocol", [2, 4])
def test_archives_that_python_3_wrote_are_read_too(protocol: int, tmp_path: Path) -> None:
    content = pickle.dumps(batch(1), protocol=protocol)
    write_archive(tmp_path, {"cifar-10-batches-py/test_batch": content})
    np.testing.assert_array_equal(
        open_split(tmp_path).images.transpose(0, 3, 1, 2).reshape(-1, 3072), batch(1)[b"data"]
    )


def test_training_images_are_shifted_and_evaluation_can_be_gray(tmp_path: Path) -> None:
    write_archive(tmp_path, original_members())
    dataset = open_split(tmp_path, "train")
    before = dataset[0][0]
    dataset.set_epoch(1)
    assert not np.array_equal(dataset[0][0], before)
    gray = InputConfig(28, channels=1, mean=(0.5,), std=(0.5,))
    image, _ = build_dataset("cifar10", "val", gray, str(tmp_path))[0]
    assert image.shape == (1, 28, 28)


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_pickle_that_calls_anything_is_refused_and_not_run(protocol: int, tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple:
            return os.mkdir, (str(tmp_path / "owned"),)

    content = pickle.dumps({**batch(0), b"extra": Evil()}, protocol=protocol)
    write_archive(tmp_path, {"cifar-10-batches-py/test_batch": content})
    message = message_of(tmp_path)
    assert "test_batch" in message and ".mkdir, allowed: arrays and containers" in message
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize(
    "name", ["builtins eval", "numpy load", "numpy.core.multiarray fromfile", "_codecs decode"]
)
def test_only_the_names_that_the_format_needs_are_admitted(name: str, tmp_path: Path) -> None:
    module, attribute = name.split()
    content = f"c{module}\n{attribute}\n.".encode()
    write_archive(tmp_path, {"cifar-10-batches-py/test_batch": content})
    assert f"{module}.{attribute}" in message_of(tmp_path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({b"data": None}, "'data' is not a uint8 array"),
        ({b"data": np.zeros((20, 3000), np.uint8)}, "'data' is not a uint8 array of shape"),
        ({b"data": np.zeros((20, 3072), np.float32)}, "type 'f4'"),
        ({b"data": np.array([{}], dtype=object)}, "type 'O8'"),
        ({b"labels": [0] * 19}, "'labels' is not a list of 20 numbers"),
        ({b"labels": [10] * 20}, "numbers from 0 to 9"),
        ({b"labels": [True] * 20}, "'labels'"),
        ({b"labels": "0" * 20}, "'labels'"),
    ],
)
def test_anything_but_images_and_labels_is_refused(
    change: dict, words: str, tmp_path: Path
) -> None:
    content = pickle.dumps({**batch(0), **change}, protocol=4)
    write_archive(tmp_path, {"cifar-10-batches-py/test_batch": content})
    assert words in message_of(tmp_path)


def test_an_array_whose_shape_and_content_disagree_is_refused(tmp_path: Path) -> None:
    content = python2_pickle(batch(0))
    claimed = content.replace((20).to_bytes(4, "little"), (10**9).to_bytes(4, "little"), 1)
    assert claimed != content
    write_archive(tmp_path, {"cifar-10-batches-py/test_batch": claimed})
    assert "damaged pickle" in message_of(tmp_path)


@pytest.mark.parametrize("content", [b"", b"hello", b"\x80\x02]q\x00.", b"\x80\x02}("])
def test_damaged_pickles_are_refused(content: bytes, tmp_path: Path) -> None:
    write_archive(tmp_path, {"cifar-10-batches-py/test_batch": content})
    assert "test_batch" in message_of(tmp_path)


def test_nothing_is_unpacked_to_disk_and_paths_do_not_matter(tmp_path: Path) -> None:
    folder = tmp_path / "inner"
    folder.mkdir()
    members = {"../escaped": b"x", "/../../test_batch": python2_pickle(batch(5))}
    write_archive(folder, members)
    assert len(open_split(folder)) == 20
    assert sorted(path.name for path in tmp_path.rglob("*")) == [ARCHIVE, "inner"]


def test_a_link_in_place_of_a_batch_is_not_followed(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / ARCHIVE, "w:gz") as tar:
        link = tarfile.TarInfo("cifar-10-batches-py/test_batch")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    assert "no test_batch in it" in message_of(tmp_path)


def test_an_archive_without_a_batch_is_refused(tmp_path: Path) -> None:
    members = original_members()
    del members["cifar-10-batches-py/data_batch_4"]
    write_archive(tmp_path, members)
    assert "no data_batch_4 in it" in message_of(tmp_path, "train")


def test_an_archive_that_unpacks_without_end_is_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cifar10_module, "_MAX_UNPACKED_BYTES", 1 << 20)
    write_archive(tmp_path, {"bomb": bytes(5 << 20), **original_members()})
    assert "unpacks to more than 1048576 bytes" in message_of(tmp_path)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.99])
def test_a_truncated_archive_is_refused(share: float, tmp_path: Path) -> None:
    archive = write_archive(tmp_path, original_members())
    content = archive.read_bytes()
    archive.write_bytes(content[: int(len(content) * share)])
    assert message_of(tmp_path).startswith(str(archive))


def test_a_missing_archive_says_which_file_to_put_where(tmp_path: Path) -> None:
    assert message_of(tmp_path).startswith(f"{tmp_path / ARCHIVE}: no such file; put")


def test_paddles_cache_is_used_by_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paddle.dataset.common, "DATA_HOME", str(tmp_path))
    (tmp_path / "cifar").mkdir()
    write_archive(tmp_path / "cifar", original_members())
    assert len(build_dataset("cifar10", "train", CONFIG)) == 100


def test_without_a_network_one_line_says_which_file_to_put_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    def offline(*_: object, **__: object) -> None:
        raise OSError("Network is unreachable")

    monkeypatch.setattr(paddle.dataset.common, "DATA_HOME", str(tmp_path))
    monkeypatch.setattr(paddle.utils.download, "_download", offline)
    with pytest.raises(DataError) as caught:
        build_dataset("cifar10", "train", CONFIG)
    message = str(caught.value)
    assert "\n" not in message and "Network is unreachable" in message
    assert str(tmp_path / "cifar" / ARCHIVE) in message and "--data_dir" in message
    assert capfd.readouterr().err == ""
