from __future__ import annotations

import io
import struct
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from data import DataError
from data.image_file import ImageFile
from data.jpeg import read_header

SUBSAMPLINGS = ["4:4:4", "4:2:2", "4:2:0", "4:4:0"]


def jpeg(pixels: np.ndarray, **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", **options)
    return buffer.getvalue()


def encode(pixels: np.ndarray, subsampling: str) -> bytes:
    if subsampling == "4:4:0":  # which Pillow cannot write
        return simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), 90, "RGB", "440")
    return jpeg(pixels, quality=90, subsampling=subsampling)


def write(path: Path, content: bytes) -> ImageFile:
    path.write_bytes(content)
    return ImageFile(str(path))


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    """Sharp edges in colour, 203 high and 151 wide, so that no block ends with the picture."""
    blocks = np.random.default_rng(0).integers(0, 256, (68, 51, 3), np.uint8)
    return np.kron(blocks, np.ones((3, 3, 1), np.uint8))[:203, :151]


def pillow(content: bytes, mode: str = "RGB") -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(content)).convert(mode))


@pytest.mark.parametrize("subsampling", SUBSAMPLINGS)
def test_a_crop_has_the_very_pixels_of_the_whole(
    subsampling: str, picture: np.ndarray, tmp_path: Path
) -> None:
    content = encode(picture, subsampling)
    image = write(tmp_path / "image.jpg", content)
    whole = image.decode(3)
    assert np.abs(whole.astype(int) - pillow(content)).max() <= 3
    for bottom in range(1, 204):
        np.testing.assert_array_equal(
            image.crop((0, 3, bottom, 140), 3, 224), whole[:bottom, 3:143], err_msg=str(bottom)
        )


