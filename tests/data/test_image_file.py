from __future__ import annotations

import io
from pathlib import Path

import cv2
import numpy as np
import pytest
import simplejpeg
from PIL import Image

from data import DataError
from data.image_file import ImageFile


def encoded(photo: np.ndarray, kind: str) -> bytes:
    return bytes(cv2.imencode(f".{kind}", photo)[1])


def from_pillow(photo: np.ndarray, mode: str, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(photo[:, :, ::-1]).convert(mode).save(buffer, kind, **options)
    return buffer.getvalue()


def write(path: Path, content: bytes) -> str:
    path.write_bytes(content)
    return str(path)


@pytest.mark.parametrize(
    ("mode", "kind", "options"),
    [
        ("RGB", "JPEG", {}),
        ("RGB", "JPEG", {"progressive": True}),
        ("L", "JPEG", {}),
        ("RGB", "PNG", {}),
        ("RGBA", "PNG", {}),
        ("LA", "PNG", {}),
        ("P", "PNG", {}),
        ("RGB", "BMP", {}),
        ("RGB", "WEBP", {}),
        ("RGBA", "WEBP", {}),
        ("RGB", "WEBP", {"lossless": True}),
        ("CMYK", "JPEG", {}),
    ],
)
def test_every_kind_of_file_decodes_to_what_pillow_sees(
    mode: str, kind: str, options: dict, photo: np.ndarray, tmp_path: Path
) -> None:
    path = write(tmp_path / "image", from_pillow(photo, mode, kind, **options))
    expected = np.asarray(Image.open(path).convert("RGB")).astype(int)
    image = ImageFile(path).decode(3)
    assert image.shape == (120, 160, 3) and image.dtype == np.uint8
    # The two libraries may carry different versions of a decoder.
    assert np.abs(image.astype(int) - expected).max() <= 3


def test_16_bit_png_is_reduced_to_8(photo: np.ndarray, tmp_path: Path) -> None:
    path = write(tmp_path / "deep.png", encoded(photo.astype(np.uint16) * 257, "png"))
    np.testing.assert_array_equal(ImageFile(path).decode(3), photo[:, :, ::-1])


def test_one_channel_is_decoded_as_luma(photo: np.ndarray, tmp_path: Path) -> None:
    luma = photo[:, :, ::-1] @ np.array([0.299, 0.587, 0.114])
    gray = ImageFile(write(tmp_path / "image.png", encoded(photo, "png"))).decode(1)
    assert gray.shape == (120, 160)
    assert np.abs(gray - luma).max() < 1.5
    # A JPEG stores luma, so what is decoded is that, without the way through clipped RGB.
    path = write(tmp_path / "image.jpg", encoded(photo, "jpg"))
    stored = Image.open(path)
    stored.draft("L", None)
    np.testing.assert_allclose(ImageFile(path).decode(1), np.asarray(stored), atol=1)


def test_exif_orientation_is_ignored(photo: np.ndarray, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # "rotate by 90 degrees to view"
    turned = write(tmp_path / "turned.jpg", from_pillow(photo, "RGB", "JPEG", exif=exif))
    plain = write(tmp_path / "plain.jpg", from_pillow(photo, "RGB", "JPEG"))
    np.testing.assert_array_equal(ImageFile(turned).decode(3), ImageFile(plain).decode(3))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "WEBP"])
@pytest.mark.parametrize("share", [0.0, 0.001, 0.01, 0.1, 0.5, 0.9, 0.999])
def test_a_file_that_was_cut_short_is_refused(
    kind: str, share: float, photo: np.ndarray, tmp_path: Path
) -> None:
    content = from_pillow(photo, "RGB", kind)
    path = write(tmp_path / "cut", content[: int(len(content) * share)])
    with pytest.raises(DataError) as caught:
        ImageFile(path).decode(3)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_the_end_marker_of_an_exif_thumbnail_does_not_pass_for_the_images_own(
    photo: np.ndarray, tmp_path: Path
) -> None:
    thumbnail = encoded(photo[:16, :16], "jpg")
    application = b"\xff\xe1" + (len(thumbnail) + 2).to_bytes(2, "big") + thumbnail
    whole = encoded(photo, "jpg")
    with_thumbnail = whole[:2] + application + whole[2:]
    path = write(tmp_path / "image.jpg", with_thumbnail)
    assert ImageFile(path).decode(3).shape == (120, 160, 3)
    path = write(tmp_path / "cut.jpg", with_thumbnail[: len(with_thumbnail) // 2])
    with pytest.raises(DataError, match="end-of-image"):
        ImageFile(path).decode(3)


def test_bytes_after_the_end_of_a_jpeg_are_ignored(photo: np.ndarray, tmp_path: Path) -> None:
    path = write(tmp_path / "image.jpg", encoded(photo, "jpg") + bytes(100))
    assert ImageFile(path).decode(3).shape == (120, 160, 3)


@pytest.mark.parametrize(
    "content", [b"", b"hello world", b"GIF89a", b"RIFF\x04\0\0\0WAVE", b"\xff\xd8\xff\xd9"]
)
def test_what_is_no_image_is_refused(content: bytes, tmp_path: Path) -> None:
    path = write(tmp_path / "image.jpg", content)
    with pytest.raises(DataError, match=r"image\.jpg: "):
        ImageFile(path).decode(3)


def test_damage_inside_a_png_is_refused(photo: np.ndarray, tmp_path: Path) -> None:
    content = bytearray(encoded(photo, "png"))
    content[len(content) // 2] ^= 0xFF
    with pytest.raises(DataError, match="damaged"):
        ImageFile(write(tmp_path / "image.png", bytes(content))).decode(3)


def test_a_claim_of_giant_size_is_refused_before_decoding(
    photo: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    png = bytearray(encoded(photo, "png"))
    png[16:24] = (100_000).to_bytes(4, "big") * 2
    jpeg = bytearray(encoded(photo, "jpg"))
    frame = jpeg.index(b"\xff\xc0")
    jpeg[frame + 5 : frame + 9] = (60_000).to_bytes(2, "big") * 2
    bmp = bytearray(encoded(photo, "bmp"))
    bmp[18:26] = (100_000).to_bytes(4, "little") * 2
    lossy = bytearray(from_pillow(photo, "RGB", "WEBP"))
    assert lossy[8:16] == b"WEBPVP8 "
    lossy[26:30] = b"\xff\xff\xff\xff"  # 16383 pixels each way
    lossless = bytearray(from_pillow(photo, "RGB", "WEBP", lossless=True))
    assert lossless[8:16] == b"WEBPVP8L"
    lossless[21:25] = b"\xff\xff\xff\x0f"
    canvas = b"VP8X" + (10).to_bytes(4, "little") + bytes(4) + b"\xff\xff\xff" * 2
    extended = b"RIFF" + (len(canvas) + 4).to_bytes(4, "little") + b"WEBP" + canvas

    def never(*_: object) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr(cv2, "imdecode", never)
    monkeypatch.setattr(simplejpeg, "decode_jpeg", never)
    for content in (png, jpeg, bmp, lossy, lossless, extended):
        with pytest.raises(DataError, match=r"claims \d+x\d+ pixels, allowed: 1 to 178956970"):
            ImageFile(write(tmp_path / "bomb", bytes(content))).decode(3)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.jpg: cannot be read \(No such file"):
        ImageFile(str(tmp_path / "gone.jpg")).decode(3)