@pytest.mark.parametrize("options", [{"progressive": True}, {"restart_marker_rows": 1}, {}])
def test_every_way_of_coding_gives_the_same_crop(
    options: dict, picture: np.ndarray, tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    content = jpeg(picture, **options)
    image = write(tmp_path / "image.jpg", content)
    out = image.crop((20, 30, 50, 60), 3, 224)
    assert np.abs(out.astype(int) - pillow(content)[20:70, 30:90]).max() <= 3
    # libjpeg would complain of the rows that were left undecoded.
    assert capfd.readouterr().err == ""


def test_a_crop_reads_fewer_rows_and_leaves_progressive_files_whole(
    picture: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heights = []
    decode = simplejpeg.decode_jpeg

    def counting(*arguments: object, **options: object) -> np.ndarray:
        pixels = decode(*arguments, **options)
        heights.append(pixels.shape[0])
        return pixels

    monkeypatch.setattr(simplejpeg, "decode_jpeg", counting)
    for progressive in (False, True):
        content = jpeg(picture, progressive=progressive, subsampling="4:2:0")
        write(tmp_path / "image.jpg", content).crop((0, 0, 30, 30), 3, 224)
    assert heights == [32, 203]


def test_one_channel_is_the_luma_of_the_file(picture: np.ndarray, tmp_path: Path) -> None:
    content = jpeg(picture)
    stored = Image.open(io.BytesIO(content))
    stored.draft("L", None)
    out = write(tmp_path / "image.jpg", content).crop((8, 9, 100, 110), 1, 224)
    np.testing.assert_array_equal(out, np.asarray(stored)[8:108, 9:119])


@pytest.mark.parametrize("reduction", [2, 4, 8])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_large_crop_is_decoded_at_reduced_scale(
    reduction: int, channels: int, tmp_path: Path
) -> None:
    # A smooth picture: the mean of a square is what each pixel of a reduced one should be.
    y, x = np.mgrid[0:416, 0:608]
    planes = [127 + 90 * np.sin(x / 70 + i) * np.cos(y / (50 + 9 * i)) for i in range(3)]
    pixels = np.dstack(planes).astype(np.uint8)
    content = jpeg(pixels, quality=98, subsampling="4:2:0")
    image = write(tmp_path / "image.jpg", content)
    top, left, height, width = 16, 24, 320, 400  # multiples of 8
    least = 320 // reduction
    out = image.crop((top, left, height, width), channels, least)
    whole = image.decode(channels)[top : top + height, left : left + width].astype(float)
    shape = (height // reduction, reduction, width // reduction, reduction)
    mean = whole.reshape(*shape, *whole.shape[2:]).mean(axis=(1, 3))
    assert out.shape == mean.shape
    # The inverse transform is not a mean exactly, and rounds.
    assert np.abs(out - mean).max() < 3
    # With one pixel more asked for, the next larger scale is taken.
    larger = image.crop((top, left, height, width), channels, least + 1)
    assert larger.shape[:2] == (2 * height // reduction, 2 * width // reduction)


def test_a_reduced_crop_covers_the_whole_box(tmp_path: Path) -> None:
    image = write(tmp_path / "image.jpg", jpeg(np.zeros((411, 605, 3), np.uint8)))
    out = image.crop((3, 5, 405, 599), 3, 101)  # rows 3 to 408, columns 5 to 604
    assert out.shape == (102, 150, 3)  # fourths: rows 0 to 102, columns 1 to 151


def test_the_header_names_the_rows_that_are_coded_together(picture: np.ndarray) -> None:
    found = {kind: read_header(encode(picture, kind)).block_rows for kind in SUBSAMPLINGS}
    assert found == {"4:4:4": 8, "4:2:2": 8, "4:2:0": 16, "4:4:0": 16}
    header = read_header(encode(picture, "4:2:0"))
    assert (header.width, header.height) == (151, 203)
    assert header.is_common and header.is_sequential
    cmyk = io.BytesIO()
    Image.fromarray(picture).convert("CMYK").save(cmyk, "JPEG")
    assert not read_header(cmyk.getvalue()).is_common


def test_what_cannot_be_decoded_is_refused_in_one_line(picture: np.ndarray, tmp_path: Path) -> None:
    content = bytearray(jpeg(picture))
    table = content.index(b"\xff\xc4")
    content[table + 5 : table + 21] = 16 * b"\xff"  # a code table that cannot be
    image = write(tmp_path / "image.jpg", bytes(content))
    with pytest.raises(DataError, match=r"image\.jpg: the image is damaged, libjpeg") as caught:
        image.decode(3)
    assert "\n" not in str(caught.value)


def test_damaged_image_data_is_decoded_as_far_as_it_goes(
    picture: np.ndarray, tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    content = bytearray(jpeg(picture, quality=90))
    start = content.index(b"\xff\xda") + 14
    middle = (start + len(content)) // 2
    content[middle : middle + 8] = struct.pack(">Q", 0x5555555555555555)
    out = write(tmp_path / "image.jpg", bytes(content)).decode(3)
    whole = pillow(jpeg(picture, quality=90))
    assert np.abs(out[:64].astype(int) - whole[:64]).max() <= 3
    assert out.shape == whole.shape
    assert capfd.readouterr().err == ""


def test_a_picture_of_very_many_scans_is_refused(tmp_path):
    """A small file could make the decoder go over a large picture thousands of times."""
    path = tmp_path / "a.jpg"
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    whole = jpeg(image, progressive=True)
    path.write_bytes(whole)
    ImageFile(str(path)).decode(3)
    last = whole.rindex(b"\xff\xda")
    path.write_bytes(whole[:last] + 200 * whole[last:-2] + whole[-2:])
    with pytest.raises(DataError, match=r"a\.jpg: the JPEG file has 2\d\d scans, allowed: 100"):
        ImageFile(str(path))


def test_what_follows_the_picture_is_nobodys_business(tmp_path):
    """Motion photos are a JPEG with a film behind it."""
    path = tmp_path / "a.jpg"
    film = np.random.default_rng(0).integers(0, 256, 1 << 24, dtype=np.uint8).tobytes()
    path.write_bytes(jpeg(np.zeros((16, 16, 3), np.uint8)) + film)
    assert ImageFile(str(path)).decode(3).shape == (16, 16, 3)


@pytest.mark.parametrize("factors", [0x00, 0x10, 0x01, 0x15, 0xF1])
def test_a_sampling_factor_that_no_picture_has_is_refused(factors, tmp_path):
    path = tmp_path / "a.jpg"
    data = bytearray(jpeg(np.zeros((16, 16, 3), np.uint8)))
    data[data.index(b"\xff\xc0") + 11] = factors
    path.write_bytes(data)
    with pytest.raises(DataError, match="sampling factor"):
        ImageFile(str(path))
